"""A task is checked before anything is spent on it; its splits, its stream and its metric are the same every time."""

import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks import task as tasks
from autocompress.tasks.find import find_task
from autocompress.tasks.task import (
    Batches,
    Task,
    calibration,
    check,
    digest,
    floor_drop,
    gather,
    lost,
    outputs_of,
    score,
    seeded,
    stream,
    with_holdout,
)
from tests.small_models import fingerprint

QUIET = Progress(quiet=True)


def found(name: str) -> Task:
    return find_task(name, Path("unused"), QUIET)


def prepared(name: str) -> None:
    """All that a search does with a task before it spends anything."""
    task = found(name)
    check(task)
    task = with_holdout(task, seed=0)
    assert task.holdout is not None
    for split in (task.search, task.holdout):
        x, y = gather(split, "split")
        score(task, outputs_of(task.model, x), y)


# ---- what is wrong is told in one line ------------------------------------------------------------------------------

WRONG = {
    "absent": r"'absent' is neither a built-in task \(digits, .*\) nor of the form package\.module:factory",
    ":make": "is neither a built-in task",
    "toy_task:": "is neither a built-in task",
    "absent.module:make": r"--task absent\.module:make: there is no module 'absent' \(looked in",
    "toy_task:absent": "toy_task has no function 'absent'",
    "toy_task:not_a_function": "toy_task has no function 'not_a_function'",
    "toy_task:raises": r"raises\(\) failed: RuntimeError: no weights here, sadly \(.*toy_task\.py:\d+\)",
    "toy_task:returns_a_model": r"returns_a_model\(\) must return an autocompress\.Task, it returned Toy",
    "toy_task:wrong_input": r"the model fails on its own example, inputs \(2, 1, 8, 8\) torch\.float32: RuntimeError",
    "toy_task:nan_metric": r"task 'toy': metric 'accuracy' returned nan on \d+ samples; it must be a finite number",
    "toy_task:raising_metric": r"metric 'accuracy' failed on outputs \(\d+, 10\): KeyError: 'labels'",
    "toy_task:empty_search": "search: the loader yields no batch",
    "toy_task:empty_train": "train: the loader yields no batch",
    "toy_task:empty_holdout": "holdout: the loader yields no batch",
    "toy_task:no_pairs_in_search": r"search: batch 0 must be a pair of tensors \(inputs, targets\), got Tensor",
    "toy_task:no_pairs_in_train": r"(train|calibration): .*pair of tensors \(inputs, targets\)",
    "toy_task:loader_that_raises": "search: .*OSError: image 8 is broken",
    "toy_task:unequal_pairs": "search: .*150.*149",
    "toy_task:infinite_outputs": "outputs are not finite on its own example",
    "toy_task:raising_loss": r"loss failed on outputs \(2, 10\), targets \(2,\)",
    "toy_task:loss_of_many_numbers": "loss .*(number|scalar)",
    "toy_task:one_sample_to_cut": "holdout",
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_with_a_task_is_told_in_one_line(name: str) -> None:
    with pytest.raises(InvalidTask, match=WRONG[name]) as caught:
        prepared(name)
    assert "\n" not in str(caught.value)


def test_a_task_that_is_right_passes_and_its_model_and_mode_are_left_alone() -> None:
    prepared("toy_task:make")
    task = toy_task.make()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    for training in (False, True):
        task.model.train(training)
        check(task)
        assert task.model.training is training
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_a_package_that_the_users_module_imports_and_lacks_is_named_as_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_task.py").write_text("import absent_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidTask, match=r"needy_task imports 'absent_package', which is not installed"):
        found("needy_task:make")


def test_a_module_that_fails_while_it_is_imported_is_told_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_task.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidTask, match=r"importing broken_task failed: ZeroDivisionError: division by zero \(.*broken_task\.py:2\)"):
        found("broken_task:make")


def test_a_module_beside_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_task.py").write_text("from toy_task import make\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert found("own_task:make").name == "toy"


