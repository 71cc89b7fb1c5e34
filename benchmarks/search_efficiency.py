"""Our search against a plain Optuna script on the same space, task, target and evaluation: python benchmarks/search_efficiency.py

Every finished run is appended to search_efficiency.csv beside this file, a row a trial, and is not made again: the whole takes hours, so
stop it when you like and go on later, or name a part of it (--methods ours,tpe --seeds 2). Prints one table and, as its last line, one
JSON object {"name", "figures", "met"}; --draw writes search_efficiency.png from the rows. Wants a quiet machine: times are compared.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_suffix(".csv")
FIELDS = ("task", "method", "seed", "budget", "number", "source", "outcome", "speedup", "drop", "elapsed_s")
PLAIN = ("tpe", "nsga2", "gp", "random")
PARTS = ("survey", "analytic", "gate", "accuracy_model")
MAX_DROP, FEW, MANY, MOST = 3.0, 10, 50, 150
STEPS, QUANTIZED_STEPS = 40, 10  # recovery, the same for all
GAIN, SHARE_OF_TIME, EARLY_SPEEDUP, EARLY_DROP = 1.25, 1 / 3, 3.0, 1.0


@dataclass(frozen=True)
class Run:
    """One study: which method, which seed, how many trials."""

    task: str
    method: str
    seed: int
    budget: int


def plan(task: str, methods: Sequence[str], seeds: int, most: int) -> list[Run]:
    """Ours and the two strongest plain samplers with all seeds, the others, 150 trials and the ablation with three; cheap ones first."""
    few = range(min(seeds, 3))
    runs = [Run(task, method, seed, MANY) for seed in range(seeds) for method in ("ours", "tpe", "nsga2")]
    runs += [Run(task, method, seed, MANY) for seed in few for method in ("random", "gp")]
    runs += [Run(task, method, seed, MOST) for seed in few for method in ("tpe", "nsga2")]
    runs += [Run(task, f"ours without {part}", seed, MANY) for seed in few for part in PARTS]
    return [run for run in runs if (not methods or run.method in methods) and run.budget <= most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", help="digits, or package.module:factory")
    parser.add_argument("--methods", default="", help="comma-separated; all if not given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=MOST, help="leave out runs of more trials")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--draw", action="store_true", help="draw the figure from the rows")
    asked = parser.parse_args()
    started = time.monotonic()
    methods = [name.strip() for name in asked.methods.split(",") if name.strip()]
    for run in plan(asked.task, methods, asked.seeds, asked.most):
        if (time.monotonic() - started) / 60 > asked.minutes:
            break
        if run not in finished(asked.rows):
            append(asked.rows, run, study_of(run))
    runs = {run: trials for run, trials in finished(asked.rows).items() if run.task == asked.task}
    if asked.draw:
        draw(runs, asked.rows.with_suffix(".png"))
    report(runs)


def study_of(run: Run) -> list[dict[str, Any]]:
    """A row a trial of one study made from nothing; elapsed seconds count from its start, a trained and cached baseline given."""
    from autocompress.progress import Progress
    from autocompress.tasks.find import find_task

    cache = Path("runs") / ".cache"
    find_task(run.task, cache, Progress())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".cache").symlink_to(cache.resolve())
        make = ours if run.method.startswith("ours") else plain
        rows = make(run, Path(folder))
    print(f"{run}: hypervolume {hypervolume(rows):.2f} in {rows[-1]['elapsed_s']:.0f} s", flush=True)
    return rows


def short_space() -> Any:
    from autocompress.config import load_space

    space = load_space("default")
    return space.model_copy(update={"recovery": space.recovery.model_copy(update={"steps": STEPS, "quantized_steps": QUANTIZED_STEPS})})


def ours(run: Run, folder: Path) -> list[dict[str, Any]]:
    """`autocompress search`; a trial is there when its result is on disk."""
    from autocompress import job
    from autocompress.progress import Progress

    without = run.method.removeprefix("ours").removeprefix(" without ").strip()
    more: dict[str, Any] = {"without": (without,)} if without else {}
    started = time.time()
    study = job.search(
        run.task, space=short_space(), budget=run.budget, seed=run.seed, max_drop=MAX_DROP, study="ours", runs=folder,
        progress=Progress(quiet=True), **more,
    )  # fmt: skip
    ends = {result.number: study.paths.trial(result.number).result.stat().st_mtime for result in study.results}
    return [row_of(run, result.number, result, ends[result.number] - started) for result in sorted(study.results, key=lambda r: r.number)]


def plain(run: Run, folder: Path) -> list[dict[str, Any]]:
    """What a user would write in an afternoon: an Optuna study over the same choices, ordered integers, every trial run to its end."""
    import optuna
    import torch

    from autocompress.bench import task_of
    from autocompress.config import Budget, SearchConfig
    from autocompress.evaluate import evaluate, prepare
    from autocompress.gate import Gate
    from autocompress.progress import Progress
    from autocompress.records import Target
    from autocompress.study.question import question_of
    from autocompress.study.space import sampled

    started, quiet = time.time(), Progress(quiet=True)
    target, space = Target(), short_space()
    bench = prepare(task_of(run.task, folder, quiet), target, torch.device("cpu"), folder / "baseline", quiet)
    config = SearchConfig(
        study="plain", task=run.task, space=space, budget=Budget(trials=run.budget), target=target, max_drop=MAX_DROP, seed=run.seed
    )
    question = question_of(config, bench.layers)
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "gp": optuna.samplers.GPSampler,
        "random": optuna.samplers.RandomSampler,
    }
    sampler: Any = kinds[run.method]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(seed=run.seed))
    rows = []
    for number in range(run.budget):
        trial = study.ask()
        params = {dim.name: trial.suggest_int(dim.name, 0, len(dim.choices) - 1) for dim in sampled(question.dimensions)}
        result = evaluate(question.recipe_at(params), bench, Gate(), folder / str(number))
        point = result.measurement
        if point is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, [point.speedup, point.drop])
        rows.append(row_of(run, number, result.model_copy(update={"source": run.method}), time.time() - started))
    return rows


def row_of(run: Run, number: int, result: Any, elapsed: float) -> dict[str, Any]:
    point = result.measurement
    told = {"source": result.source, "outcome": result.outcome, "elapsed_s": round(elapsed, 2)}
    figures = {"speedup": "" if point is None else round(point.speedup, 4), "drop": "" if point is None else round(point.drop, 4)}
    return {"task": run.task, "method": run.method, "seed": run.seed, "budget": run.budget, "number": number, **told, **figures}


def append(file: Path, run: Run, rows: Iterable[dict[str, Any]]) -> None:
    """A run is written whole, after its last trial."""
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def finished(file: Path) -> dict[Run, list[dict[str, Any]]]:
    runs: dict[Run, list[dict[str, Any]]] = {}
    if file.exists():
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                runs.setdefault(Run(row["task"], row["method"], int(row["seed"]), int(row["budget"])), []).append(row)
    return runs


def hypervolume(rows: Iterable[dict[str, Any]]) -> float:
    """Of (speedup, drop) above 1x and below 3 points. In times x points."""
    points = sorted((float(row["drop"]), float(row["speedup"])) for row in rows if row["speedup"] not in ("", None))
    area, reached = 0.0, 1.0
    for drop, speedup in points:
        if drop < MAX_DROP and speedup > reached:
            area += (speedup - reached) * (MAX_DROP - drop)
            reached = speedup
    return area


def time_to(rows: Sequence[dict[str, Any]], area: float) -> float:
    """Seconds until a run's front reached a hypervolume; inf where it never did."""
    return next((float(row["elapsed_s"]) for index, row in enumerate(rows) if hypervolume(rows[: index + 1]) >= area), float("inf"))


