"""Ask and tell: which recipe to try next, given every finished trial.

Optuna keeps its study in memory, filled from the finished trials; the sampler is made anew for every ask from (seed, trial
number, attempt). So equal finished trials give equal proposals, whether the process was interrupted or not.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocompress.config import Constraint, SearchConfig, Space
from autocompress.recipe import Recipe
from autocompress.records import LayerInfo, TrialResult
from autocompress.study.points import recipe_of, starts
from autocompress.study.space import Dimension, dimensions, sampled

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)  # speedup, drop
MAX_DUPLICATES = 20  # in a row: the search is exhausted
TPE_ATTEMPTS = 10  # then at random, so that a sampler that has settled does not call a space exhausted that is not
STARTUP_TRIALS = 10  # told trials before TPE models anything; anchors among them
LEAST_VIOLATION = 1e-3  # a gated trial counts as infeasible also where its speedup alone would have done
NO_MEASUREMENT = 1e9  # violation of a trial that gave no number: worse than any that gave one, whatever its metric counts


@dataclass(frozen=True)
class Question:
    """What stays the same from ask to ask."""

    dimensions: tuple[Dimension, ...]
    space: Space
    layers: tuple[LayerInfo, ...]
    seed: int
    max_drop: float
    min_speedup: float
    constraints: tuple[Constraint, ...] = ()

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {dim.name: IntDistribution(0, len(dim.choices) - 1) for dim in sampled(self.dimensions)}


def question_of(config: SearchConfig, layers: Sequence[LayerInfo]) -> Question:
    """Raises InvalidSpace where the space does not fit the layers."""
    dims = dimensions(config.space, layers)
    return Question(dims, config.space, tuple(layers), config.seed, config.max_drop, config.min_speedup, config.limits)


@dataclass(frozen=True)
class Proposal:
    """What to try next: ``params`` holds the index of the choice in every sampled dimension."""

    number: int
    params: dict[str, int]
    recipe: Recipe
    source: str


@dataclass
class Memory:
    """The Optuna study in memory and the numbers of the trials it was told, in their order."""

    study: optuna.Study | None = None
    told: list[int] = field(default_factory=list)


def propose(question: Question, memory: Memory, results: Sequence[TrialResult], number: int) -> Proposal | None:
    """The next recipe, never one that is finished already. None when the search is exhausted: 20 duplicates in a row."""
    done = {result.recipe.digest for result in results}
    for params in starts(question.dimensions, question.space.near):
        recipe = recipe_at(question, params)
        if recipe.digest not in done:
            return Proposal(number, params, recipe, "anchor")
    study = remember(memory, question, results)
    for attempt in range(MAX_DUPLICATES):
        params = ask(study, question, number, attempt)
        recipe = recipe_at(question, params)
        if recipe.digest not in done:
            return Proposal(number, params, recipe, "tpe" if attempt < TPE_ATTEMPTS else "random")
    return None


def recipe_at(question: Question, params: dict[str, int]) -> Recipe:
    return recipe_of(params, question.dimensions, question.space, question.layers, question.seed)


def ask(study: optuna.Study, question: Question, number: int, attempt: int) -> dict[str, int]:
    """One point from a sampler seeded by (seed, trial number, attempt)."""
    study.sampler = sampler_for(question.seed, number, attempt)
    trial = study.ask(question.distributions)
    study.tell(trial, state=TrialState.FAIL)  # the question only: samplers ignore FAIL; the answer is added when it is finished
    return {name: int(index) for name, index in trial.params.items()}


def sampler_for(seed: int, number: int, attempt: int) -> BaseSampler:
    digest = hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    if attempt >= TPE_ATTEMPTS:
        return RandomSampler(seed=own)
    return TPESampler(seed=own, multivariate=True, n_startup_trials=STARTUP_TRIALS)


def remember(memory: Memory, question: Question, results: Iterable[TrialResult]) -> optuna.Study:
    """Tell the study in memory what it does not know yet, in the order of the trials' numbers.

    TPE weighs trials by their order, so a result that belongs before one told already makes the study anew.
    """
    ordered = sorted(results, key=lambda result: result.number)
    numbers = [result.number for result in ordered]
    if memory.study is None or numbers[: len(memory.told)] != memory.told:
        with quiet():
            memory.study, memory.told = optuna.create_study(directions=DIRECTIONS), []
    for result in ordered[len(memory.told) :]:
        trial = told(question, result)
        if trial is not None:
            memory.study.add_trial(trial)
        memory.told.append(result.number)
    return memory.study


def told(question: Question, result: TrialResult) -> FrozenTrial | None:
    """A finished trial as Optuna learns from it; None where its point does not belong to this space."""
    distributions = question.distributions
    if result.params.keys() != distributions.keys():
        return None
    if not all(0 <= result.params[dim.name] < len(dim.choices) for dim in sampled(question.dimensions)):
        return None
    state, values, constraints = verdict(question, result)
    params = dict(result.params)
    return create_trial(state=state, values=values, params=params, distributions=distributions, constraints=constraints)


def verdict(question: Question, result: TrialResult) -> tuple[TrialState, list[float] | None, dict[str, float]]:
    """State, (speedup, drop) and constraints of a finished trial; a constraint above 0 is violated.

    TPE ignores FAIL and uses PRUNED with a violated constraint, so every ending without a measurement is PRUNED. It adds the violations
    up, so those of the user's own constraints, in bytes or milliseconds, are shares of their limits.
    """
    point, own = result.measurement, {str(one): 0.0 for one in question.constraints}
    if result.outcome == "measured" and point is not None:
        limits = {"drop": point.drop - question.max_drop, "speedup": question.min_speedup - point.speedup}
        limits |= {str(one): min(one.excess(point), NO_MEASUREMENT) for one in question.constraints}
        return TrialState.COMPLETE, [point.speedup, point.drop], limits
    if result.outcome == "gated" and result.gate_speedup is not None:
        missing = question.min_speedup - result.gate_speedup
        over = 0.0 if result.gate_drop is None else max(0.0, result.gate_drop - question.max_drop)
        return TrialState.PRUNED, None, {"drop": over, "speedup": max(missing, LEAST_VIOLATION), **own}
    return TrialState.PRUNED, None, {"drop": 0.0, "speedup": NO_MEASUREMENT, **own}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna's informational lines off, and back as they were."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