@pytest.mark.parametrize("split", ["search", "train", "train, a loader"])
@pytest.mark.parametrize("label", [10, -1])
def test_a_label_out_of_range_is_told_with_its_place_before_anything_is_spent(split: str, label: int) -> None:
    name = split.partition(",")[0]
    x, y = toy_task.data()[0 if name == "train" else 1]
    wrong = y.clone()
    wrong[100] = label
    batches = [(x, wrong)] if "loader" in split else Batches(x, wrong, 64, shuffle=False)
    said = f"task: {name}: sample 100 has label {label}; the model's outputs have 10 classes, so labels are 0 to 9"
    with pytest.raises(InvalidTask, match=said):
        check(replace(toy_task.make(), **{name: batches}))
    ignored = y.clone()
    ignored[100] = -100
    check(replace(toy_task.make(), **{name: Batches(x, ignored, 64)}))


def test_a_model_that_is_no_module_is_refused() -> None:
    with pytest.raises(InvalidTask, match=r"model must be a torch\.nn\.Module, got function"):
        check(replace(toy_task.make(), model=lambda x: x))


# ---- splits ---------------------------------------------------------------------------------------------------------


def test_of_two_splits_the_second_is_cut_in_halves_class_by_class_and_a_note_says_so() -> None:
    x, y = toy_task.data()[1]
    labelled = torch.arange(len(x), dtype=torch.float32)[:, None]  # inputs that can be told apart
    task = with_holdout(replace(toy_task.make(), search=Batches(labelled, y, 7), holdout=None), seed=0)
    (search, search_y), (holdout, holdout_y) = gather(task.search, "search"), gather(task.holdout or (), "holdout")
    assert sorted([*search.flatten().tolist(), *holdout.flatten().tolist()]) == list(range(len(x)))
    assert abs(len(search) - len(holdout)) <= 1
    for label in range(10):
        assert abs(int((search_y == label).sum()) - int((holdout_y == label).sum())) <= 1
    assert torch.equal(y[search.flatten().long()], search_y)
    assert any("75 of 150 search samples" in note for note in task.notes)


def test_the_cut_follows_the_seed() -> None:
    def halves(seed: int) -> Tensor:
        return gather(with_holdout(toy_task.two_splits(), seed).holdout or (), "holdout")[0]

    assert torch.equal(halves(0), halves(0))
    assert not torch.equal(halves(0), halves(1))


def test_targets_that_are_no_classes_are_cut_in_halves_too() -> None:
    x, _ = toy_task.data()[1]
    task = with_holdout(replace(toy_task.make(), search=[(x, torch.rand(len(x)))], holdout=None), seed=0)
    assert [len(gather(split or (), "split")[0]) for split in (task.search, task.holdout)] == [75, 75]


def test_a_holdout_that_was_given_is_kept_and_needs_no_note() -> None:
    task = with_holdout(toy_task.make(), seed=0)
    assert torch.equal(gather(task.holdout or (), "holdout")[0], toy_task.data()[2][0])
    assert task.notes == ()


def test_calibration_takes_the_first_samples_of_train_or_what_was_given() -> None:
    x, y = toy_task.data()[0]
    assert torch.equal(calibration(replace(toy_task.make(), train=Batches(x, y, 100, shuffle=False))), x)
    assert len(calibration(replace(toy_task.make(), train=[(x, y)] * 3))) == tasks.CALIBRATION_SAMPLES
    assert torch.equal(calibration(replace(toy_task.make(), calibration=[(x[:5], y[:5])])), x[:5])


# ---- the stream of training batches ---------------------------------------------------------------------------------


def loader(workers: int) -> DataLoader[tuple[Tensor, ...]]:
    x, y = toy_task.data()[0]
    return DataLoader(TensorDataset(x[:40], y[:40]), batch_size=8, shuffle=True, num_workers=workers)


