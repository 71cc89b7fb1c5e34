"""A study as files for people: report.html, pareto.png, and its trials as CSV. Reads JSON and YAML only.

Every speed says against what it stands: the same model in fp32 in the same runtime, at which batch size, with how many threads.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from autocompress.records import TrialResult
from autocompress.report.charts import draw_png
from autocompress.report.facts import Row, read_facts
from autocompress.report.page import page
from autocompress.runs import RunPaths, write_atomically, write_text

__all__ = ["trials_csv", "write_report"]


def write_report(paths: RunPaths, summary: Row) -> tuple[Path, Path]:
    """Write report.html and pareto.png of a study, each whole or not at all; returns both paths.

    Raises InvalidStudy where there is no finished trial, UserError where the folder cannot be written.
    """
    facts = read_facts(paths, summary)
    write_text(paths.report, page(facts, paths))
    write_atomically(paths.pareto_png, lambda draft: draw_png(facts).savefig(draft, format="png"))
    return paths.report, paths.pareto_png


def trials_csv(results: Iterable[TrialResult]) -> str:
    """One line a trial, with a header; what was not measured is empty. ``seconds`` is the sum over the stages of the trial."""
    measured = ("speedup", "speedup_low", "speedup_high", "drop", "accuracy", "size_bytes", "latency_ms")
    columns = ["number", "source", "outcome", *measured, "seconds", "digest"]
    rows = [
        [
            *(result.number, result.source, result.outcome),
            *(getattr(result.measurement, name, None) for name in measured),
            *(round(sum(result.seconds.values()), 3), result.recipe.digest),
        ]
        for result in results
    ]
    table = pd.DataFrame(rows, columns=columns).astype({"size_bytes": "Int64"})  # whole numbers stay whole beside missing ones
    return str(table.to_csv(index=False, lineterminator="\n"))
