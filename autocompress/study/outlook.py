"""Knowing when to stop: what the front holds, what the next trial is expected to add, and whether the bounds can be kept at all."""

from collections.abc import Sequence

import numpy as np

from autocompress.errors import InvalidSpace
from autocompress.records import TrialResult
from autocompress.study import pareto
from autocompress.study.analytic import descend_all
from autocompress.study.forecast import Forecast
from autocompress.study.propose import Proposal, given_point
from autocompress.study.question import Question

TREND = 10  # trials over which the front must have stood still
LEAST_TRIALS = 20  # before nothing may be called flat
FLAT = 0.01  # of the hypervolume: what ten trials added, and what the next ten are expected to


def held(question: Question, results: Sequence[TrialResult]) -> float:
    """Hypervolume of the trials that keep the user's constraints."""
    return pareto.hypervolume(pareto.within(results, question.constraints), question.max_drop)


def outlook(question: Question, results: Sequence[TrialResult], proposal: Proposal) -> str:
    """One line; empty before the first trial."""
    if not results:
        return ""
    now, before = held(question, results), held(question, results[:-TREND])
    gain = "" if proposal.gain is None else f", +{proposal.gain:.3g} expected from the next trial"
    since = f" (+{now - before:.3g} in the last {TREND} trials)" if len(results) > TREND else ""
    return f"after {len(results)} trials: hypervolume {now:.4g}{since}{gain}"


def is_flat(question: Question, results: Sequence[TrialResult], proposal: Proposal) -> bool:
    """Did the last trials add nothing to speak of, and is as little expected of as many more?"""
    if len(results) < LEAST_TRIALS:
        return False
    now, before = held(question, results), held(question, results[:-TREND])
    expected = 0.0 if proposal.gain is None else TREND * proposal.gain
    return now > 0 and now - before <= FLAT * now and expected <= FLAT * now


def check_reachable(question: Question) -> None:
    """Raises InvalidSpace where by the survey's latency model no recipe of the space comes near the speed asked for.

    Only where the error of the prediction leaves no doubt; what no survey measured is not judged.
    """
    if question.survey is None or question.survey.latency is None or question.space.student is not None:
        return
    forecast = Forecast(question)
    points = descend_all(forecast, given_point(forecast))
    speeds = forecast.speedup(points)
    best = float(speeds.max())
    doubt = 1 + 2 * forecast.error
    ms = forecast.latency.baseline_ms / best
    asked = [("min_speedup", question.min_speedup, best * doubt < question.min_speedup, f"{best:.2f}x")]
    for limit in question.constraints:
        if limit.name == "latency_ms" and limit.sign == "<=" and not limit.soft:
            asked.append((str(limit), limit.limit, ms / doubt > limit.limit, f"{ms:.4g} ms"))
    missed = [(name, bound, best_value) for name, bound, is_missed, best_value in asked if is_missed]
    if missed:
        name, bound, best_value = missed[int(np.argmax([one[1] for one in missed]))]
        raise InvalidSpace(
            f"no recipe of this space can keep {name} {f'>= {bound:g}' if name == 'min_speedup' else ''}".rstrip()
            + f": the fastest is predicted at {best_value}, with an error of {100 * forecast.error:.0f} %. "
            "Ask for less speed, or give a wider --space."
        )