def report(runs: dict[Run, list[dict[str, Any]]]) -> None:
    figures: dict[str, Any] = {}
    print(f"{'method':28} {'budget':>6} {'seeds':>5} {'hv at 10':>9} {'at 50':>8} {'at end':>8} {'(range)':>15} {'seconds':>8}")
    for method, budget in sorted({(run.method, run.budget) for run in runs}, key=lambda pair: (pair[1], pair[0])):
        own = [rows for run, rows in runs.items() if (run.method, run.budget) == (method, budget)]
        at = {count: statistics.median(hypervolume(rows[:count]) for rows in own) for count in (FEW, MANY, budget)}
        ends = [hypervolume(rows) for rows in own]
        seconds = statistics.median(float(rows[-1]["elapsed_s"]) for rows in own)
        spread = f"{min(ends):.1f}-{max(ends):.1f}"
        print(f"{method:28} {budget:6} {len(own):5} {at[FEW]:9.2f} {at[MANY]:8.2f} {at[budget]:8.2f} {spread:>15} {seconds:8.0f}")
        figures[f"{method} {budget}"] = {
            "seeds": len(own), "hv": {str(count): round(value, 3) for count, value in at.items()}, "ends": [round(one, 3) for one in ends],
            "seconds": round(seconds, 1),
        }  # fmt: skip
    checks = judged(runs)
    for name, (met, figure, bound) in checks.items():
        print(f"{name:66} {figure:>18} {bound:>22} {'met' if met else 'MISSED'}")
    figures["checks"] = {name: {"met": met, "figure": figure} for name, (met, figure, _) in checks.items()}
    print(json.dumps({"name": "search_efficiency", "figures": figures, "met": bool(checks) and all(met for met, _, _ in checks.values())}))


