"""Questions to stored trials: the fastest that fits, the nearest otherwise, without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.config import SearchConfig, parse_constraint
from autocompress.errors import InvalidStudy, UserError
from autocompress.records import LayerInfo, Measurement, TrialResult
from autocompress.runs import Layers, RunPaths, to_json, write_text
from autocompress.study.ask import Wishes, answer, ask, parse_size

MakeTrial = Callable[..., TrialResult]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200KB", 200_000), ("200 kb", 200_000), ("1.5MB", 1_500_000), ("200000", 200_000), (200_000, 200_000), ("64KiB", 65_536),
        ("2M", 2_000_000), ("1GB", 10**9), ("7b", 7),
    ],
)  # fmt: skip
def test_sizes_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-1", "0", "1.5.2MB", "10 apples", "0.1", "1e5", "nan"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError, match=r"--max-size: must be bytes \(200000\) or a size \(200KB, 1\.5MB, 64KiB\)"):
        parse_size(text)


def trials(make_trial: MakeTrial) -> list[TrialResult]:
    return [
        make_trial(0, 2.0, 0.0, 900), make_trial(1, 8.0, 2.0, 500), make_trial(2, 10.0, 40.0, 600), make_trial(3, 3.0, 0.5, 100),
        make_trial(4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wishes", "number"),
    [
        (Wishes(), 2),
        (Wishes(max_drop=2.0), 1),
        (Wishes(max_drop=0.5, min_speedup=2.0), 3),
        (Wishes(max_drop=0.4), 0),
        (Wishes(max_bytes=500), 1),
        (Wishes(max_bytes=499), 3),
        (Wishes(max_drop=0.5, min_speedup=3.0, max_bytes=100), 3),
    ],
)
def test_the_fastest_within_all_bounds_is_found_and_the_bounds_count_themselves(
    make_trial: MakeTrial, wishes: Wishes, number: int
) -> None:
    found = answer(trials(make_trial), {}, wishes)
    assert (found["fits"], found["trial"]["trial"], found["misses"], found["holdout_fits"]) == (True, number, {}, None)


def test_where_none_fits_the_nearest_is_given_with_what_it_misses(make_trial: MakeTrial) -> None:
    found = answer(trials(make_trial), {}, Wishes(max_drop=0.5, min_speedup=4.0, max_bytes=50))
    assert (found["fits"], found["trial"]["trial"]) == (False, 3)
    assert found["misses"] == {"min_speedup": 1.0, "max_bytes": 50}


def test_the_constraints_of_the_study_count_as_well(make_trial: MakeTrial) -> None:
    small = Wishes(max_drop=2.0, constraints=(parse_constraint("size_bytes <= 200"),))
    assert answer(trials(make_trial), {}, small)["trial"]["trial"] == 3
    unmeasured = answer(trials(make_trial), {}, Wishes(constraints=(parse_constraint("p99_ms <= 2"),)))
    assert (unmeasured["fits"], unmeasured["misses"]) == (False, {"p99_ms <= 2": None})
    far = answer(trials(make_trial), {}, Wishes(constraints=(parse_constraint("size_bytes <= 40"),)))
    assert (far["trial"]["trial"], far["misses"]) == (3, {"size_bytes <= 40": 60})


def test_the_holdout_numbers_are_judged_by_the_same_wishes(
    make_trial: MakeTrial, make_measurement: Callable[..., Measurement]
) -> None:
    wishes = Wishes(max_drop=2.0)
    for drop, fits in ((2.0, True), (2.1, False)):
        found = answer(trials(make_trial), {1: make_measurement(7.0, drop)}, wishes)
        assert found["fits"] is True
        assert found["holdout_fits"] is fits
        assert found["trial"]["holdout"]["drop"] == drop


@pytest.fixture
def paths(tmp_path: Path, make_trial: MakeTrial, make_config: Callable[..., SearchConfig], chain: tuple[LayerInfo, ...]) -> RunPaths:
    made = RunPaths(tmp_path, "study")
    made.write_config(make_config())
    write_text(made.layers, to_json(Layers(layers=chain)))
    for result in trials(make_trial):
        made.write_result(result)
    return made


def test_a_study_is_asked_by_name_and_the_recipe_is_told_in_words(paths: RunPaths) -> None:
    found = ask("study", max_drop=2.0, max_size="1KB", runs=paths.runs)
    assert (found["study"], found["running"], found["finished"], found["trial"]["trial"]) == ("study", False, 5, 1)
    assert found["asked"] == {"max_drop": 2.0, "min_speedup": None, "max_bytes": 1000, "constraints": []}
    assert found["words"][0] == "no layer is changed"


def test_asking_loads_neither_torch_nor_optuna(paths: RunPaths) -> None:
    code = (
        f"import sys; from autocompress.cli import main\ntry: main(['ask', 'study', '--runs', {str(paths.runs)!r}])\n"
        "finally: print('loaded', sorted({'torch', 'optuna', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded []\n")
    assert "fastest   trial 2" in done.stdout


def test_a_study_without_a_measured_trial_or_that_is_none_is_refused(paths: RunPaths) -> None:
    for number in range(4):
        paths.trial(number).result.unlink()
    with pytest.raises(InvalidStudy, match=r"has no measured trial yet.*\(1 finished\).*resume study"):
        ask("study", runs=paths.runs)
    with pytest.raises(InvalidStudy, match="does not exist"):
        ask("absent", runs=paths.runs)
