"""Parts of the samples: disjoint, together everything, by seed, with every class in train."""

import pytest
import torch

from autocompress.errors import InvalidTask
from autocompress.tasks.splits import shuffled, stratified

LABELS = torch.tensor([0] * 700 + [1] * 200 + [2] * 99 + [3])[torch.randperm(1000, generator=torch.Generator().manual_seed(3))]


def test_parts_are_disjoint_and_together_all_samples() -> None:
    for parts in (stratified(LABELS, (0.7, 0.15, 0.15)), shuffled(1000, (0.7, 0.15, 0.15))):
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
        assert [len(part) for part in parts] == pytest.approx([700, 150, 150], abs=3)


def test_every_class_has_its_share_of_every_part_and_the_rarest_is_in_train() -> None:
    counts = torch.stack([torch.bincount(LABELS[part], minlength=4) for part in stratified(LABELS, (0.7, 0.15, 0.15))])
    assert counts[:, :3].sum(0).tolist() == [700, 200, 99]
    assert (counts[0, :3].double() / counts[:, :3].sum(0) - 0.7).abs().max() < 0.03
    assert counts[:, 3].tolist() == [1, 0, 0]


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    first, other = stratified(LABELS, (0.5, 0.5), seed=1), stratified(LABELS, (0.5, 0.5), seed=2)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, stratified(LABELS, (0.5, 0.5), seed=1), strict=True))
    assert not torch.equal(first[0], other[0])


def test_too_few_samples_are_told() -> None:
    with pytest.raises(InvalidTask, match=r"2 samples are too few to split: the parts \(train first\) would have 2, 0, 0"):
        stratified(torch.tensor([0, 1]), (0.7, 0.15, 0.15))
    with pytest.raises(InvalidTask, match="1 samples are too few to split"):
        shuffled(1, (0.7, 0.15, 0.15))