def judged(runs: dict[Run, list[dict[str, Any]]]) -> dict[str, tuple[bool, str, str]]:
    """The bounds of the issue that the rows so far can say something about."""
    ours_ = [rows for run, rows in runs.items() if run.method == "ours" and run.budget == MANY]
    plain_ = {method: [rows for run, rows in runs.items() if (run.method, run.budget) == (method, MANY)] for method in PLAIN}
    medians = {method: statistics.median(map(hypervolume, own)) for method, own in plain_.items() if own}
    checks: dict[str, tuple[bool, str, str]] = {}
    if not ours_ or not medians:
        return checks
    strongest = max(medians, key=lambda method: medians[method])
    median = statistics.median(map(hypervolume, ours_))
    ratio = median / medians[strongest]
    checks[f"hypervolume after {MANY} against {strongest}"] = (ratio >= GAIN, f"{ratio:.2f} times", f"at least {GAIN:g}")
    long = [rows for run, rows in runs.items() if (run.method, run.budget) == (strongest, MOST)]
    if long:
        end = statistics.median(map(hypervolume, long))
        checks[f"hypervolume after {MANY} against {strongest} after {MOST}"] = (median >= end, f"{median:.2f}", f"at least {end:.2f}")
    spent = statistics.median(float(rows[-1]["elapsed_s"]) for rows in plain_[strongest])
    reached = statistics.median(time_to(rows, medians[strongest]) for rows in ours_)
    share, most = reached / spent, f"at most {100 * SHARE_OF_TIME:.0f} %"
    checks[f"share of {strongest}'s time to its front"] = (share <= SHARE_OF_TIME, f"{100 * share:.0f} %", most)
    early = [any(meets(row) for row in rows[:FEW]) for rows in ours_]
    found = f"{sum(early)} of {len(early)}"
    checks[f"{EARLY_SPEEDUP:g}x at {EARLY_DROP:g} point after {FEW} trials"] = (all(early), found, "all seeds")
    return checks


def meets(row: dict[str, Any]) -> bool:
    return row["speedup"] not in ("", None) and float(row["speedup"]) >= EARLY_SPEEDUP and float(row["drop"]) <= EARLY_DROP


def draw(runs: dict[Run, list[dict[str, Any]]], file: Path) -> None:
    """Median hypervolume over trials and over time, a line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_trial, by_time = figure.subplots(1, 2)
    for method in sorted({run.method for run in runs if run.budget == MANY and "without" not in run.method}):
        own = [rows for run, rows in runs.items() if (run.method, run.budget) == (method, MANY)]
        areas = [statistics.median(hypervolume(rows[: count + 1]) for rows in own) for count in range(MANY)]
        times = [statistics.median(float(rows[min(count, len(rows) - 1)]["elapsed_s"]) for rows in own) for count in range(MANY)]
        width = 2.2 if method == "ours" else 1.2
        by_trial.step(range(1, MANY + 1), areas, where="post", label=f"{method} ({len(own)} seeds)", linewidth=width)
        by_time.step(times, areas, where="post", linewidth=width)
    by_trial.set(xlabel="trials", ylabel="hypervolume, median over seeds")
    by_time.set(xlabel="seconds")
    by_trial.legend(frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
