"""The embedded task: real scans, fixed disjoint splits, a baseline that is good and trained once."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from autocompress.measure.machine import this_machine
from autocompress.progress import Progress
from autocompress.runtimes import find_runtime
from autocompress.survey import survey
from autocompress.tasks import digits as room
from autocompress.tasks.digits import DigitsNet, Residual, build_student, jitter, splits
from autocompress.tasks.find import find_task
from autocompress.tasks.task import check, digest, gather, outputs_of, score, seeded


def test_the_splits_are_disjoint_and_together_all_scans() -> None:
    parts = splits()
    assert [len(x) for x, _ in parts] == [997, 400, 400]
    scale = (torch.tensor(load_digits().images).float() / 16).flatten(1)
    train = scale[torch.randperm(len(scale), generator=torch.Generator().manual_seed(0))[:997]]
    restored = torch.cat([x for x, _ in parts]).flatten(1) * train.std() + train.mean()
    assert sorted(map(tuple, (16 * restored).round().int().tolist())) == sorted(map(tuple, (16 * scale).round().int().tolist()))


def test_the_splits_are_fixed() -> None:
    first, second = splits(), splits()
    torch.manual_seed(7)
    third = splits()
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[0], three[0])
        assert torch.equal(one[1], three[1])
    assert [y[:8].tolist() for _, y in first] == FIRST_LABELS


FIRST_LABELS = [[6, 5, 5, 7, 9, 9, 8, 4], [4, 5, 3, 9, 9, 9, 1, 0], [5, 5, 6, 0, 6, 0, 3, 4]]


def test_inputs_are_standardised_with_the_statistics_of_train_only() -> None:
    train, search, _ = splits()
    assert train[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert train[0].std().item() == pytest.approx(1, abs=1e-5)
    assert abs(search[0].mean().item()) > 1e-4


def test_the_network_is_heavy_enough_for_compression_to_show_and_most_of_it_may_change() -> None:
    layers = survey(DigitsNet().eval(), splits()[0][0][:1], find_runtime("onnxruntime"), this_machine())
    total = sum(layer.macs for layer in layers)
    assert 10e6 <= total <= 30e6
    assert sum(layer.macs for layer in layers if layer.group is not None and 7 in layer.weight_bits) > 0.99 * total


@pytest.mark.parametrize(("width", "depth", "channels", "blocks"), [(1, 1, 80, 4), (0.3, 1, 24, 4), (0.5, 0.5, 40, 2), (0.01, 0.1, 8, 2)])
def test_a_student_is_of_the_same_family_at_another_width_and_depth(width: float, depth: float, channels: int, blocks: int) -> None:
    student = build_student(width, depth).eval()
    assert student.stem[0].out_channels == channels
    assert sum(isinstance(module, Residual) for module in student.modules()) == blocks
    assert student(splits()[0][0][:2]).shape == (2, 10)


def test_jitter_moves_pixels_and_keeps_the_shape_by_seed() -> None:
    x = splits()[0][0][:16]
    with seeded(1):
        first = jitter(x)
    with seeded(1):
        second = jitter(x)
    assert first.shape == x.shape
    assert torch.equal(first, second)
    assert not torch.equal(first, x)


def test_a_cached_baseline_is_read_back_and_other_code_makes_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    monkeypatch.setattr(room, "train_baseline_", lambda model, batches, progress: trained.append(1))
    tasks = [find_task("digits", tmp_path, Progress(quiet=True)) for _ in range(2)]
    assert trained == [1]
    assert digest(tasks[0]) == digest(tasks[1])
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    monkeypatch.setattr(torch, "__version__", "0")
    find_task("digits", tmp_path, Progress(quiet=True))
    assert trained == [1, 1]


def test_the_baseline_is_right_on_985_of_1000_scans_that_it_never_saw(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trains it for real: half a minute to a minute."""
    progress = Progress(quiet=True)
    task = find_task("digits", tmp_path_factory.mktemp("cache"), progress)
    check(task)
    assert progress.seconds["training the baseline"] > 0
    assert not task.model.training
    x, y = gather(task.holdout or (), "holdout")
    assert len(x) == 400
    assert score(task, outputs_of(task.model, x), y) >= 98.5
