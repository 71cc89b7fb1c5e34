"""The report of a study of 500 trials: python benchmarks/report.py [--keep FOLDER]

The study is made up, and its files are written by the program's own records and paths: the default space over a network of 20
convolutions, recipes as the search expands them, numbers from a formula with noise. Timed are reading it, its summary, and all files of
the report; the fastest of three runs counts, because others on a shared machine only add, and the processor's own seconds stand beside
it. The time that a new process needs until it can start (imports of torch and matplotlib) is shown apart.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own path is this folder

from autocompress.config import Budget, SearchConfig, load_space
from autocompress.recipe import FLOAT_BITS, Recipe
from autocompress.records import (
    Attribution,
    Baseline,
    Inspection,
    LayerInfo,
    Machine,
    Measurement,
    Part,
    Split,
    Target,
    Throughput,
    TrialResult,
    Undone,
    Usage,
)
from autocompress.report import write_report
from autocompress.runs import Layers, RunPaths, to_json, write_text
from autocompress.study import pareto
from autocompress.study.points import recipe_of
from autocompress.study.space import dimensions, sampled
from autocompress.study.summary import summary

TRIALS, LAYERS, REPEATS = 500, 20, 3
MOST_SECONDS, MOST_BYTES = 5.0, 6_000_000
NO_ENERGY = {"energy_mj": "not available on this machine: NVML measures GPUs, and onnxruntime runs this artifact on the CPU"}
TARGET = Target()
MACHINE = Machine(
    cpu="made-up CPU",
    cores=2,
    instruction_sets=("avx2", "fma"),
    memory_bytes=8 * 2**30,
    system="Linux",
    python="3.11",
    versions={"torch": "2.13.0", "onnxruntime": "1.31.0"},
)


def made_up_study(runs: Path, trials: int = TRIALS, layers: int = LAYERS, name: str = "made-up") -> RunPaths:
    """A finished study on disk, with holdout numbers of its front, and inspection and attribution of its best."""
    paths, dice = RunPaths(runs, name), random.Random(0)
    config = SearchConfig(study=name, task="digits", space=load_space("default"), budget=Budget(trials=trials), target=TARGET)
    infos = tuple(layer(index) for index in range(layers))
    paths.write_config(config)
    write_text(paths.machine, to_json(MACHINE))
    write_text(paths.layers, to_json(Layers(layers=infos)))
    write_text(paths.baseline, to_json(baseline(sum(one.macs for one in infos))))
    dims = dimensions(config.space, infos)
    results = []
    for number in range(trials):
        params = {one.name: dice.randrange(len(one.choices)) for one in sampled(dims)}
        results.append(trial(number, params, recipe_of(params, dims, config.space, infos, seed=0), dice))
        paths.write_result(results[-1])
    for result in pareto.front(results):
        write_text(paths.trial(result.number).holdout, to_json(measured(result.recipe, dice, "holdout")))
    best = pareto.best(results, pareto.Bounds(config.max_drop, config.min_speedup))
    if best is not None:
        write_text(paths.trial(best.number).inspection, to_json(inspection(dice)))
        write_text(paths.trial(best.number).attribution, to_json(attribution(best, dice)))
    return paths


def layer(index: int) -> LayerInfo:
    width = 32 * 2 ** (index // 7)
    name = f"stage{index // 7}.block{index % 7}.conv"
    return LayerInfo(
        name=name,
        kind="conv2d",
        macs=1_500_000 - 40_000 * index,
        params=9 * width * width,
        in_channels=width,
        out_channels=width,
        kernel=(3, 3),
        group=name,
        channel_multiple=8,
        weight_bits=(7, 32),
        schemes={"static": (7,), "weight_only": (8,)},
        factorizable=True,
    )


def baseline(macs: int) -> Baseline:
    return Baseline(
        latency_ms=2.0,
        eager_latency_ms=3.4,
        accuracy=98.5,
        holdout_accuracy=98.25,
        size_bytes=1_500_000,
        macs=macs,
        params=375_000,
        input_shape=(1, 8, 8),
        metric="accuracy",
        target=TARGET,
        task_digest="made-up",
        machine=MACHINE.digest,
    )


def measured(recipe: Recipe, dice: random.Random, split: Split = "search") -> Measurement:
    """Narrower, fewer bits: faster and worse, with noise."""
    keep = sum(plan.keep for plan in recipe.layers) / len(recipe.layers)
    integer = sum(plan.weight_bits < FLOAT_BITS for plan in recipe.layers) / len(recipe.layers)
    speedup = (0.5 + 0.9 / keep) * (1 + 1.4 * integer) * dice.uniform(0.9, 1.1)
    drop = 9 * (1 - keep) ** 3 + 0.9 * integer * dice.random() + dice.gauss(0, 0.5) + (40 if keep < 0.4 and split == "search" else 0)
    latency, size = 2.0 / speedup, int(1.5e6 * keep * (1 - 0.7 * integer))
    return Measurement.model_validate(
        {
            **{"split": split, "latency_ms": latency, "baseline_latency_ms": 2.0, "speedup": speedup, "blocks": 30, "resolved": True},
            **{"speedup_low": speedup * 0.97, "speedup_high": speedup * 1.03, "faster": 1.0, "busy": dice.uniform(0, 0.2)},
            **{"p90_ms": latency * 1.1, "p99_ms": latency * 1.4, "baseline_p90_ms": 2.2, "baseline_p99_ms": 2.9},
            **{"accuracy": 98.5 - drop, "baseline_accuracy": 98.5, "drop": drop, "drop_low": drop - 0.6, "drop_high": drop + 0.6},
            **{"samples": 400, "size_bytes": size, "baseline_size_bytes": 1_500_000, "deployed_bytes": size + 20_000},
            **{"checks": {"worst_class_drop": max(drop * 2, 0.0)}, "agreement": 1.0, "max_difference": 0.01, "machine": MACHINE.digest},
        }
    )


def trial(number: int, params: dict[str, int], recipe: Recipe, dice: random.Random) -> TrialResult:
    ended: dict[str, Any] = {"outcome": "measured", "measurement": measured(recipe, dice)}
    if dice.random() < 0.15:
        ended = {"outcome": "gated", "gate_speedup": dice.uniform(0.9, 1.8), "message": "too slow to reach the front"}
    seconds = {"compress": 0.5, "recovery": dice.uniform(4, 9), "latency": 1.0}
    return TrialResult.model_validate(
        {"number": number, "source": "made up", "params": params, "recipe": recipe, "target": TARGET, "seconds": seconds, **ended}
    )


def part(name: str, samples: int, before: float, after: float) -> Part:
    return Part(name=name, samples=samples, score=after, baseline_score=before)


def inspection(dice: random.Random) -> Inspection:
    return Inspection(
        usage=Usage(load_ms=6.0, peak_bytes=4_100_000, mean_bytes=3_900_000, utilisation=0.98, reasons=NO_ENERGY),
        baseline_usage=Usage(load_ms=14.0, peak_bytes=9_600_000, mean_bytes=9_000_000, utilisation=0.99, reasons=NO_ENERGY),
        throughput=tuple(
            Throughput(batch_size=batch, threads=1, samples_per_s=2400 * batch**0.2, baseline_samples_per_s=500 * batch**0.1)
            for batch in (1, 2, 4, 8, 16)
        ),
        classes=tuple(part(f"class {index}", 40, 97.5, 97.5 - dice.choice((0, 0, 2.5, 5, -1))) for index in range(10)),
        hard=part("hard, smallest margins of the baseline", 40, 82.5, 77.5),
        rare=part("rarest classes", 34, 97.1, 94.1),
        shifts=tuple(part(name, 400, 90.0, 86.5) for name in ("noise 0.1", "blur 1.0", "brightness 0.2", "contrast 0.5", "FGSM 0.03")),
        broken=(7, 19, 88, 301),
        righted=(140,),
        calibration_error=2.1,
        baseline_calibration_error=1.3,
    )


def attribution(best: TrialResult, dice: random.Random) -> Attribution:
    point = best.measurement
    assert point is not None
    undone = tuple(
        Undone(
            decision=f"{plan.name}: {100 * plan.keep:.0f} % of channels",
            layers=(plan.name,),
            speedup=point.speedup * 0.9,
            drop=point.drop - 0.1,
            bought_ms=dice.uniform(-0.01, 0.08),
            cost_points=dice.gauss(0.1, 0.2),
            bought=index % 5 > 0,
        )
        for index, plan in enumerate(best.recipe.layers[:12])
    )
    return Attribution(trial=best.number, decisions=undone, simpler=best.recipe, simpler_measurement=point)


def told(paths: RunPaths) -> dict[str, Any]:
    facts = paths.read_config(), paths.read_baseline(), paths.results(), paths.holdouts()
    return summary(*facts, state="finished", stopped="budget")


def startup_seconds() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import autocompress.job"], check=True, cwd=Path(__file__).resolve().parents[1])
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="The report of a study of 500 trials: seconds and bytes")
    parser.add_argument("--keep", type=Path, help="leave the study and its report in this folder")
    folder = parser.parse_args().keep or Path(tempfile.mkdtemp())
    try:
        paths = made_up_study(folder)
        seconds = []
        for _ in range(REPEATS):
            started, worked = time.monotonic(), time.process_time()
            html = write_report(paths, told(paths))[0]
            seconds.append((time.monotonic() - started, time.process_time() - worked))
        drawn = sum(1 for _ in paths.figures.glob("*.svg"))
        wall, cpu = min(seconds)
        figures = {"trials": TRIALS, "seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "slowest": round(max(seconds)[0], 2)}
        figures |= {"startup_seconds": round(startup_seconds(), 2), "bytes": html.stat().st_size, "figures": drawn}
    finally:
        if folder != parser.parse_args().keep:
            shutil.rmtree(folder, ignore_errors=True)
    met = figures["seconds"] <= MOST_SECONDS and figures["bytes"] <= MOST_BYTES
    print(f"report of {TRIALS} trials, fastest of {REPEATS}: {figures['seconds']:.2f} s, at most {MOST_SECONDS:g} s")
    print(f"the processor's own seconds: {figures['cpu_seconds']:.2f}; slowest run: {figures['slowest']:.2f} s")
    print(f"report.html: {figures['bytes'] / 1e6:.2f} MB, at most {MOST_BYTES / 1e6:g} MB, {drawn} figures")
    print(f"imports of a new process before that: {figures['startup_seconds']:.2f} s")
    print(json.dumps({"name": "report", "figures": figures, "met": met}))


if __name__ == "__main__":
    main()
