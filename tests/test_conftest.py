"""The rule about skips holds: CI fails on a skip that is not listed, and names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
PASSES = "def test_runs():\n    pass\n"
SKIPS = "import pytest\n\n@pytest.mark.skip(reason='x')\ndef test_never_runs():\n    pass\n"
SKIPS_AS_A_MODULE = "import pytest\n\npytest.skip('x', allow_module_level=True)\n"
FAILS_AS_EXPECTED = "import pytest\n\n@pytest.mark.xfail\ndef test_known():\n    assert False\n"


def run_pytest(folder: Path, tests: str, *more: str, ci: str | None, allowed: str = "") -> tuple[int, str]:
    text = CONFTEST.read_text(encoding="utf-8")
    entry = "ALLOWED_SKIPS: dict[str, str] = {"
    assert entry in text
    (folder / "conftest.py").write_text(text.replace(entry, entry + allowed), encoding="utf-8")
    (folder / "test_made_up.py").write_text(PASSES, encoding="utf-8")
    (folder / "test_more.py").write_text(tests, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    environment |= {"CI": ci} if ci is not None else {}
    command = [sys.executable, "-m", "pytest", "--rootdir", str(folder), "-c", os.devnull, "-p", "no:cacheprovider", str(folder), *more]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("more", [(), ("--numprocesses=2", "--dist=loadfile")], ids=["one process", "two"])
@pytest.mark.parametrize(("tests", "name"), [(SKIPS, "test_never_runs"), (SKIPS_AS_A_MODULE, "test_more.py")])
def test_ci_fails_on_a_skip_that_is_not_listed_and_names_it(tmp_path: Path, tests: str, name: str, more: tuple[str, ...]) -> None:
    code, output = run_pytest(tmp_path, tests, *more, ci="true")
    assert code == 1
    assert "skips that are not on ALLOWED_SKIPS" in output
    assert f"{name}: skipped, and CI fails on that" in output


def test_a_listed_skip_passes_ci(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, SKIPS, ci="true", allowed="'*::test_never_*': 'made up',")
    assert code == 0
    assert "1 skipped" in output


@pytest.mark.parametrize("ci", [None, "", "false"])
def test_outside_ci_a_skip_is_only_a_skip(tmp_path: Path, ci: str | None) -> None:
    code, output = run_pytest(tmp_path, SKIPS, ci=ci)
    assert code == 0
    assert "ALLOWED_SKIPS" not in output


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, FAILS_AS_EXPECTED, ci="true")
    assert code == 0
    assert "1 xfailed" in output


def test_every_allowed_skip_has_a_reason() -> None:
    namespace: dict[str, object] = {}
    exec(compile(CONFTEST.read_text(encoding="utf-8"), str(CONFTEST), "exec"), namespace)
    allowed = namespace["ALLOWED_SKIPS"]
    assert isinstance(allowed, dict)
    assert all(len(reason.split()) >= 3 for reason in allowed.values())
