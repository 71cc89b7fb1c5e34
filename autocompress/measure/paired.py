"""How sure a drop is, when both models saw the same samples: resampled pairs (Efron 1979) and McNemar's exact test (1947)."""

import math
import time

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InvalidTask
from autocompress.measure.samples import Numbers, sample_scores
from autocompress.tasks.task import Task, accuracy, lost, score

DRAWS = 1000
METRIC_DRAWS, METRIC_SECONDS = 400, 0.3  # where every draw calls the user's metric twice
ENOUGH_DRAWS, FEWEST_DRAWS = 200, 5  # for quantiles, for a standard deviation
MOST_FAILED = 0.1  # of the draws: a metric may have no value on a resample with one class only
FEW_VALUES = 64
NORMAL_FROM = 10_000  # samples: the mean of so many is normal, and drawing them is slow
Z = 1.96


def paired(task: Task, outputs: Tensor, baseline_outputs: Tensor, targets: Tensor, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the drop in the unit of the metric; outputs (N, ...) of both models on the same samples.

    Over samples where the metric is their mean, else over the metric of resampled splits, at most about 0.3 s of them. None where the
    metric is too slow for that, or has no value on most resamples.
    """
    random = np.random.default_rng(seed)
    after, before = (sample_scores(task, one, targets) for one in (outputs, baseline_outputs))
    if after is None or before is None:
        return _of_metric(task, outputs, baseline_outputs, targets, random)
    worse = before - after if task.higher_is_better else after - before
    is_vote = task.metric is accuracy and task.sample_scores is None and targets.dim() == 1
    low, high = _of_mean(worse, random, is_vote)
    middle = float(worse.mean())
    return min(low, middle), max(high, middle)


def _of_mean(worse: Numbers, random: np.random.Generator, is_vote: bool) -> tuple[float, float]:
    """Percentiles of the mean of resampled differences (N,).

    Right or wrong answers have half a sample broken and half a sample righted added, and one unchanged (Agresti & Min 2005): without it
    a split where no answer changed would be proof that none ever does.
    """
    count = len(worse)
    values, seen = np.unique(worse, return_counts=True)
    if is_vote:
        values, weights = np.append(values, (-100.0, 0.0, 100.0)), np.append(seen, (0.5, 1.0, 0.5))
    elif count >= NORMAL_FROM:
        half = Z * float(worse.std(ddof=1)) / math.sqrt(count)
        return float(worse.mean()) - half, float(worse.mean()) + half
    else:
        weights = seen.astype(float)
    if len(values) <= FEW_VALUES:
        means = random.multinomial(count, weights / weights.sum(), size=DRAWS) @ values / count
    else:
        means = np.array([worse[random.integers(0, count, count)].mean() for _ in range(DRAWS)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _of_metric(
    task: Task, outputs: Tensor, baseline_outputs: Tensor, targets: Tensor, random: np.random.Generator
) -> tuple[float, float] | None:
    count, started, failed = len(targets), time.monotonic(), 0
    drops: list[float] = []
    while len(drops) + failed < METRIC_DRAWS and time.monotonic() - started < METRIC_SECONDS:
        pick = torch.from_numpy(random.integers(0, count, count))
        try:
            drops.append(lost(task, score(task, baseline_outputs[pick], targets[pick]), score(task, outputs[pick], targets[pick])))
        except InvalidTask:
            failed += 1
    if len(drops) < FEWEST_DRAWS or failed > MOST_FAILED * len(drops):
        return None
    middle = lost(task, score(task, baseline_outputs, targets), score(task, outputs, targets))
    if len(drops) < ENOUGH_DRAWS:
        half = _student(len(drops) - 1) * float(np.std(drops, ddof=1))
        return middle - half, middle + half
    low, high = np.quantile(drops, (0.025, 0.975))
    return min(float(low), middle), max(float(high), middle)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the first terms of its Cornish-Fisher series."""
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def mcnemar(broken: int, righted: int) -> float:
    """Exact two-sided p-value (0..1) that answers break and mend equally often, from how many did each (McNemar 1947)."""
    count, fewer = broken + righted, min(broken, righted)
    whole = math.lgamma(count + 1) - count * math.log(2)
    terms = (math.exp(whole - math.lgamma(index + 1) - math.lgamma(count - index + 1)) for index in range(fewer + 1))
    return min(1.0, 2 * math.fsum(terms))
