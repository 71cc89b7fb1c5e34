"""Ask and tell: which recipe to try next, given every finished trial. Equal finished trials give equal proposals.

The own search (``sampler: auto``) begins with points that need no trial to be found, the analytic front and the anchors in turn. Then
every proposal is the best of a pool from all sources: the one that is expected to add most to the front. Named samplers of Optuna
propose alone, with no anchors, over the same space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from autocompress.recipe import Recipe
from autocompress.records import TrialResult
from autocompress.study import pareto
from autocompress.study.analytic import analytic_front
from autocompress.study.evolution import anywhere, crossed, drifted, mutated, region_after
from autocompress.study.expectation import Expectation, Seen
from autocompress.study.forecast import Floats, Forecast, Points
from autocompress.study.gain import expected_gain
from autocompress.study.points import starts
from autocompress.study.question import Question
from autocompress.study.realized import realized
from autocompress.study.samplers import Told, ask, remember, seed_for
from autocompress.study.space import middle_index

MAX_DUPLICATES = 20  # of a named sampler in a row: the search is exhausted
OWN_ATTEMPTS = 10  # then at random, so that a sampler that has settled does not call a space exhausted that is not
FIRST = 6  # finished trials before the pool: the analytic front and the anchors in turn, as far as there are so many
MUTATED, DRIFTED, CROSSED, RANDOM = 80, 50, 50, 30  # of the pool
TPE_CELLS = 6000  # told trials x dimensions up to which TPE takes 50 ms; beyond it joins only every tenth pool
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
    seen: dict[int, "Finished"] = field(default_factory=dict)  # by trial number


class Finished(NamedTuple):
    """A finished trial, the digest of what was realized of it, and its point, None where it is not of this space."""

    result: TrialResult
    digest: str
    point: Points | None


Candidate = tuple[str, Points]  # where it came from, the point


def propose(question: Question, memory: Memory, results: Sequence[TrialResult], number: int) -> Proposal | None:
    """The next recipe, never one that is finished already, whatever its unused settings. None when the search is exhausted."""
    if question.sampler != "auto":
        return from_sampler(question, memory, results, number)
    forecast, first = prepared(question, memory)
    finished = look_at(question, memory, results)
    done = {one.digest for one in finished}
    told = [(one.result, one.point) for one in finished if one.point is not None]
    rng = np.random.default_rng(seed_for(question.seed, number, 0))
    tried = {point.tobytes() for _, point in told}
    untried = [(source, point) for source, point in first if point.tobytes() not in tried]
    if len(results) < min(FIRST, len(first)):
        found = first_new(question, forecast, untried, done, number)
        if found is not None:
            return found
    pool = [*untried, *pool_of(question, memory, told, rng)]
    if wants_tpe(len(results) * len(forecast.dims), number):
        study = remember(memory.told, question, results)
        pool.append(("tpe", forecast.point(ask(study, question, number, 0, "tpe"))))
    ranked, gains = rank(question, forecast, told, pool, number)
    return first_new(question, forecast, ranked, done, number, gains)


def look_at(question: Question, memory: Memory, results: Sequence[TrialResult]) -> list[Finished]:
    """The finished trials by number, each looked at once a study."""
    for result in results:
        known = memory.seen.get(result.number)
        if known is None or known.result is not result:
            point = np.array([result.params[name] for name in question.sizes]) if question.holds(result.params) else None
            memory.seen[result.number] = Finished(result, realized(result.recipe).digest, point)
    return [memory.seen[number] for number in sorted(result.number for result in results)]


def wants_tpe(cells: int, number: int) -> bool:
    return cells <= TPE_CELLS or number % 10 == 0


def from_sampler(question: Question, memory: Memory, results: Sequence[TrialResult], number: int) -> Proposal | None:
    done = {one.digest for one in look_at(question, memory, results)}
    told = Told() if question.sampler.startswith("nsga") else memory.told  # NSGA's parents, once kept, come back in another order
    study = remember(told, question, results)
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
        uniform = [forecast.point(params) for params in starts(question.dimensions, question.space.near)]
        given = [("transfer", forecast.point(params)) for params in question.start]
        given += [("anchor", uniform.pop(0))] if question.space.near else []  # the trial that is refined comes before all others
        pairs = zip_longest((("analytic", one) for one in analytic), (("anchor", one) for one in uniform))
        memory.first = [*given, *(one for one in chain.from_iterable(pairs) if one is not None)]
    return memory.forecast, memory.first


def spread(points: Sequence[Points]) -> Iterator[Points]:
    """In an order that is spread over the front from the start: the middle, the ends, then what halves the gaps."""
    count = len(points)
    order = [count // 2, 0, count // 4, 3 * count // 4, count - 1, *range(count)]
    yield from (points[place] for place in dict.fromkeys(order) if 0 <= place < count)


def given_point(forecast: Forecast) -> Points:
    """The point that changes least: no harm by any choice, settings in the middle."""
    each = zip(forecast.dims, forecast.harms, strict=True)
    return np.array([int(np.argmin(harm)) if harm.any() else middle_index(dim.choices) for dim, harm in each], dtype=np.int64)


def pool_of(question: Question, memory: Memory, told: Sequence[Seen], rng: Generator) -> list[Candidate]:
    """Candidates by our own sources; in a space of a few hundred points all of them."""
    forecast, first = prepared(question, memory)
    if forecast.sizes.astype(float).prod() <= WHOLE_SPACE:
        points = np.stack(np.unravel_index(rng.permutation(int(forecast.sizes.prod())), tuple(forecast.sizes)), axis=1)
        return [("random", point) for point in points]
    parents = parents_of(question, told) or [point for _, point in first] or [given_point(forecast)]
    others = [*parents, *(point for _, point in first)]
    region = region_after(len(told), question.horizon)
    pools = {
        "mutation": mutated(parents, forecast.sizes, region, MUTATED, rng),
        "drift": drifted(parents, forecast.sizes, forecast.harms, DRIFTED, rng),
        "crossover": crossed(others, CROSSED, rng),
        "random": anywhere(forecast.sizes, RANDOM, rng),
    }
    return [(source, point) for source, points in pools.items() for point in points]


def parents_of(question: Question, told: Sequence[Seen]) -> list[Points]:
    """Points of the front within max_drop and the constraints; of the trial nearest to the bounds where there is none."""
    points, results = {result.number: point for result, point in told}, [result for result, _ in told]
    inside = [one for one in pareto.within(results, question.constraints) if one.measurement and one.measurement.drop <= question.max_drop]
    found = pareto.front(inside, question.objectives)
    if not found:
        near = pareto.nearest(results, pareto.Bounds(question.max_drop, question.min_speedup, question.constraints))
        found = [near] if near is not None else []
    return [points[one.number] for one in found]


def rank(
    question: Question, forecast: Forecast, told: Sequence[Seen], pool: Sequence[Candidate], number: int
) -> tuple[list[Candidate], Floats | None]:
    """Candidates from the one that is expected to add most; without the accuracy model a source's turn comes with the trial's number."""
    if "accuracy_model" not in question.parts or not pool:
        names = sorted({source for source, _ in pool})
        turn = {name: (place - number) % len(names) for place, name in enumerate(names)}
        return sorted(pool, key=lambda one: turn[one[0]]), None
    expected = Expectation(forecast, told, given_point(forecast)).at(np.array([point for _, point in pool]))
    front = pareto.points(pareto.within([result for result, _ in told], question.constraints))
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
