"""Optuna's samplers over the points of a study: in memory, told every finished trial, made anew for every ask.

The sampler is made from (seed, trial number, attempt), so equal finished trials give equal answers, whether the process was
interrupted or not.
"""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocompress.bounds import OBJECTIVES, value_of
from autocompress.config import Sampler
from autocompress.errors import MissingDependency
from autocompress.records import TrialResult
from autocompress.study.question import Question

STARTUP_TRIALS = 10  # told trials before TPE models anything; anchors among them
POPULATION = 20  # of NSGA: Optuna's 50 would make the first 50 trials random
LEAST_VIOLATION = 1e-3  # a gated trial counts as infeasible also where its speedup alone would have done
NO_MEASUREMENT = 1e9  # violation of a trial that gave no number: worse than any that gave one, whatever its metric counts
GENERATIONS = ("NSGAIISampler:generation", "NSGAIIISampler:generation")
LEARN_FROM_VALUES = ("nsga2", "nsga3", "gp")  # they leave out whatever is not COMPLETE
WRECKED = 10.0  # bounds of the drop that a trial without a measurement counts as, where a number is needed
NEEDS = {"gp": ("scipy", "torch"), "qmc": ("scipy",)}


@dataclass
class Told:
    """The Optuna study in memory and the numbers of the trials it was told, in their order."""

    study: optuna.Study | None = None
    numbers: list[int] = field(default_factory=list)


def check_sampler(name: Sampler) -> None:
    """Raises MissingDependency where a sampler needs a package that is not there."""
    missing = [package for package in NEEDS.get(name, ()) if find_spec(package) is None]
    if missing:
        raise MissingDependency(f"--sampler {name} needs {' and '.join(missing)}: `pip install {' '.join(missing)}`, or leave it out.")


def ask(study: optuna.Study, question: Question, number: int, attempt: int, name: Sampler) -> dict[str, int]:
    """One point from a sampler of that name."""
    if name == "qmc":
        return in_sequence(question, number + attempt)
    study.sampler = sampler_for(name, seed_for(question.seed, number, attempt))
    trial = study.ask(question.distributions)
    study.tell(trial, state=TrialState.FAIL)  # the question only: samplers ignore FAIL; the answer is added when it is finished
    return {name: int(index) for name, index in trial.params.items()}


def in_sequence(question: Question, place: int) -> dict[str, int]:
    """The point at a place of a scrambled Sobol sequence, which Optuna counts by what was asked of one study; its first is random."""
    with quiet():
        study = optuna.create_study(sampler=sampler_for("qmc", seed_for(question.seed, 0, 0) % 2**31))
    for _ in range(place):
        study.tell(study.ask(question.distributions), 0.0)
    return {name: int(index) for name, index in study.ask(question.distributions).params.items()}


def seed_for(seed: int, number: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4], "big")


def sampler_for(name: Sampler, own: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "random":
            return RandomSampler(seed=own)
        if name == "nsga2":
            return NSGAIISampler(seed=own, population_size=POPULATION)
        if name == "nsga3":
            return NSGAIIISampler(seed=own, population_size=POPULATION)
        if name == "gp":
            return GPSampler(seed=own, n_startup_trials=STARTUP_TRIALS, deterministic_objective=False)
        if name == "qmc":
            return QMCSampler(seed=own, scramble=True, warn_independent_sampling=False)
    return TPESampler(seed=own, multivariate=True, n_startup_trials=STARTUP_TRIALS)


def remember(told: Told, question: Question, results: Iterable[TrialResult]) -> optuna.Study:
    """Tell the study in memory what it does not know yet, in the order of the trials' numbers.

    TPE weighs trials by their order, so a result that belongs before one told already makes the study anew.
    """
    ordered = sorted(results, key=lambda result: result.number)
    numbers = [result.number for result in ordered]
    if told.study is None or numbers[: len(told.numbers)] != told.numbers:
        with quiet():
            told.study, told.numbers = optuna.create_study(directions=question.directions), []
    for result in ordered[len(told.numbers) :]:
        trial = as_trial(question, result, len(told.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))))
        if trial is not None:
            told.study.add_trial(trial)
        told.numbers.append(result.number)
    return told.study


def as_trial(question: Question, result: TrialResult, place: int = 0) -> FrozenTrial | None:
    """A finished trial as Optuna learns from it; None where its point does not belong to this space.

    ``place``: how many were told before it. NSGA marks a generation when it is asked, and what is told here was asked elsewhere.
    """
    if not question.holds(result.params):
        return None
    state, values, constraints = verdict(question, result)
    if values is None and question.sampler in LEARN_FROM_VALUES:
        state, values = TrialState.COMPLETE, stand_in(question, result)
    return create_trial(
        state=state,
        values=values,
        params=dict(result.params),
        distributions=question.distributions,
        constraints=constraints,
        system_attrs=dict.fromkeys(GENERATIONS, place // POPULATION),
    )


def stand_in(question: Question, result: TrialResult) -> list[float]:
    """Objectives of a trial without a measurement, for samplers that see nothing else: the speed that the gate saw, all else bad."""
    worst = {"speedup": result.gate_speedup or 0.0, "drop": WRECKED * max(question.max_drop, 1.0)}
    return [worst.get(name, -NO_MEASUREMENT if OBJECTIVES[name] == "maximize" else NO_MEASUREMENT) for name in question.objectives]


def verdict(question: Question, result: TrialResult) -> tuple[TrialState, list[float] | None, dict[str, float]]:
    """State, objectives and constraints of a finished trial; a constraint above 0 is violated.

    TPE ignores FAIL and uses PRUNED with a violated constraint, so every ending without a measurement is PRUNED. It adds the violations
    up, so those of the user's own hard constraints, in bytes or milliseconds, are shares of their limits.
    """
    hard = [one for one in question.constraints if not one.soft]
    point, own = result.measurement, {str(one): 0.0 for one in hard}
    if result.outcome == "measured" and point is not None:
        limits = {"drop": point.drop - question.max_drop, "speedup": question.min_speedup - point.speedup}
        limits |= {str(one): min(one.excess(point), NO_MEASUREMENT) for one in hard}
        found = [value_of(name, point) for name in question.objectives]
        worst = [math.copysign(NO_MEASUREMENT, 1 if way.name == "MINIMIZE" else -1) for way in question.directions]
        return TrialState.COMPLETE, [other if one is None else one for one, other in zip(found, worst, strict=True)], limits
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
