"""A study as it is on disk, running or not: its summary, its trials, and what can be made of them."""

import json
from pathlib import Path
from typing import Any

from autocompress.errors import InvalidStudy
from autocompress.export import Origin, export
from autocompress.recipe import Recipe
from autocompress.records import TrialResult
from autocompress.report import trials_csv, write_report
from autocompress.runs import RunPaths, is_running, studies
from autocompress.study import pareto
from autocompress.study.summary import summary


class Study:
    """A study on disk: its summary, its trials, and what can be made of them."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.config = paths.read_config()

    @property
    def results(self) -> list[TrialResult]:
        return self.paths.results()

    @property
    def bounds(self) -> pareto.Bounds:
        return pareto.bounds_of(self.config)

    @property
    def summary(self) -> dict[str, Any]:
        """The object that ``show --json`` prints."""
        results = self.results
        baseline = self.paths.read_baseline() if self.paths.baseline.exists() else None
        stopped = self._stopped(len(results))
        state = "running" if is_running(self.paths) else "finished" if stopped else "interrupted"
        return summary(self.config, baseline, results, self.paths.holdouts(), state=state, stopped=stopped)

    def front(self) -> list[dict[str, Any]]:
        """The Pareto front, fastest first."""
        rows: list[dict[str, Any]] = self.summary["front"]
        return rows

    def best(self) -> dict[str, Any] | None:
        """The fastest recipe within both bounds, with its holdout numbers and ``confirmed``; None where there is none."""
        row: dict[str, Any] | None = self.summary["best"]
        return row

    def words(self, trial: int) -> list[str]:
        """The recipe of a trial in words, a line a changed layer."""
        return pareto.describe(self._pick(trial).recipe, self.paths.read_layers())

    def recipe(self, trial: str | int = "best") -> Recipe:
        return self._pick(trial).recipe

    def csv(self) -> str:
        return trials_csv(self.results, self.paths.holdouts())

    def report(self) -> tuple[Path, Path, Path]:
        """Write report.html, the folder figures (PNG and SVG) and trials.csv; returns their paths."""
        return write_report(self.paths, self.summary)

    def export(self, trial: str | int = "best", out: str | Path = "artifact") -> Path:
        """Copy the artifact of a trial (best, fastest, smallest, knee or a number) to a new folder ``out``."""
        result = self._pick(trial)
        files = self.paths.trial(result.number)
        holdout = self.paths.holdouts().get(result.number)
        about = (self.paths.read_baseline(), self.paths.read_machine(), Origin(self.config.task, self.config.task_options))
        return export(result, holdout, files.artifact, about, Path(out))

    def _stopped(self, finished: int) -> str | None:
        """Why the search ended, as it wrote itself; None where it was interrupted, or went on since."""
        if not self.paths.pareto.exists():
            return None
        try:
            ended = json.loads(self.paths.pareto.read_text(encoding="utf-8"))
            asked = {"finished": finished, "budget": self.config.budget.trials, "budget_seconds": self.config.budget.seconds}
            return str(ended["stopped"]) if all(ended[name] == value for name, value in asked.items()) else None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidStudy(f"{self.paths.pareto}: not what a search wrote ({error!r}); delete it and `autocompress resume`") from None

    def _pick(self, trial: str | int) -> TrialResult:
        return pareto.pick(self.results, trial, self.bounds)


def show(study: str, runs: str | Path = "runs") -> Study:
    """A study as it is on disk, running or not. Raises InvalidStudy where there is none."""
    return Study(RunPaths(Path(runs), study))


def list_studies(runs: str | Path = "runs") -> list[dict[str, Any]]:
    """One row a study under ``runs``, oldest first."""
    rows = []
    for name in studies(Path(runs)):
        study = show(name, runs)
        summary = study.summary
        best = summary["best"] or {}
        rows.append(
            {key: summary[key] for key in ("study", "state", "finished", "budget", "budget_seconds")}
            | {"best_speedup": best.get("speedup"), "best_drop": best.get("drop"), "task": study.config.task}
        )
    return rows
