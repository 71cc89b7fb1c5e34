"""An exported folder is measured again and judged by its own numbers: for a user's CI."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_task
from toy_runs import Finished, call

import autocompress
from autocompress import verify
from autocompress.artifact import write_checksums
from autocompress.errors import InvalidArtifact, UserError
from autocompress.progress import Progress
from autocompress.records import Measurement
from autocompress.verify import Check, Tolerance, Verdict, judge

QUIET = Progress(quiet=True)
TOLERANCE = Tolerance(speed_percent=10, accuracy_points=0.1)


@pytest.fixture
def folder(undisturbed: Finished, tmp_path: Path) -> Path:
    """An exported trial of the fake runtime, whose times repeat exactly."""
    autocompress.export(undisturbed.paths.study, out=tmp_path / "shipped", runs=undisturbed.paths.runs)
    return tmp_path / "shipped"


def claim(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change measured.json, sums included, as if it had been written so."""
    file = folder / "measured.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    write_checksums(folder)


def verified(folder: Path, **changes: Any) -> Verdict:
    return verify(folder, progress=QUIET, **({"task": "toy_task:make"} | changes))


def held(verdict: Verdict) -> dict[str, bool | None]:
    return {check.name: check.held for check in verdict.checks}


def test_what_was_just_exported_holds(folder: Path) -> None:
    verdict = verified(folder)
    assert verdict.holds
    assert held(verdict) == {"speedup": True, "accuracy": True, "weights bytes": True, "deployed bytes": True}
    assert verdict.differences == ()
    assert verdict.measurement.split == "holdout"


def test_the_task_is_the_one_that_measured_names_and_may_be_given_in_memory(folder: Path) -> None:
    assert json.loads((folder / "measured.json").read_text())["task"] == "toy_task:make"
    assert verified(folder, task=None).holds
    assert verified(folder, task=toy_task.make()).task == "toy"


@pytest.mark.parametrize(
    ("field", "factor", "name"), [("speedup", 1.5, "speedup"), ("speedup", 0.5, "speedup"), ("accuracy", 1.02, "accuracy")]
)
def test_a_claim_that_does_not_hold_is_found(folder: Path, field: str, factor: float, name: str) -> None:
    fields = ("speedup", "speedup_low", "speedup_high") if field == "speedup" else (field,)
    claim(folder, lambda told: told["holdout"].update({one: told["holdout"][one] * factor for one in fields}))
    verdict = verified(folder)
    assert not verdict.holds
    assert [check.name for check in verdict.checks if check.held is False] == [name]


def test_without_holdout_numbers_those_of_the_search_split_are_judged(folder: Path) -> None:
    claim(folder, lambda told: told.update(holdout=None))
    verdict = verified(folder)
    assert verdict.holds
    assert verdict.measurement.split == "search"


def test_on_another_machine_the_speed_is_shown_and_judged_only_when_asked(folder: Path) -> None:
    def elsewhere(told: dict[str, Any]) -> None:
        told["machine"]["cpu"] = "Z80"
        told["holdout"].update(speedup=99.0, speedup_low=98.0, speedup_high=100.0)

    claim(folder, elsewhere)
    verdict = verified(folder)
    assert verdict.holds
    assert held(verdict)["speedup"] is None
    assert any("cpu: Z80 -> " in line for line in verdict.differences)
    assert "--speed judges it all the same" in verdict.checks[0].words
    assert held(verified(folder, tolerance=Tolerance(speed_anyway=True)))["speedup"] is False


def measurement(speedup: float, half: float, accuracy: float, size: int = 500) -> Measurement:
    times = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
    times |= {"latency_ms": 1.0, "baseline_latency_ms": 1.0}
    scores = {"accuracy": accuracy, "baseline_accuracy": 99.0, "drop": 99.0 - accuracy, "agreement": 1.0, "max_difference": 0.0}
    sizes = {"size_bytes": size, "deployed_bytes": 600, "baseline_size_bytes": 1000, "samples": 9, "blocks": 9, "resolved": True}
    return Measurement.model_validate(times | scores | sizes | {"machine": "m", "split": "holdout"})


CLAIMED = measurement(4.0, 0.1, 98.0)


@pytest.mark.parametrize(
    ("now", "wrong"),
    [
        (measurement(3.42, 0.1, 98.0), []),  # its interval reaches 0.9 times 3.9
        (measurement(3.4, 0.1, 98.0), ["speedup"]),
        (measurement(4.62, 0.1, 98.0), ["speedup"]),
        (measurement(4.6, 0.1, 98.0), []),  # and here 1.1 times 4.1
        (measurement(4.0, 0.1, 97.9), []),
        (measurement(4.0, 0.1, 97.89), ["accuracy"]),
        (measurement(4.0, 0.1, 98.11), ["accuracy"]),
        (measurement(4.0, 0.1, 98.0, 501), ["weights bytes"]),
    ],
)
def test_the_tolerances_count_themselves_and_to_both_sides(now: Measurement, wrong: list[str]) -> None:
    assert [check.name for check in judge(CLAIMED, now, TOLERANCE) if not check.held] == wrong


def test_a_check_that_was_not_judged_does_not_fail_the_whole() -> None:
    checks = judge(CLAIMED, measurement(1.0, 0.1, 98.0), TOLERANCE, "elsewhere")
    assert checks[0] == Check("speedup", 4.0, 1.0, None, "elsewhere")
    assert all(check.held for check in checks[1:])


# ---- from the command line, and refusals ----------------------------------------------------------------------------


def test_the_command_ends_with_0_or_with_4_and_says_which_claim(folder: Path) -> None:
    arguments = ("verify", str(folder), "--task", "toy_task:make")
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["holds"] is True
    assert "verified: the numbers hold here" in done.stderr
    claim(folder, lambda told: told["holdout"].update(accuracy=50.0))
    wrong = call(*arguments)
    assert wrong.exit_code == 4
    assert "NOT VERIFIED" in wrong.stdout
    assert call(*arguments, "--accuracy-tolerance", "100").exit_code == 0


def test_nothing_is_run_before_the_files_are_known_to_be_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verify.__globals__, "task_of", lambda *arguments: pytest.fail("too early"))
    (folder / "recipe.yaml").write_text("layers: []\n")
    with pytest.raises(InvalidArtifact, match=r"recipe\.yaml: changed"):
        verified(folder)


def test_a_task_that_is_another_or_not_named_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not the one it was measured with"):
        verified(folder, task="toy_task:two_splits")
    for name, why in ((None, "does not name its task"), ("(in memory)", "was made from a task in memory")):
        claim(folder, lambda told, name=name: told.update(task=name))
        with pytest.raises(UserError, match=f"{why}; say with --task"):
            verified(folder, task=None)
