"""A study as files for people: report.html, figures/ (PNG and SVG), trials.csv. Reads JSON and YAML only.

Every speed says against what it stands: the same model in fp32 in the same runtime, at which batch size, with how many threads.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from autocompress.records import Measurement, TrialResult
from autocompress.report.drawing import Drawing, drawn_in_our_style, svg_of
from autocompress.report.facts import Facts, Row, read_facts
from autocompress.report.front import front_drawing
from autocompress.report.history import history_drawing, hypervolume_drawing
from autocompress.report.layers import layers_drawing
from autocompress.report.page import page
from autocompress.report.quality import classes_drawing
from autocompress.report.reasons import reasons_drawing
from autocompress.report.sensitivity import sensitivity_drawing
from autocompress.report.survey import harm_drawing
from autocompress.runs import RunPaths, write_folder, write_text

__all__ = ["trials_csv", "write_report"]

FIRST = ("speedup", "speedup_low", "speedup_high", "drop", "accuracy", "size_bytes", "latency_ms")
NUMBERS = [name for name, field in Measurement.model_fields.items() if field.annotation in (int, float, bool, float | None)]
MEASURED = [*FIRST, *(name for name in NUMBERS if name not in FIRST)]
WHOLE = [name for name in MEASURED if Measurement.model_fields[name].annotation is int]
DRAWINGS: tuple[Callable[[Facts], Drawing | None], ...] = (
    front_drawing,
    layers_drawing,
    classes_drawing,
    reasons_drawing,
    history_drawing,
    hypervolume_drawing,
    sensitivity_drawing,
    harm_drawing,
)


def write_report(paths: RunPaths, summary: Row) -> tuple[Path, Path, Path]:
    """Write report.html, the folder figures and trials.csv of a study, each whole or not at all; returns the three paths.

    Raises InvalidStudy where there is no finished trial, UserError where the folder cannot be written.
    """
    facts = read_facts(paths, summary)
    with drawn_in_our_style():
        drawings = [drawing for draw in DRAWINGS if (drawing := draw(facts)) is not None]
        figures = {drawing.name: (drawing, svg_of(drawing)) for drawing in drawings}
        write_folder(paths.figures, lambda folder: save(figures, folder))
    write_text(paths.trials_csv, trials_csv(facts.results, facts.holdouts))
    write_text(paths.report, page(facts, paths, figures))
    return paths.report, paths.figures, paths.trials_csv


def save(figures: Mapping[str, tuple[Drawing, str]], folder: Path) -> None:
    for name, (drawing, svg) in figures.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        drawing.save(folder / f"{name}.png", "png")


def trials_csv(results: Iterable[TrialResult], holdouts: Mapping[int, Measurement]) -> str:
    """One line a trial, with a header; what was not measured is empty.

    Every number of the Measurement under its own name, then ``check_<name>`` for its checks, with several batch sizes
    ``batch_<size>_<field>``, and ``holdout_<name>`` for what was confirmed there. ``seconds`` is the sum over the stages of the trial.
    """
    rows = [
        {
            **{"number": result.number, "source": result.source, "outcome": result.outcome},
            **{name: getattr(result.measurement, name, None) for name in MEASURED},
            **{"gate_speedup": result.gate_speedup, "gate_predicted": result.gate_predicted},
            **extras(result.measurement),
            **{f"holdout_{name}": getattr(holdouts.get(result.number), name, None) for name in CONFIRMED},
            **{"seconds": round(sum(result.seconds.values()), 3), "digest": result.recipe.digest},
        }
        for result in results
    ]
    more = sorted({name for row in rows for name in row} - {*TOLD, *ENDS})
    table = pd.DataFrame(rows, columns=[*TOLD, *more, *ENDS])
    return str(table.astype(dict.fromkeys(WHOLE, "Int64")).to_csv(index=False, lineterminator="\n"))  # whole beside missing ones too


TOLD = ("number", "source", "outcome", *MEASURED, "gate_speedup", "gate_predicted")
CONFIRMED = ("speedup", "speedup_low", "speedup_high", "drop", "accuracy")
ENDS = (*(f"holdout_{name}" for name in CONFIRMED), "seconds", "digest")


def extras(point: Measurement | None) -> dict[str, float]:
    if point is None:
        return {}
    batches = {
        f"batch_{one.batch_size}_{name}": value for one in point.batches for name, value in one.model_dump(exclude={"batch_size"}).items()
    }
    return {**{f"check_{name}": value for name, value in point.checks.items()}, **batches}
