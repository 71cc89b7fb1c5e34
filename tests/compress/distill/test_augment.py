"""Augmentation does what its paper says, repeats by seed, and refuses what it cannot change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from autocompress.compress.distill.augment import (
    ANGLE,
    BRIGHTNESS,
    CONTRAST,
    HOLE,
    OPERATIONS,
    SHIFT,
    _moved,
    _recoloured,
    _with_hole,
    augmented,
    cutmix,
    mixup,
    randaugment,
)
from autocompress.errors import InfeasibleRecipe
from tests.small_models import inputs

SEEDS = st.integers(0, 2**31)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Samples that are the constant of their number; targets are the numbers too."""
    numbers = torch.arange(count)
    return numbers.float().view(-1, *[1] * len(shape)).expand(count, *shape).contiguous(), numbers


@settings(max_examples=30)
@given(seed=SEEDS)
def test_mixup_is_the_convex_combination_of_two_samples_in_the_shares_of_their_targets(seed: int) -> None:
    x, y = inputs(7, 3, 4, seed=1), torch.arange(7)
    found, mixed = mixup(x, y, random(seed))
    assert 0 <= mixed.share <= 1
    torch.testing.assert_close(found, mixed.share * x + (1 - mixed.share) * x[mixed.targets])


@settings(max_examples=60)
@given(seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 9))
def test_cutmix_pastes_one_box_of_another_sample_and_the_share_is_what_remains(seed: int, height: int, width: int) -> None:
    x, y = numbered(5, 2, height, width)
    found, mixed = cutmix(x, y, random(seed))
    assert torch.equal(x, numbered(5, 2, height, width)[0])  # the given tensor is not written into
    for number in range(5):
        pasted = found[number, 0] != number
        assert torch.equal(found[number, 0], found[number, 1])
        if mixed.targets[number] == number:
            assert not pasted.any()
            continue
        assert (found[number, 0][pasted] == mixed.targets[number]).all()
        assert float(pasted.float().mean()) == pytest.approx(1 - mixed.share, abs=1e-6)
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns)  # a box
        for side in (rows, columns):
            places = side.nonzero().flatten().tolist()
            assert not places or places == list(range(places[0], places[-1] + 1))


