"""A survey as a figure and as rows: each layer's share of time, the harm of its choices, and what they would save."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.latency_model import predict_ms
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import LayerInfo, Survey, Tried
from autocompress.report.drawing import BLUE, GREY, ORANGE, SMALL, Drawing, canvas, drawn_in_our_style, rows_, settled, told_
from autocompress.report.facts import Facts

MOST_SHOWN = 40
KINDS = {"keep": "keep", "heads": "keep", "weight_bits": "weight_bits"}  # choices whose plan, and so whose time, is told by their value


@dataclass(frozen=True)
class LayerRow:
    """One layer, attention or block: its share (0..1) of the baseline's time, and its choices, mild to hard, with what each saves."""

    name: str
    share: float | None
    choices: tuple[tuple[Tried, float | None], ...]  # milliseconds a batch that the choice alone would save, where that is predicted

    @property
    def worst(self) -> float:
        return max((one.harm for one, _ in self.choices if one.harm is not None), default=0.0)


def layer_rows(survey: Survey, layers: Sequence[LayerInfo]) -> list[LayerRow]:
    """In the order of the model; a choice of a prune group stands at the layer that the group is called by."""
    total = survey.latency.baseline_ms if survey.latency is not None else sum(survey.layer_ms.values())
    found = []
    for layer in layers:
        own = tuple((one, saved_ms(one, survey, layers)) for one in survey.tried if one.name == layer.name)
        if own or layer.name in survey.layer_ms:
            share = survey.layer_ms[layer.name] / total if layer.name in survey.layer_ms and total > 0 else None
            found.append(LayerRow(layer.name, share, own))
    return found


def saved_ms(one: Tried, survey: Survey, layers: Sequence[LayerInfo]) -> float | None:
    """Milliseconds a batch that the choice alone would save, by the latency model; None where that does not tell."""
    field = KINDS.get(one.kind)
    if survey.latency is None or field is None:
        return None
    scheme = next((layer.schemes for layer in layers if layer.name == one.name), {})
    more = {"activation_bits": 8} if field == "weight_bits" and int(one.value) <= 8 and "static" in scheme else {}
    named = [layer.name for layer in layers if (layer.group if field == "keep" else layer.name) == one.name]
    plans = tuple(LayerPlan.model_validate({"name": name, field: one.value, **more}) for name in named)
    before, after = (predict_ms(survey.latency, recipe, layers) for recipe in (Recipe(), Recipe(layers=plans)))
    return None if before is None or after is None else before - after


def survey_drawing(survey: Survey, layers: Sequence[LayerInfo]) -> Drawing | None:
    """Bars of time beside the harm of each choice; None where there is nothing to show."""
    rows = layer_rows(survey, layers)
    if not rows:
        return None
    by_weight = sorted(rows, key=lambda row: -(row.share or 0.0))[:MOST_SHOWN]
    shown = [row for row in rows if row in by_weight]
    figure, (times, harms) = canvas(0.9 + 0.3 * len(shown), 1.0, 1.4, sharey=True)
    rows_(times, [row.name for row in shown])
    bars = times.barh(range(len(shown)), [100 * (row.share or 0.0) for row in shown], height=0.7, color=GREY)
    times.set_title("share of time, %", fontsize=SMALL)
    tips = dict(told_(bars.patches, "time", [f"{row.name}: {_percent(row.share)} of the time" for row in shown]))
    for kinds, colour, label, shift in ((("weight_bits",), ORANGE, "bits", 0.22), ((), BLUE, "cuts and ranks", -0.22)):
        marks = [
            (one.harm, place + shift, words(row.name, one, saved))
            for place, row in enumerate(shown) for one, saved in row.choices
            if one.harm is not None and ((one.kind in kinds) if kinds else one.kind != "weight_bits")
        ]  # fmt: skip
        if marks:
            gid = f"harm-{label.split()[0]}"
            harms.scatter([mark[0] for mark in marks], [mark[1] for mark in marks], gid=gid, s=14, color=colour, label=label)
            tips[gid] = [mark[2] for mark in marks]
    harms.set_xscale("symlog", linthresh=0.01)
    harms.set_xticks([0, 0.01, 0.1, 1, 10], ["0", ".01", ".1", "1", "10"])  # powers would be set as formulas, which are off here
    harms.set_xlim(right=max(1.5, *(1.3 * row.worst for row in rows)))
    harms.set_title("harm: rise of the loss", fontsize=SMALL)
    if harms.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2)
    left = f" The {len(shown)} slowest of {len(rows)}." if len(shown) < len(rows) else ""
    caption = (
        f"Each choice alone, before any training, on {survey.samples} calibration samples; time by the runtime's own profile of the "
        f"fp32 baseline.{left}"
    )
    return Drawing("survey", "What every layer costs, and what its choices harm", caption, caption, settled(figure), tips)


def harm_drawing(facts: Facts) -> Drawing | None:
    """None where the study has no survey."""
    return survey_drawing(facts.survey, facts.layers) if facts.survey is not None else None


def save_survey(survey: Survey, layers: Sequence[LayerInfo], folder: Path) -> list[Path]:
    """survey.png and survey.svg in ``folder``; nothing where there is nothing to show."""
    with drawn_in_our_style():
        drawing = survey_drawing(survey, layers)
        if drawing is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"survey.{kind}" for kind in ("png", "svg")]
        for file in files:
            drawing.save(file, file.suffix[1:])
    return files


def words(name: str, one: Tried, saved: float | None) -> str:
    value = f"{one.value:g}" if isinstance(one.value, float | int) else one.value
    harm = "not tried" if one.harm is None else f"harm {one.harm:+.3f}"
    return f"{name}: {one.kind} {value}: {harm}" + (f", saves {saved:.3f} ms" if saved is not None else "")


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.1f} %"
