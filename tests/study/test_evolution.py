"""New points from good ones: inside the space, near their parents, and nearer as trials go."""

import numpy as np

from autocompress.study.evolution import anywhere, crossed, drifted, mutated, region_after

SIZES = np.array([2, 6, 3, 4, 6, 2, 5, 5])
PARENTS = [np.array([0, 3, 1, 2, 5, 1, 0, 4]), np.array([1, 0, 2, 0, 2, 0, 3, 1])]


def test_every_new_point_lies_in_the_space_and_differs_from_its_parents() -> None:
    rng = np.random.default_rng(0)
    for trials in (0, 20, 500):
        children = mutated(PARENTS, SIZES, region_after(trials, 50), 200, rng)
        assert children.shape == (200, 8)
        assert ((children >= 0) & (children < SIZES)).all()
        assert not any((child == parent).all() for child in children for parent in PARENTS)
    for points in (anywhere(SIZES, 100, rng), drifted(PARENTS, SIZES, [np.arange(size, 0.0, -1) for size in SIZES], 100, rng)):
        assert ((points >= 0) & (points < SIZES)).all()


def test_the_trust_region_tightens_as_trials_go_to_single_steps_in_one_or_two_dimensions() -> None:
    def change(trials: int) -> tuple[float, int]:
        moves = np.abs(mutated(PARENTS[:1], SIZES, region_after(trials, 50), 400, np.random.default_rng(0)) - PARENTS[0])
        return float((moves > 0).sum(1).mean()), int(moves.max())

    (many, far), (fewer, nearer), (few, near) = change(0), change(15), change(50)
    assert many > fewer >= few
    assert far > 1 == near
    assert far >= nearer >= near
    assert few < 3


def test_a_child_of_two_takes_every_choice_from_one_of_them() -> None:
    children = crossed(PARENTS, 100, np.random.default_rng(0))
    assert ((children == PARENTS[0]) | (children == PARENTS[1])).all()
    assert len(np.unique(children, axis=0)) > 10


def test_a_drift_goes_one_way_in_all_that_moves() -> None:
    harms = [np.arange(size, 0.0, -1) for size in SIZES[:-1]] + [np.zeros(SIZES[-1])]
    moves = drifted(PARENTS[:1], SIZES, harms, 100, np.random.default_rng(0)) - PARENTS[0]
    assert ((moves >= 0).all(1) | (moves <= 0).all(1)).all()
    assert (moves[:, -1] == 0).all()  # nothing is harder there
