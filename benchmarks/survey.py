"""The survey against what it stands for: python benchmarks/survey.py [--task TASK] [--recipes N] [--runs DIR]

Surveys `digits` in ONNX Runtime on one thread with nothing known from before. Then: how far the latency model is off on fresh random
recipes that the fit did not see, each deployed and timed as a trial is; how far two timings of one recipe are apart, below which no
model can be seen to be better; and how far harms are from those of really compressing. Prints a table and, as its last line, one JSON
object {"name", "figures", "met"}. Bound: nine in ten recipes within 10 %. Two quiet cores, about two minutes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from autocompress.bench import bench_of, task_of
from autocompress.compress.build import freeze_, provisional, settle, shrink
from autocompress.config import load_space, parse_budget, search_config
from autocompress.evaluate import Bench
from autocompress.latency_model import predict_ms
from autocompress.measure.latency import SEARCH, compare
from autocompress.progress import Progress
from autocompress.recipe import Recipe
from autocompress.records import Survey
from autocompress.runs import RunPaths
from autocompress.runtimes.runtime import deploy
from autocompress.study.question import question_of
from autocompress.study.soundings import alone, structures
from autocompress.surveyed import PROBES, survey_bench
from autocompress.tasks.task import labelled, outputs_of

MOST_ERROR = 0.10  # of nine in ten
HARMS = 12


def timed_ms(recipe: Recipe, bench: Bench, folder: Path) -> tuple[float, float]:
    """Two timings of one deployed recipe, in milliseconds, each beside the baseline."""
    plain = provisional(recipe)
    model = settle(shrink(bench.task.model, plain, bench.calibration), plain, bench.calibration[:64])
    freeze_(model)
    deployed = deploy(bench.runtime, model, bench.example, folder, bench.target.threads)
    first, second = (bench.baseline.latency_ms / compare(bench.deployed, deployed, bench.inputs, SEARCH).speedup for _ in range(2))
    return first, second


def harm_error(survey: Survey, asked: list[tuple[str, Recipe]], bench: Bench) -> float:
    """The largest difference of a harm from that of really compressing, in the unit of the loss."""
    inputs, targets = (part[: survey.samples] for part in labelled(bench.task))
    given = float(bench.task.loss(outputs_of(bench.task.model, inputs), targets))
    known = {f"{one.kind}:{one.name}:{one.value}": one.harm for one in survey.tried if one.harm is not None}
    worst = 0.0
    for name, recipe in asked:
        if name in known:
            real = settle(shrink(bench.task.model, recipe, inputs), recipe, inputs)
            worst = max(worst, abs(float(bench.task.loss(outputs_of(real, inputs), targets)) - given - known[name]))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--recipes", type=int, default=20)
    parser.add_argument("--runs", default="runs", help="where the trained baseline is kept")
    asked = parser.parse_args()
    torch.manual_seed(0)
    progress, space = Progress(), load_space("default")
    target = {"runtime": "onnxruntime", "threads": 1}
    config = search_config(target, study="survey", task=asked.task, space=space, budget=parse_budget(1))
    task = task_of(asked.task, Path(asked.runs), progress)
    with tempfile.TemporaryDirectory() as scratch:
        bench = bench_of(RunPaths(Path(scratch), "survey"), config, task, progress)
        started = time.monotonic()
        survey = survey_bench(config, bench, Path(scratch), progress)
        seconds = time.monotonic() - started
        again = survey_bench(config, bench, Path(scratch), Progress(quiet=True))
        question = question_of(config, bench.layers)
        fresh = structures(question.dimensions, space, bench.layers, PROBES + asked.recipes)[PROBES:]
        wrong, apart = [], []
        for recipe in fresh:
            first, second = timed_ms(recipe, bench, Path(scratch) / "fresh")
            predicted = predict_ms(survey.latency, recipe, bench.layers) if survey.latency is not None else None
            wrong.append(abs((predicted or 0.0) / ((first + second) / 2) - 1))
            apart.append(abs(second / first - 1))
        choices = [(f"{one.kind}:{one.name}:{one.value}", recipe) for one, recipe in alone(question.dimensions, space, bench.layers)]
        tried = sum(one.harm is not None for one in survey.tried)
        harms_off = harm_error(survey, choices[:: max(len(choices) // HARMS, 1)], bench)
    error = float(np.quantile(wrong, 0.9))
    figures = {
        "choices": len(survey.tried), "tried": tried, "samples": survey.samples, "seconds": round(seconds, 2),
        "seconds_again": round(again.seconds, 2), "probes": survey.latency.probes if survey.latency else 0,
        "error_nine_in_ten": round(error, 4), "error_median": round(float(np.median(wrong)), 4),
        "error_stated": round(survey.latency.error, 4) if survey.latency else None,
        "two_timings_nine_in_ten": round(float(np.quantile(apart, 0.9)), 4), "harm_off_at_most": round(harms_off, 6),
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:26} {value}")
    print(json.dumps({"name": "survey", "figures": figures, "met": error <= MOST_ERROR}))


if __name__ == "__main__":
    main()