def inputs_of(task: Task, steps: int, seed: int) -> list[Tensor]:
    return [inputs for inputs, _ in stream(task, steps, seed)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("train", ["tensors", "loader"])
def test_the_stream_is_fixed_by_its_seed_and_whatever_was_drawn_before(train: str) -> None:
    task = toy_task.make() if train == "tensors" else replace(toy_task.make(), train=loader(0))
    first = inputs_of(task, 12, seed=5)
    torch.rand(100)
    assert same(first, inputs_of(task, 12, seed=5))
    assert not same(first, inputs_of(task, 12, seed=6))
    assert not torch.equal(first[0], first[5 if train == "loader" else 8])  # the next round has another order


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_stream_is_the_same_with_worker_processes_as_without() -> None:
    alone, helped = (inputs_of(replace(toy_task.make(), train=loader(workers)), 7, seed=3) for workers in (0, 2))
    assert same(alone, helped)


def test_batches_of_one_sample_are_left_out_and_the_steps_are_still_made() -> None:
    x, y = toy_task.data()[0]
    task = replace(toy_task.make(), train=Batches(x[:9], y[:9], 4, shuffle=False))  # 4, 4, 1
    assert [len(inputs) for inputs in inputs_of(task, 5, seed=0)] == [4, 4, 4, 4, 4]


def test_a_loader_of_single_samples_is_refused_and_does_not_turn_forever() -> None:
    x, y = toy_task.data()[0]
    with pytest.raises(InvalidTask, match="no batch of two or more samples"):
        inputs_of(replace(toy_task.make(), train=Batches(x[:3], y[:3], 1)), 2, seed=0)


def states() -> tuple[object, object, bytes]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("taken", [2, 4])
def test_a_stream_and_who_reads_it_draw_from_random_states_of_their_own(taken: int) -> None:
    task = replace(toy_task.make(), train=loader(0))
    alone = [batch[0] for batch in stream(task, taken, seed=1)]
    with seeded(7):
        undisturbed = [(random.random(), np.random.rand(), torch.rand(1).item()) for _ in range(taken)]
    with seeded(7):
        batches, seen, drawn = stream(task, 4, seed=1), [], []
        for _ in range(taken):
            seen.append(next(batches)[0])
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn == undisturbed
    assert all(torch.equal(one, other) for one, other in zip(alone, seen, strict=True))


def test_gathering_a_shuffling_loader_gives_the_random_states_back_and_repeats_itself() -> None:
    before = states()
    first = gather(loader(0), "train")  # making a loader draws nothing
    assert states() == before
    torch.rand(3)
    assert torch.equal(first[0], gather(loader(0), "train")[0])


# ---- metric and digest ----------------------------------------------------------------------------------------------


def test_the_metric_sees_a_whole_split_at_once() -> None:
    sizes: list[int] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        sizes.append(len(outputs))
        return tasks.accuracy(outputs, targets)

    task = replace(toy_task.make(), metric=metric)
    x, y = gather(task.search, "search")
    value = score(task, outputs_of(task.model, x, batch_size=64), y)
    right = int((task.model(x).argmax(1) == y).sum())
    assert sizes == [150]
    assert value == pytest.approx(100 * right / 150, abs=1e-4)


def test_a_metric_without_a_number_names_task_split_and_value_and_whether_the_outputs_had_one() -> None:
    outputs, targets = torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64)
    task = replace(toy_task.make(), metric=lambda outputs, targets: float("inf"), metric_name="perplexity")
    with pytest.raises(InvalidTask, match=r"task 'toy': metric 'perplexity' returned inf on 4 samples of the holdout split; it must"):
        score(task, outputs, targets, "holdout")
    with pytest.raises(InvalidTask, match=r"\(40 of these outputs are not finite themselves\)"):
        score(task, outputs / 0, targets)


def test_a_drop_is_how_much_worse_the_metric_is() -> None:
    task = toy_task.make()
    assert lost(task, 99.0, 97.5) == 1.5
    assert lost(replace(task, higher_is_better=False), 12.0, 12.5) == 0.5


