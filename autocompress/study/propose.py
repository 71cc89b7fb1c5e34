"""Ask and tell: which recipe to try next, given every finished trial. Equal finished trials give equal proposals.

The own search (``sampler: auto``) begins with points that need no trial to be found, the analytic front and the anchors in turn. Then
every proposal is the best of a pool from all sources: the one that is expected to add most to the front. Named samplers of Optuna
propose alone, with no anchors, over the same space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import numpy as np
from numpy.random import Generator

from autocompress.recipe import Recipe
from autocompress.records import TrialResult
from autocompress.study import pareto
from autocompress.study.analytic import analytic_front
from autocompress.study.evolution import anywhere, crossed, drifted, mutated, region_after
from autocompress.study.expectation import Expectation
from autocompress.study.forecast import Floats, Forecast, Points
from autocompress.study.gain import expected_gain
from autocompress.study.points import anchors
from autocompress.study.question import Question
from autocompress.study.realized import realized
from autocompress.study.samplers import Told, ask, remember, seed_for
from autocompress.study.space import middle_index

MAX_DUPLICATES = 20  # of a named sampler in a row: the search is exhausted
OWN_ATTEMPTS = 10  # then at random, so that a sampler that has settled does not call a space exhausted that is not
FIRST = 6  # finished trials before the pool: the analytic front and the anchors in turn, as far as there are so many
MUTATED, DRIFTED, CROSSED, RANDOM = 80, 50, 50, 30  # of the pool
TPE_CELLS = 6000  # told trials x dimensions up to which TPE takes 50 ms; beyond it joins only every fourth pool
WHOLE_SPACE = 400  # points: the pool of a space this small is all of it


@dataclass(frozen=True)
class Proposal:
    """What to try next: ``params`` holds the index of the choice in every sampled dimension.

    ``gain``: hypervolume that it is expected to add; None where nothing was predicted.
    """

    number: int
    params: dict[str, int]
    recipe: Recipe
    source: str
    gain: float | None = None


@dataclass
class Memory:
    """What need not be worked out twice in a study; nothing in it changes a proposal."""

    told: Told = field(default_factory=Told)
    forecast: Forecast | None = None
    first: list[tuple[str, Points]] = field(default_factory=list)
    digests: dict[int, tuple[TrialResult, str]] = field(default_factory=dict)  # of what was realized, by trial number


Candidate = tuple[str, Points]  # where it came from, the point


def propose(question: Question, memory: Memory, results: Sequence[TrialResult], number: int) -> Proposal | None:
    """The next recipe, never one that is finished already, whatever its unused settings. None when the search is exhausted."""
    done = digests_of(memory, results)
    if question.sampler != "auto":
        return from_sampler(question, memory, results, number, done)
    forecast, first = prepared(question, memory)
    rng = np.random.default_rng(seed_for(question.seed, number, 0))
    tried = {tuple(result.params.values()) for result in results if list(result.params) == [dim.name for dim in forecast.dims]}
    untried = [(source, point) for source, point in first if tuple(point.tolist()) not in tried]
    if len(results) < min(FIRST, len(first)):
        found = first_new(question, forecast, untried, done, number)
        if found is not None:
            return found
    pool = [*untried, *pool_of(question, memory, results, number, rng)]
    ranked, gains = rank(question, forecast, results, pool, number)
    return first_new(question, forecast, ranked, done, number, gains)


def digests_of(memory: Memory, results: Sequence[TrialResult]) -> set[str]:
    for result in results:
        known = memory.digests.get(result.number)
        if known is None or known[0] is not result:
            memory.digests[result.number] = result, realized(result.recipe).digest
    return {memory.digests[result.number][1] for result in results}


def from_sampler(question: Question, memory: Memory, results: Sequence[TrialResult], number: int, done: set[str]) -> Proposal | None:
    study = remember(memory.told, question, results)
    for attempt in range(MAX_DUPLICATES):
        name = question.sampler if attempt < OWN_ATTEMPTS else "random"
        params = ask(study, question, number, attempt, name)
        recipe = question.recipe_at(params)
        if realized(recipe).digest not in done:
            return Proposal(number, params, recipe, name)
    return None


def prepared(question: Question, memory: Memory) -> tuple[Forecast, list[Candidate]]:
    """The forecast, and the points that need no trial: those of another study, then the analytic front and the anchors in turn."""
    if memory.forecast is None:
        memory.forecast = forecast = Forecast(question)
        settings = np.array([middle_index(dim.choices) for dim in forecast.dims], dtype=np.int64)
        analytic: list[Points] = []
        if "analytic" in question.parts:
            analytic = [*spread(analytic_front(forecast, question.min_speedup, settings))]
        uniform = [forecast.point(params) for params in anchors(question.dimensions)]
        starts = [("transfer", forecast.point(params)) for params in question.start]
        pairs = zip_longest((("analytic", one) for one in analytic), (("anchor", one) for one in uniform))
        memory.first = [*starts, *(one for one in chain.from_iterable(pairs) if one is not None)]
    return memory.forecast, memory.first


def spread(points: Sequence[Points]) -> Iterator[Points]:
    """In an order that is spread over the front from the start: the middle, the ends, then what halves the gaps."""
    count = len(points)
    order = [count // 2, 0, count // 4, 3 * count // 4, count - 1, *range(count)]
    yield from (points[place] for place in dict.fromkeys(order) if place < count)


def given_point(forecast: Forecast) -> Points:
    """The point that changes least: no harm by any choice, settings in the middle."""
    each = zip(forecast.dims, forecast.harms, strict=True)
    return np.array([int(np.argmin(harm)) if harm.any() else middle_index(dim.choices) for dim, harm in each], dtype=np.int64)


def pool_of(question: Question, memory: Memory, results: Sequence[TrialResult], number: int, rng: Generator) -> list[Candidate]:
    """Candidates by all sources; in a space of a few hundred points all of them."""
    forecast, first = prepared(question, memory)
    if forecast.sizes.astype(float).prod() <= WHOLE_SPACE:
        points = np.stack(np.unravel_index(rng.permutation(int(forecast.sizes.prod())), tuple(forecast.sizes)), axis=1)
        return [("random", point) for point in points]
    parents = parents_of(question, forecast, results) or [point for _, point in first] or [given_point(forecast)]
    others = [*parents, *(point for _, point in first)]
    region = region_after(len(results), question.horizon)
    pools = {
        "mutation": mutated(parents, forecast.sizes, region, MUTATED, rng),
        "drift": drifted(parents, forecast.sizes, forecast.harms, DRIFTED, rng),
        "crossover": crossed(others, CROSSED, rng),
        "random": anywhere(forecast.sizes, RANDOM, rng),
    }
    found = [(source, point) for source, points in pools.items() for point in points]
    if len(results) * len(forecast.dims) <= TPE_CELLS or number % 4 == 0:
        study = remember(memory.told, question, results)
        found.append(("tpe", forecast.point(ask(study, question, number, 0, "tpe"))))
    return found


def parents_of(question: Question, forecast: Forecast, results: Sequence[TrialResult]) -> list[Points]:
    """Points of the front within max_drop and the constraints; of the trial nearest to the bounds where there is none."""
    told = [result for result in results if question.holds(result.params)]
    inside = [one for one in pareto.within(told, question.constraints) if one.measurement and one.measurement.drop <= question.max_drop]
    found = pareto.front(inside, question.objectives)
    if not found:
        near = pareto.nearest(told, pareto.Bounds(question.max_drop, question.min_speedup, question.constraints))
        found = [near] if near is not None else []
    return [forecast.point(one.params) for one in found]


def rank(
    question: Question, forecast: Forecast, results: Sequence[TrialResult], pool: Sequence[Candidate], number: int
) -> tuple[list[Candidate], Floats | None]:
    """Candidates from the one that is expected to add most; without the accuracy model a source's turn comes with the trial's number."""
    if "accuracy_model" not in question.parts or not pool:
        names = sorted({source for source, _ in pool})
        turn = {name: (place - number) % len(names) for place, name in enumerate(names)}
        return sorted(pool, key=lambda one: turn[one[0]]), None
    expected = Expectation(forecast, results, given_point(forecast)).at(np.array([point for _, point in pool]))
    front = pareto.points(pareto.within(results, question.constraints))
    gains = expected_gain(front, expected, question.max_drop, question.min_speedup)
    certain = np.exp(expected.log_speed) * 1e-9  # where nothing is expected of any, the faster one
    order = np.argsort(-(gains + certain), kind="stable")
    return [pool[place] for place in order], gains[order]


def first_new(
    question: Question, forecast: Forecast, ranked: Sequence[Candidate], done: set[str], number: int, gains: Floats | None = None
) -> Proposal | None:
    """The first candidate whose recipe is not finished yet."""
    seen: set[bytes] = set()
    for place, (source, point) in enumerate(ranked):
        if point.tobytes() in seen:
            continue
        seen.add(point.tobytes())
        params = forecast.params(point)
        recipe = question.recipe_at(params)
        if realized(recipe).digest not in done:
            return Proposal(number, params, recipe, source, None if gains is None else float(gains[place]))
    return None
