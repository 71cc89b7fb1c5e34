"""What the search itself costs: everything but `evaluate`, which is pretended here, for every proposal gets an answer at once.

Times are those of this process (CPU seconds), so that other work on the machine does not count. Bounds: 0.2 s a trial on average at 500
trials and 100 layers, 2 s for the analytic front, memory flat (what the first hundred trials need, and a little for the trials themselves).

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py [--layers 100] [--trials 500]
"""

import argparse
import json
import resource
import time
from collections import Counter
from typing import Any

import numpy as np

from autocompress.config import Budget, SearchConfig, load_space
from autocompress.records import LayerInfo, Measurement, Target, TrialResult
from autocompress.study.forecast import Forecast
from autocompress.study.propose import Memory, Proposal, prepared, propose
from autocompress.study.question import question_of

MOST_SECONDS, MOST_START, MOST_GROWTH = 0.2, 2.0, 150e6  # a trial; before the first; bytes from trial 100 to the last


def chain(count: int) -> tuple[LayerInfo, ...]:
    """3x3 convolutions one after the other, 64 channels each, that run 7 and 8 bits."""
    plain: dict[str, object] = {"kind": "conv2d", "macs": 36864, "params": 36864, "in_channels": 64, "out_channels": 64, "kernel": (3, 3)}
    more: dict[str, object] = {"channel_multiple": 8, "weight_bits": (32, 8, 7), "factorizable": True}
    groups = [{"name": f"conv{place}", "group": f"g{place}", "in_group": f"g{place - 1}" if place else None} for place in range(count)]
    return tuple(LayerInfo.model_validate(plain | more | group) for group in groups)


def answer(proposal: Proposal, forecast: Forecast) -> TrialResult:
    """The forecast with noise: fast enough to cost nothing, and uneven enough to keep the models busy."""
    rng, point = np.random.default_rng(proposal.number), forecast.point(proposal.params)[None]
    speed = float(forecast.speedup(point)[0] * np.exp(0.05 * rng.normal()))
    drop = float(0.02 * sum(harm[0] for harm in forecast.harm(point).values()) + 0.2 * rng.normal())
    numbers: dict[str, object] = {"latency_ms": 1 / speed, "baseline_latency_ms": 1.0, "speedup": speed}
    numbers |= {"speedup_low": 0.98 * speed, "speedup_high": 1.02 * speed}
    numbers |= {"resolved": True, "blocks": 9, "accuracy": 99 - drop, "baseline_accuracy": 99.0, "drop": drop, "samples": 400}
    numbers |= {"size_bytes": 1000, "baseline_size_bytes": 4000, "agreement": 1.0, "max_difference": 0.0}
    point_measured = Measurement.model_validate({"split": "search", "machine": "pretended", **numbers})
    own: dict[str, Any] = {"number": proposal.number, "recipe": proposal.recipe, "params": proposal.params, "source": proposal.source}
    return TrialResult(target=Target(), outcome="measured", measurement=point_measured, **own)


def resident() -> float:
    """Bytes that the process has had at most; ru_maxrss is in KiB on Linux."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--trials", type=int, default=500)
    asked = parser.parse_args()
    config = SearchConfig(
        study="cost", task="pretended", space=load_space("default"), budget=Budget(trials=asked.trials), target=Target()
    )
    question, memory, results = question_of(config, chain(asked.layers)), Memory(), list[TrialResult]()
    started = time.process_time()
    forecast, _ = prepared(question, memory)
    start = time.process_time() - started
    seconds, early = [], resident()
    for number in range(asked.trials):
        started = time.process_time()
        proposal = propose(question, memory, results, number)
        seconds.append(time.process_time() - started)
        assert proposal is not None, "the space is exhausted: give more layers or fewer trials"
        results.append(answer(proposal, forecast))
        early = resident() if number < 100 else early
    growth = resident() - early
    mean, last = float(np.mean(seconds)), float(np.mean(seconds[-50:]))
    met = mean <= MOST_SECONDS and start <= MOST_START and growth <= MOST_GROWTH
    print(f"{asked.layers} layers, {len(question.sizes)} dimensions, {asked.trials} trials; CPU seconds")
    print(f"  before the first trial   {start:.2f}  (at most {MOST_START:g})")
    print(f"  a trial, mean            {mean:.3f}  (at most {MOST_SECONDS:g})")
    print(f"  a trial, last 50         {last:.3f}, the slowest of all {max(seconds):.2f}")
    print(f"  memory after trial 100   +{growth / 1e6:.0f} MB, {growth / max(asked.trials - 100, 1) / 1e3:.0f} kB a trial")
    figures: dict[str, object] = {"layers": asked.layers, "dimensions": len(question.sizes), "trials": asked.trials}
    figures |= {"start_s": round(start, 3), "mean_s": round(mean, 4), "last_50_s": round(last, 4), "slowest_s": round(max(seconds), 3)}
    figures |= {"growth_mb": round(growth / 1e6, 1)}
    figures |= {"sources": dict(Counter(result.source for result in results))}
    print(json.dumps({"name": "search_cost", "figures": figures, "met": met}))


if __name__ == "__main__":
    main()
