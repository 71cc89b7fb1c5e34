"""What every test shares: the list of skips that are allowed, and the rule that CI fails on any other."""

import os
import signal
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import settings

# Pattern of test ids -> why that test may be skipped. Any other skip fails CI: a test that never runs promises nothing.
ALLOWED_SKIPS: dict[str, str] = {
    "tests/test_report_browser.py::*": "a machine that is offline has no browser, and .ci/run can install none there",
    "tests/tasks/*::test_the_real_*": "the data of ../shared/data are on some machines only",
}

settings.register_profile("shared machine", deadline=None)  # a slow moment of the machine is not a failure of the code
settings.load_profile("shared machine")

unlisted_skips: list[str] = []


def is_allowed(test: str, allowed: dict[str, str]) -> bool:
    return any(fnmatchcase(test, pattern) for pattern in allowed)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def remember(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and not is_allowed(report.nodeid, ALLOWED_SKIPS):
        unlisted_skips.append(report.nodeid)


def pytest_configure() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # for toy_task and toy_runs: --import-mode=importlib adds no folder
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one process a core, and one thread in each


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    remember(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    remember(report)


def pytest_sessionstart() -> None:
    unlisted_skips.clear()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if unlisted_skips and in_ci() and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if unlisted_skips and in_ci():
        terminalreporter.section("skips that are not on ALLOWED_SKIPS in tests/conftest.py", red=True)
        for test in unlisted_skips:
            terminalreporter.line(f"{test}: skipped, and CI fails on that. Make it run, or list it with its reason.")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A finished study in ONNX Runtime, made once by a real process (toy_runs.Finished): for reading only, so copy it to change it."""
    import toy_runs  # not at the top: it brings torch, which most tests do without

    return toy_runs.finished(tmp_path_factory.mktemp("shipped"), "shipped", 3, "onnxruntime")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A finished study of 16 trials with the made-up times of the fake runtime, never interrupted: for reading only."""
    import toy_runs

    return toy_runs.finished(tmp_path_factory.mktemp("undisturbed"), "study", 16, "fake")
