"""Budgets and spaces as a user writes them: what is understood, and what is refused with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.bounds import OBJECTIVES, constrainable, parse_constraint
from autocompress.config import (
    PARTS,
    BitChoices,
    Budget,
    Rule,
    SearchConfig,
    Shares,
    Space,
    load_space,
    parse_budget,
    parse_counts,
    parts_without,
    search_config,
)
from autocompress.errors import InvalidSpace
from autocompress.records import CHECKS, Measurement, Target


@pytest.mark.parametrize(("text", "trials"), [("50", 50), (1, 1), (" 7 ", 7), ("2.0", 2)])
def test_a_plain_number_is_a_budget_of_trials(text: str | int, trials: int) -> None:
    assert parse_budget(text) == Budget(trials=trials)


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200), ("2h", 7200), ("90s", 90), ("1.5h", 5400), ("0.5m", 30)])
def test_a_number_with_a_unit_is_a_budget_of_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == Budget(seconds=seconds)


@pytest.mark.parametrize("text", ["0", 0, "abc", "-3", "1.5", "", "0m", "m", "20 minutes", "1e3", "nan", "20d", "5 5"])
def test_any_other_budget_is_refused_with_its_value_and_what_would_do(text: str | int) -> None:
    with pytest.raises(InvalidSpace, match=r"--budget: .*whole number of trials.*90s, 20m, 2h") as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=12))
def test_no_text_makes_the_budget_parser_fail_in_another_way(text: str) -> None:
    try:
        budget = parse_budget(text)
    except InvalidSpace:
        return
    assert (budget.trials or 0) >= 1 or (budget.seconds or 0) > 0


def test_the_program_can_say_which_budget_it_understood() -> None:
    assert str(parse_budget("50")) == "50 finished trials in all"
    assert str(parse_budget("90m")) == "90 minutes of wall clock"


def refusal(tmp_path: Path, text: str) -> str:
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSpace) as caught:
        load_space(file)
    message = str(caught.value)
    assert str(file) in message
    return message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("keeep: {choices: [1.0]}", "keeep: unknown key"),
        ("keep: {choices: [1.0], tye: model}", "keep.tye: unknown key"),
        ("layers: [{match: a}, {match: b, kep: 0.5}]", "layers[1].kep: unknown key"),
        ("keep: {choices: [0.5, 1.5]}", "keep.choices: every share must be above 0 and at most 1 (got"),
        ("keep: {choices: []}", "keep.choices: "),
        ("weight_bits: {choices: [64]}", "weight_bits.choices: bits must be 2 to 8, 16 for half floats, or 32 for float"),
        ("weight_bits: {choices: [8], tie: group}", "weight_bits.tie: "),
        ("recovery: {steps: -1}", "recovery.steps: "),
        ("recovery: {learning_rate: [0]}", "recovery.learning_rate: Input should be greater than 0"),
        ("distillation: {soft_weight: [2]}", "distillation: soft_weight must be between 0 and 1"),
        ("layers: [{keep: 0.5}]", "layers[0].match: "),
        ("layers: [{match: a, keep: .nan}]", "layers[0].keep: "),
    ],
)
def test_a_wrong_field_of_a_space_is_named_by_its_path(tmp_path: Path, text: str, place: str) -> None:
    assert place in refusal(tmp_path, text)


def test_every_wrong_field_gets_its_own_line(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "keeep: 1\nrecovery: {steps: -1}").splitlines()) == 2


@pytest.mark.parametrize(("text", "what"), [("keep: [", "not valid YAML"), ("- 1", "must be a mapping"), ("", "must be a mapping")])
def test_a_file_that_is_no_space_is_refused_in_one_line(tmp_path: Path, text: str, what: str) -> None:
    message = refusal(tmp_path, text)
    assert what in message
    assert "\n" not in message


def test_a_missing_space_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpace, match="built-in spaces: compact, default, full, large, small"):
        load_space(tmp_path / "absent.yaml")
    with pytest.raises(InvalidSpace, match="built-in spaces: compact, default, full, large, small"):
        load_space("gigantic")


def test_a_space_that_is_a_folder_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("folder.yaml", "binary.yaml"):
        with pytest.raises(InvalidSpace, match="cannot be read"):
            load_space(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("worst_class_drop <= 5", "worst_class_drop <= 5"),
        ("size_bytes<=200000", "size_bytes <= 200000"),
        ("  p99_ms <= 2.50 ", "p99_ms <= 2.5"),
        ("agreement >= 0.99", "agreement >= 0.99"),
        ("calibration_error_rise <= -1e-3", "calibration_error_rise <= -0.001"),
        ("drop_high <= 1", "drop_high <= 1"),
    ],
)
def test_a_constraint_is_read_with_or_without_spaces(text: str, kept: str) -> None:
    assert configured(constraints=[text]).constraints == (kept,)
    assert configured(constraints=[text, kept]).limits == (parse_constraint(kept),)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("worst_class_drop < 5", "a constraint is NAME <= NUMBER or NAME >= NUMBER"),
        ("worst_class_drop", "a constraint is NAME <= NUMBER"),
        ("worst_class_drop <= five", "a constraint is NAME <= NUMBER"),
        ("worst_class_drop <= nan", "a constraint is NAME <= NUMBER"),
        ("drop <= inf", "a constraint is NAME <= NUMBER"),
        ("worst_drop <= 5", "nothing called worst_drop is measured; known: worst_class_drop, hard_drop, rare_drop"),
        ("machine <= 5", "nothing called machine is measured"),
        ("resolved <= 5", "nothing called resolved is measured"),
    ],
)
def test_a_constraint_that_does_not_read_names_the_rule_and_itself(text: str, rule: str) -> None:
    with pytest.raises(InvalidSpace, match=r"constraints: .*") as refused:
        configured(constraints=[text])
    assert rule in str(refused.value)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_soft_constraint_says_so_and_a_hard_one_is_the_rule() -> None:
    assert configured(constraints=["size_bytes<=1000  soft", "p99_ms <= 2 hard"]).constraints == ("size_bytes <= 1000 soft", "p99_ms <= 2")
    assert parse_constraint("size_bytes <= 1000 soft").soft


@pytest.mark.parametrize(
    ("constraints", "told"),
    [
        (["size_bytes <= 1000", "size_bytes >= 2000"], "size_bytes >= 2000 and size_bytes <= 1000 contradict each other"),
        (["speedup <= 1.5"], "speedup >= 2 and speedup <= 1.5 contradict"),
        (["drop >= 5"], "drop >= 5 and drop <= 3 contradict"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(constraints: list[str], told: str) -> None:
    with pytest.raises(InvalidSpace) as refused:
        configured(constraints=constraints)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert configured(constraints=[f"{one} soft" for one in constraints]).limits
    assert configured(constraints=["speedup <= 3", "size_bytes >= 1000", "size_bytes <= 1000"]).limits


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (("speedup",), "objectives begin with speedup and drop"),
        (("drop", "speedup"), "objectives begin with speedup and drop"),
        (("speedup", "drop", "drop"), "name each further quantity once"),
        (("speedup", "drop", "beauty"), "beauty is no objective; known: speedup, drop, size_bytes"),
    ],
)
def test_objectives_begin_with_speedup_and_drop_and_are_measured(names: tuple[str, ...], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Space(objectives=names)
    assert Space(objectives=("speedup", "drop", "size_bytes", "worst_class_drop")).objectives[2] == "size_bytes"


def test_every_objective_can_be_measured() -> None:
    assert set(OBJECTIVES) <= {*Measurement.model_fields, *CHECKS}


def test_parts_that_are_left_out_are_named_by_what_is_known() -> None:
    assert parts_without(["survey"]) == ("analytic", "gate", "accuracy_model")
    assert parts_without([]) == PARTS
    with pytest.raises(InvalidSpace, match="--without: must be survey, analytic, gate, accuracy_model, got 'luck'"):
        parts_without(["luck"])


def configured(**changes: object) -> SearchConfig:
    return search_config({}, study="s", task="t", space=Space(), budget=Budget(trials=1), **changes)


def test_every_name_of_a_constraint_is_a_number_of_a_measurement() -> None:
    fields = Measurement.model_fields
    assert {"speedup_low", "drop_high", "p99_ms", "size_bytes", "busy", *CHECKS} <= set(constrainable())
    assert all(name in CHECKS or name in fields for name in constrainable())
    assert not {"split", "machine", "checks", "batches", "resolved"} & set(constrainable())


def test_choices_are_sorted_and_unique() -> None:
    assert Shares(choices=(1.0, 0.5, 0.5)).choices == (0.5, 1.0)
    assert BitChoices(choices=(32, 7, 8, 8)).choices == (7, 8, 32)


def test_a_configuration_is_frozen_and_survives_json() -> None:
    space = Space(layers=(Rule(match="conv*", keep=0.5),), distillation=None)
    config = SearchConfig(study="s", task="t", space=space, budget=Budget(trials=3), target=Target(threads=2))
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(("text", "sizes"), [(8, (8,)), ("8", (8,)), ("1,8,32", (1, 8, 32)), (" 8, 1 ,8", (1, 8)), ((32, 1), (1, 32))])
def test_one_batch_size_or_several_are_read(text: str | int | tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert parse_counts("--batch-size", text) == sizes


@pytest.mark.parametrize("text", ["0", 0, "", "1,", "1,0", "a", "1.5", "-1", "1;8", (), (1, 0)])
def test_any_other_batch_size_is_refused_with_its_value_and_what_would_do(text: str | int | tuple[int, ...]) -> None:
    with pytest.raises(InvalidSpace, match=r"--batch-size: must be a whole number of at least 1, or several with commas") as caught:
        parse_counts("--batch-size", text)
    assert repr(text) in str(caught.value)
