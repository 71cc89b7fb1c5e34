"""Images stay bytes in memory; what the model reads is standardised by train, and moved in training only."""

import pytest
import torch

from autocompress.errors import InvalidTask
from autocompress.tasks.batches import seeded
from autocompress.tasks.images import Images, Look, halves, moved, split_images, standardised

X = torch.randint(0, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


def test_the_look_of_images_is_their_mean_and_deviation_by_channel() -> None:
    x = standardised(Look.of(X), X)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_look_that_was_asked_for_is_taken() -> None:
    x = standardised(Look.of(X, "0.5,0.25,0", "0.5,1,1"), X)
    torch.testing.assert_close(x[:, 0], (X[:, 0] / 255 - 0.5) / 0.5)
    torch.testing.assert_close(x[:, 1], X[:, 1] / 255 - 0.25)


@pytest.mark.parametrize("text", ["0.5", "a,b,c", "0.5,0.5,2", "nan,0,0"])
def test_a_mean_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidTask, match="--option mean: must be 3 numbers from 0 to 1 with commas, one a channel"):
        Look.of(X, text)


def test_images_of_one_colour_have_no_deviation_and_are_refused() -> None:
    with pytest.raises(InvalidTask, match="std must be above 0 in every channel"):
        Look.of(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))


def test_moved_images_are_the_same_pixels_elsewhere_and_a_reach_of_nothing_changes_nothing() -> None:
    look = Look.of(X)
    assert torch.equal(moved(look, 0, False, X), standardised(look, X))
    with seeded(0):
        mirrored = moved(look, 0, True, X)
    both = [(mirrored[i].equal(standardised(look, X)[i]), mirrored[i].equal(standardised(look, X.flip(3))[i])) for i in range(40)]
    assert all(plain or turned for plain, turned in both)
    assert 5 < sum(plain for plain, _ in both) < 35
    with seeded(0):
        shifted = moved(look, 1, False, X)
    inner = shifted[:, :, 1:-1, 1:-1]
    places = [standardised(look, X)[:, :, r : r + 4, c : c + 4] for r in range(3) for c in range(3)]
    assert all(any(torch.equal(inner[i], place[i]) for place in places) for i in range(40))


def test_halves_have_as_many_of_each_class() -> None:
    first, second = halves(Y, 0)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(40))
    assert torch.bincount(Y[first]).tolist() == torch.bincount(Y[second]).tolist() == [5] * 4


@pytest.mark.parametrize(("asked", "weights", "halved"), [("", "", False), ("", "w.pt", True), ("no", "w.pt", False), ("yes", "", True)])
def test_with_weights_that_saw_all_training_images_search_and_holdout_are_halves_of_the_test_images(
    asked: str, weights: str, halved: bool
) -> None:
    splits = split_images(Images(X, Y), Images(X[:20], Y[:20]), asked, weights, 0.1)
    sizes = [len(one.y) for one in (splits.train, splits.search, splits.holdout)]
    assert sizes == ([40, 10, 10] if halved else [36, 4, 20])
    assert bool(splits.notes) == halved