@pytest.mark.parametrize(
    ("unit", "higher", "reference", "floor"),
    [
        ("%", True, 99.0, -1.0),
        ("%", False, 4.0, -4.0),  # an error rate
        ("", False, 12.0, float("-inf")),  # a perplexity
        ("dB", True, 30.0, float("-inf")),
        ("%", True, -3.0, float("-inf")),  # no percentage, whatever its unit says
        ("%", True, 130.0, float("-inf")),
    ],
)
def test_only_a_percentage_has_a_best_value_that_the_gate_may_count_on(unit: str, higher: bool, reference: float, floor: float) -> None:
    assert floor_drop(replace(toy_task.make(), metric_unit=unit, higher_is_better=higher), reference) == floor


def sums(outputs: Tensor, targets: Tensor) -> Tensor:
    return 2 * (outputs.argmax(1) == targets).float()


@pytest.mark.parametrize(
    ("scores", "rule"),
    [
        (lambda outputs, targets: outputs, r"one number a sample, a tensor \(2,\), got torch.Size"),
        (lambda outputs, targets: 3.0, r"one number a sample, a tensor \(2,\), got float"),
        (lambda outputs, targets: outputs.absent, "sample_scores failed on outputs .*AttributeError"),
        (sums, r"average to \S+ where metric 'accuracy' is \d+; leave them out"),
    ],
)
def test_scores_of_samples_that_do_not_average_to_the_metric_are_refused_before_anything_is_spent(scores: object, rule: str) -> None:
    with pytest.raises(InvalidTask, match=rule):
        check(replace(toy_task.make(), sample_scores=scores))


def test_scores_of_samples_that_average_to_the_metric_are_fine() -> None:
    check(replace(toy_task.make(), sample_scores=lambda outputs, targets: 100.0 * (outputs.argmax(1) == targets)))


def test_the_digest_is_the_same_in_another_build_and_follows_weights_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(toy_task.make())
    assert digest(toy_task.make()) == before
    x, y = toy_task.data()[1]
    moved = x.clone()
    moved[3, 0, 4, 4] += 0.5
    flipped = y.clone()
    flipped[0] = (flipped[0] + 1) % 10
    changed = [
        replace(toy_task.make(), search=[(moved, y)]),
        replace(toy_task.make(), holdout=[(moved, y)]),
        replace(toy_task.make(), search=[(x, flipped)]),
        replace(toy_task.make(), metric_name="F1"),
        replace(toy_task.make(), metric_unit="dB"),
        replace(toy_task.make(), higher_is_better=False),
    ]
    task = toy_task.make()
    with torch.no_grad():
        task.model.norm1.running_var[0] += 1e-3
    monkeypatch.setitem(os.environ, "TOY_SEED", "1")
    digests = {before, digest(task), digest(toy_task.make()), *map(digest, changed)}
    assert len(digests) == 9


def test_the_digest_does_not_depend_on_how_a_split_is_cut_into_batches() -> None:
    x, y = toy_task.data()[1]
    assert digest(replace(toy_task.make(), search=[(x[:9], y[:9]), (x[9:], y[9:])])) == digest(toy_task.make())


def test_the_digest_follows_the_weights_of_the_teachers_and_their_names() -> None:
    def taught_by(**teachers: nn.Module) -> str:
        return digest(replace(toy_task.make(), teachers=teachers))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = toy_task.Toy(4), toy_task.Toy(4)
    found = [digest(toy_task.make()), taught_by(a=first), taught_by(b=first), taught_by(a=second), taught_by(a=first, b=second)]
    assert len(set(found)) == 5
    assert taught_by(b=second, a=first) == found[4]
    assert digest(replace(toy_task.make(), teachers={})) == found[0]


# ---- teaching -------------------------------------------------------------------------------------------------------


