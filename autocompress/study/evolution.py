"""New points from good ones: mutation in ordinal steps and crossover by dimension, within a trust region that tightens as trials go."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from autocompress.study.forecast import Floats, Points

WIDE, NARROW = 0.5, 1  # reach of a step: at first half of a ladder, in the end its next choice
MANY = 0.35  # of the dimensions change at first; in the end one or two
USUAL_HORIZON = 60  # trials, where the budget is one of time


class Region(NamedTuple):
    """The trust region: how far a step goes, as a share of a ladder (one choice at least), and the share of dimensions that take one."""

    reach: float
    rate: float


def region_after(trials: int, horizon: int | None) -> Region:
    """From coarse to fine, halving both every fifth of the horizon."""
    shrunk = 0.5 ** (5 * trials / max(horizon or USUAL_HORIZON, 20))
    return Region(WIDE * shrunk, MANY * shrunk)


def mutated(parents: Sequence[Points], sizes: Points, region: Region, count: int, rng: Generator) -> Points:
    """``count`` points, each a parent with some of its choices moved by up to ``reach`` of their ladder."""
    places = rng.integers(len(parents), size=count)
    points = np.array(parents)[places]
    moves = rng.random(points.shape) < max(region.rate, 1.5 / len(sizes))
    moves[np.arange(count), rng.integers(len(sizes), size=count)] = True  # every child differs
    reach = np.maximum(np.rint(region.reach * (sizes - 1)), NARROW)
    steps = rng.integers(1, reach.astype(np.int64) + 1, size=points.shape) * rng.choice([-1, 1], size=points.shape)
    moved = points + moves * steps
    over = (moved < 0) | (moved > sizes - 1)  # a step out of the ladder goes the other way
    return np.asarray(np.clip(np.where(over, points - moves * steps, moved), 0, sizes - 1))


def drifted(parents: Sequence[Points], sizes: Points, harder: Sequence[Floats], count: int, rng: Generator) -> Points:
    """``count`` points, each a parent moved one choice in the same direction in several dimensions: all of them harder, or milder.

    ``harder``: harm of each choice by dimension. A front is walked along this way, which single steps do only slowly.
    """
    points = np.array(parents)[rng.integers(len(parents), size=count)]
    signs = np.array([np.sign(harm[-1] - harm[0]) for harm in harder])
    moves = (rng.random(points.shape) < rng.uniform(0.1, 1.0, size=(count, 1))) * signs * rng.choice([-1, 1], size=(count, 1))
    return np.asarray(np.clip(points + moves.astype(np.int64), 0, sizes - 1))


def crossed(parents: Sequence[Points], count: int, rng: Generator) -> Points:
    """``count`` points that take each choice from one of two parents, mostly from the first or about half from each."""
    pool = np.array(parents)
    first, second = rng.integers(len(pool), size=count), rng.integers(len(pool), size=count)
    share = rng.choice([0.2, 0.5], size=(count, 1))
    return np.where(rng.random((count, pool.shape[1])) < share, pool[second], pool[first])


def anywhere(sizes: Points, count: int, rng: Generator) -> Points:
    return rng.integers(0, sizes, size=(count, len(sizes)))