def test_the_share_of_mixup_is_uniform_and_the_boxes_of_cutmix_follow_the_paper() -> None:
    x, y = torch.zeros(2, 1, 32, 32), torch.zeros(2)
    generator = random()
    shares = torch.tensor([mixup(x, y, generator)[1].share for _ in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / 12, abs=0.01)
    kept = torch.tensor([cutmix(x, y, generator)[1].share for _ in range(2000)])
    # A side s = sqrt(1 - u) around a uniform centre is clipped to s - s^2 / 4 on average; E[(s - s^2 / 4)^2] with E[s^n] = 2 / (n + 2).
    assert 1 - kept.mean().item() == pytest.approx(2 / 4 - 2 * (2 / 5) / 4 + (2 / 6) / 16, abs=0.02)


@settings(max_examples=30)
@given(seed=SEEDS, channels=st.sampled_from([1, 3]), width=st.integers(2, 9))
def test_randaugment_keeps_shape_and_type_and_finite_numbers_and_repeats_by_seed(seed: int, channels: int, width: int) -> None:
    x = inputs(5, channels, 8, width)
    found = randaugment(x, random(seed))
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert torch.isfinite(found).all()
    assert torch.equal(found, randaugment(x, random(seed)))
    assert torch.equal(x, inputs(5, channels, 8, width))


def test_randaugment_changes_nearly_every_sample_and_not_all_alike() -> None:
    x = inputs(1, 1, 8, 8).expand(64, 1, 8, 8)
    found = randaugment(x, random())
    assert sum(not torch.allclose(one, x[0], atol=1e-5) for one in found) >= 60
    assert len({tuple(one.flatten().tolist()) for one in found}) > 30


def amounts(count: int, **chosen: float) -> dict[str, Tensor]:
    return {name: torch.full((count,), chosen.get(name, 0.0)) for name in OPERATIONS}


def test_operations_that_were_not_drawn_change_nothing() -> None:
    x, none = inputs(3, 2, 6, 8), amounts(3)
    torch.testing.assert_close(_moved(x, none), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(_recoloured(x, none), x, atol=1e-6, rtol=0)
    assert torch.equal(_with_hole(x, torch.zeros(3, dtype=torch.bool), random()), x)


def test_a_shift_moves_by_a_share_of_the_width_and_a_rotation_keeps_lengths_on_images_that_are_no_squares() -> None:
    x = torch.arange(20.0).view(1, 1, 1, 20).expand(1, 1, 10, 20)
    torch.testing.assert_close(_moved(x, amounts(1, shift_x=1.0))[0, 0, 0, :18], torch.arange(20.0)[:18] + SHIFT * 20)
    rows, columns = torch.meshgrid(torch.arange(20.0) - 9.5, torch.arange(40.0) - 19.5, indexing="ij")
    turned = _moved(torch.stack([rows, columns])[None], amounts(1, rotate=1.0))[0, :, 5:15, 10:30]  # of a ramp, where it came from
    own = torch.stack([rows, columns])[:, 5:15, 10:30]
    torch.testing.assert_close(turned.norm(dim=0), own.norm(dim=0), atol=1e-3, rtol=0)
    cosine = (turned * own).sum(0) / own.square().sum(0)
    torch.testing.assert_close(cosine, torch.full_like(cosine, torch.cos(torch.tensor(ANGLE)).item()), atol=1e-4, rtol=0)


def test_brightness_moves_the_mean_by_deviations_and_contrast_stretches_around_it() -> None:
    x = inputs(4, 3, 8, 8)
    mean, deviation = x.mean((1, 2, 3)), x.std((1, 2, 3), correction=0)
    brighter, squeezed = _recoloured(x, amounts(4, brightness=1.0)), _recoloured(x, amounts(4, contrast=-1.0))
    torch.testing.assert_close(brighter.mean((1, 2, 3)), mean + BRIGHTNESS * deviation)
    torch.testing.assert_close(brighter.std((1, 2, 3), correction=0), deviation)
    torch.testing.assert_close(squeezed.mean((1, 2, 3)), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(squeezed.std((1, 2, 3), correction=0), (1 - CONTRAST) * deviation)


def test_a_hole_is_a_box_of_the_mean_no_larger_than_its_share() -> None:
    x = inputs(32, 2, 10, 10)
    found = _with_hole(x, torch.arange(32) % 2 == 0, random())
    assert torch.equal(found[1::2], x[1::2])
    for one, given_x in zip(found[::2], x[::2], strict=True):
        hole = (one != given_x).all(0)
        assert 1 <= hole.sum() <= (HOLE * 10 + 1) ** 2
        assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0))
        torch.testing.assert_close(one[:, hole], given_x.mean((1, 2))[:, None].expand(2, int(hole.sum())))


def test_mixup_of_sequences_is_fine_and_nothing_is_nothing() -> None:
    x, y = inputs(4, 5, 3), torch.arange(4)
    assert augmented("mixup", x, y, random())[0].shape == (4, 5, 3)
    assert augmented("none", x, y, random()) == (x, None)


def test_channels_last_images_give_the_same_result() -> None:
    x, y = inputs(4, 3, 8, 8), torch.arange(4)
    for kind in ("mixup", "cutmix", "randaugment"):
        plain, other = (augmented(kind, one, y, random())[0] for one in (x, x.to(memory_format=torch.channels_last)))
        torch.testing.assert_close(plain, other)


@pytest.mark.parametrize(("kind", "x", "y", "said"), [
    ("cutmix", inputs(4, 5, 3), torch.arange(4), r"cutmix is for images \(N, C, H, W\); inputs are torch.float32 \(4, 5, 3\)"),
    ("randaugment", inputs(4, 5), torch.arange(4), "randaugment is for images"),
    ("mixup", torch.zeros(4, 5, dtype=torch.int64), torch.arange(4), "mixup computes with floats; inputs are torch.int64"),
    ("randaugment", inputs(4, 3, 8, 8), torch.zeros(4, 8, 8), r"moves pixels, and targets with places would stay; .*targets \(4, 8, 8\)"),
])  # fmt: skip
def test_inputs_that_an_augmentation_cannot_change_are_refused_with_the_reason(kind: str, x: Tensor, y: Tensor, said: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=said) as caught:
        augmented(kind, x, y, random())
    assert "\n" not in str(caught.value)


def test_mixed_targets_are_those_of_the_partner() -> None:
    x, y = numbered(6, 1, 4, 4)
    found, mixed = augmented("mixup", x, y, random(3))
    assert mixed is not None
    one_hot = mixed.share * F.one_hot(y, 6) + (1 - mixed.share) * F.one_hot(mixed.targets, 6)
    torch.testing.assert_close(found[:, 0, 0, 0], one_hot @ torch.arange(6.0))