def modalities() -> Task:
    """Images are compressed; the teacher reads the rows of each as a sequence."""
    x, y = toy_task.data()[0]
    train = [(x[:40], y[:40], x[:40].squeeze(1)), (x[40:60], y[40:60], x[40:60].squeeze(1))]
    return replace(toy_task.make(), train=train, teachers={"rows": Rows()})


class Rows(nn.Module):
    """x (N, 8, 8) -> (N, 10)"""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3
        return self.head(self.lstm(x)[0][:, -1])


def step(model: nn.Module, x: Tensor, y: Tensor, teacher: Tensor | None) -> Tensor:
    loss = F.cross_entropy(model(x), y)
    return loss if teacher is None else loss + F.mse_loss(model(x), teacher)


def plus(**fields: object) -> Task:
    return replace(toy_task.make(), **fields)


def test_a_task_with_all_that_teaches_passes_and_its_model_and_teachers_are_left_alone() -> None:
    teacher = toy_task.Toy(4).train()
    task = plus(
        build_student=lambda width, depth: toy_task.Toy(round(16 * width)),
        teachers={"small": teacher},
        distillation_loss=lambda student, teacher, temperature: F.mse_loss(student, teacher) / temperature,
        training_step=step,
    )
    before, drawn = [fingerprint(model) for model in (task.model, teacher)], states()
    check(task)
    assert [fingerprint(model) for model in (task.model, teacher)] == before
    assert states() == drawn
    check(modalities())


def test_third_tensors_come_through_the_stream_and_are_left_out_elsewhere() -> None:
    task = modalities()
    for x, y, rows in stream(task, 3, seed=0):
        assert torch.equal(x.squeeze(1), rows)
        assert len(x) == len(y)
    x, y = gather(task.train, "train")
    assert (x.shape, y.shape) == ((60, 1, 8, 8), (60,))
    assert calibration(task).shape == (60, 1, 8, 8)


def test_a_teacher_of_other_outputs_is_fine_where_the_task_compares_them_itself() -> None:
    other = plus(teachers={"wide": toy_task.Toy(4), "seven": nn.Sequential(nn.Flatten(), nn.Linear(64, 7))})
    with pytest.raises(InvalidTask, match=r"'seven' must give outputs of the model's shape \(2, 10\), got \(2, 7\)"):
        check(other)
    check(replace(other, distillation_loss=lambda student, teacher, temperature: (student.mean() - teacher.mean()).square()))
    check(replace(other, training_step=step))


BESIDE = {
    "no module": ({"teachers": {"a": print}}, r"teachers: 'a' must be a torch\.nn\.Module, got builtin"),
    "a taken name": ({"teachers": {"model": nn.Flatten()}}, "'model' is the name of the task's own model"),
    "a teacher that fails": (
        {"teachers": {"a": nn.Linear(3, 10)}},
        r"teachers: 'a' fails on inputs \(2, 1, 8, 8\) torch\.float32: Runtime",
    ),
    "another modality": ({"teachers": {"rows": Rows()}}, "teachers: 'rows' fails on inputs .*AssertionError"),
    "other classes": ({"teachers": {"a": nn.Sequential(nn.Flatten(), nn.Linear(64, 9))}}, r"shape \(2, 10\), got \(2, 9\)"),
    "too few rows": (
        {"teachers": {"a": nn.Flatten(0)}, "distillation_loss": lambda student, teacher, temperature: student.mean()},
        r"'a' must give one tensor \(N, \.\.\.\), got \(128,\) for N = 2",
    ),
    "a student that is not built": (
        {"build_student": lambda width, depth: 1 / 0},
        r"build_student\(1\.0, 1\.0\) failed: ZeroDivisionError",
    ),
    "a student that is none": ({"build_student": lambda width, depth: None}, r"build_student\(1\.0, 1\.0\) must be a torch\.nn\.Module"),
    "a student of others": ({"build_student": lambda width, depth: nn.Flatten()}, r"the model's shape \(2, 10\), got \(2, 64\)"),
    "a soft loss that fails": (
        {"distillation_loss": lambda student, teacher: student.mean()},
        "distillation_loss failed on twice the outputs",
    ),
    "a soft loss of many": ({"distillation_loss": lambda student, teacher, temperature: student}, "distillation_loss must be one number"),
    "a step that needs a teacher": (
        {"training_step": lambda model, x, y, teacher: F.mse_loss(model(x), teacher)},
        "training_step failed on inputs .* without a teacher",
    ),
    "a step without a gradient": (
        {"training_step": lambda model, x, y, teacher: model(x).sum().detach()},
        "has no gradient; do not detach",
    ),
}


