"""What a study asks, the same from proposal to proposal: dimensions, bounds, objectives, and what the survey found."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection

from autocompress.bounds import OBJECTIVES, Constraint
from autocompress.config import PARTS, Part, Sampler, SearchConfig, Space
from autocompress.recipe import Recipe
from autocompress.records import LayerInfo, Survey
from autocompress.study.points import Params, recipe_of
from autocompress.study.space import Dimension, dimensions, sampled


@dataclass(frozen=True)
class Question:
    """``start``: points of another study's front in this space, tried early. ``horizon``: trials by which steps should be small."""

    dimensions: tuple[Dimension, ...]
    space: Space
    layers: tuple[LayerInfo, ...]
    seed: int
    max_drop: float
    min_speedup: float
    constraints: tuple[Constraint, ...] = ()
    survey: Survey | None = None
    sampler: Sampler = "auto"
    parts: tuple[Part, ...] = PARTS
    horizon: int | None = None
    start: tuple[dict[str, int], ...] = ()

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.space.objectives

    @property
    def directions(self) -> tuple[StudyDirection, ...]:
        return tuple(StudyDirection[OBJECTIVES[name].upper()] for name in self.objectives)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many choices each sampled dimension has."""
        return {dim.name: len(dim.choices) for dim in sampled(self.dimensions)}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Every dimension as an ordered index, so that a sampler knows which choices are neighbours."""
        return {name: IntDistribution(0, size - 1) for name, size in self.sizes.items()}

    def recipe_at(self, params: Params) -> Recipe:
        return recipe_of(params, self.dimensions, self.space, self.layers, self.seed)

    def holds(self, params: Params) -> bool:
        """Is it a point of this space?"""
        return params.keys() == self.sizes.keys() and all(0 <= params[name] < size for name, size in self.sizes.items())


def question_of(
    config: SearchConfig, layers: Sequence[LayerInfo], survey: Survey | None = None, start: Sequence[dict[str, int]] = ()
) -> Question:
    """Raises InvalidSpace where the space does not fit the layers."""
    return Question(
        dimensions=dimensions(config.space, layers),
        space=config.space,
        layers=tuple(layers),
        seed=config.seed,
        max_drop=config.max_drop,
        min_speedup=config.min_speedup,
        constraints=config.limits,
        survey=survey if "survey" in config.parts else None,
        sampler=config.sampler,
        parts=config.parts,
        horizon=config.budget.trials,
        start=tuple(start),
    )