AROUND: dict[str, tuple[dict[str, object], str]] = {
    "preprocess without samples": ({"preprocess": torch.stack}, "preprocess and raw need each other"),
    "samples without preprocess": ({"raw": [1]}, "preprocess and raw need each other"),
    "no sample": ({"raw": [], "preprocess": torch.stack}, "raw: no sample; .* give one at least"),
    "a preprocess that fails": ({"raw": [1, 2, 3], "preprocess": torch.stack}, "preprocess failed on 2 samples of raw: TypeError"),
    "inputs of another shape": (
        {"raw": [torch.zeros(8, 8)], "preprocess": torch.stack},
        r"must give the model's inputs, torch\.float32 \(1, 1, 8, 8\) for 1 samples, got torch\.float32 \(1, 8, 8\)",
    ),
    "inputs of another type": (
        {"raw": [torch.zeros(1, 8, 8, dtype=torch.uint8)], "preprocess": torch.stack},
        r"must give the model's inputs, .*, got torch\.uint8 \(1, 1, 8, 8\)",
    ),
    "no tensor": ({"raw": [1, 2], "preprocess": list}, "must give the model's inputs, .*, got list"),
    "a postprocess that fails": ({"postprocess": lambda outputs: outputs[5]}, r"postprocess failed on outputs \(2, 10\): IndexError"),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_is_wrong_around_the_model_is_told_in_one_line(case: str) -> None:
    fields, said = AROUND[case]
    with pytest.raises(InvalidTask, match=said) as caught:
        check(plus(**fields))
    assert "\n" not in str(caught.value)


def test_a_task_with_what_goes_around_its_model_passes_and_its_draws_leave_no_trace() -> None:
    def preprocess(samples: Sequence[Tensor]) -> Tensor:
        torch.rand(1)
        return torch.stack(list(samples)).float() / 8 - 1

    raw = [torch.zeros(1, 8, 8, dtype=torch.uint8)] * 3
    task = plus(raw=raw, preprocess=preprocess, postprocess=lambda outputs: outputs.argmax(1))
    drawn = states()
    check(task)
    assert states() == drawn


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_wrong_with_the_teaching_is_told_in_one_line(case: str) -> None:
    fields, said = BESIDE[case]
    with pytest.raises(InvalidTask, match=said) as caught:
        check(plus(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch", "said"), [
    (lambda x, y: (x, y, x, x), r"must be a pair of tensors \(inputs, targets\), got tuple of Tensor, Tensor, Tensor, Tensor"),
    (lambda x, y: (x, y, "rows"), "got tuple of Tensor, Tensor, str"),
    (lambda x, y: (x, y, x[:3]), "batch 0 has 512 inputs and 3 of the teachers; there must be as many"),
])  # fmt: skip
def test_batches_of_another_form_are_refused(batch: Callable[[Tensor, Tensor], tuple[object, ...]], said: str) -> None:
    with pytest.raises(InvalidTask, match=said):
        list(stream(plus(train=[batch(*toy_task.data()[0])]), 1, 0))


def test_the_mode_of_every_module_is_given_back_after_its_outputs_were_taken() -> None:
    model = toy_task.make().model.train()
    model.norm1.eval()
    before = [module.training for module in model.modules()]
    outputs_of(model, toy_task.data()[0][0][:2])
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError):
        outputs_of(model, torch.zeros(2, 3))
    assert [module.training for module in model.modules()] == before
