"""The chosen recipe layer by layer: what is kept of each, in which rank and how many bits, beside its share of the time.

Where no survey measured times, the share is that of the multiply-adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from autocompress.recipe import FLOAT_BITS, LayerPlan, Recipe
from autocompress.records import LayerInfo
from autocompress.report.drawing import BLUE, GREEN, GREY, INK, LINE, ORANGE, SMALL, Drawing, Tips, canvas, rows_, settled, told_
from autocompress.report.facts import UNKNOWN, Facts
from autocompress.report.tables import Html, bar, folded, note, section, table

MOST_ROWS = 40


@dataclass(frozen=True)
class Layer:
    """One layer of the model with its plan; ``info`` is None for a layer that the survey does not name."""

    plan: LayerPlan
    info: LayerInfo | None
    share: float | None  # of the given model's time, where a survey measured it, else of its multiply-adds
    is_time: bool = False

    @property
    def kept(self) -> str:
        return "left out" if self.plan.drop else f"{100 * self.plan.keep:.0f} %"

    @property
    def rank(self) -> str:
        if self.plan.energy is not None:
            return f"{100 * self.plan.energy:.0f} % of energy"
        return "full" if self.plan.rank is None else str(self.plan.rank)

    @property
    def rank_share(self) -> float:
        """Of the full rank before pruning; 1 where it is full or not known."""
        full = min(self.info.in_channels, self.info.out_channels) if self.info else 0
        return min(self.plan.rank / full, 1.0) if self.plan.rank is not None and full else self.plan.energy or 1.0

    @property
    def bits(self) -> str:
        return f"{self.plan.weight_bits} / {self.plan.activation_bits}"

    @property
    def zeros(self) -> str:
        return self.plan.pattern or (f"{100 * self.plan.sparsity:.0f} %" if self.plan.sparsity else "none")

    @property
    def words(self) -> str:
        share = "" if self.share is None else f", {100 * self.share:.1f} %{' of the time' if self.is_time else ''}"
        mmacs = f"{self.info.macs / 1e6:.2f} M multiply-adds{share}" if self.info else "not surveyed"
        lines = (f"kept: {self.kept}", f"rank: {self.rank}", f"zeros: {self.zeros}", f"bits of weights / inputs: {self.bits}")
        return "\n".join((f"{self.plan.name}: {mmacs}", *lines))


def chosen_recipe(facts: Facts) -> Recipe | None:
    return next((result.recipe for result in facts.results if result.number == facts.trial), None)


def layers_of(facts: Facts, recipe: Recipe) -> list[Layer]:
    """In the order of the model, those that the recipe does not name included; a residual block only where it is left out."""
    known, plans = {layer.name: layer for layer in facts.layers}, recipe.plans
    times = facts.survey.layer_ms if facts.survey is not None else {}
    whole = sum(times.values())
    found = []
    for name in dict.fromkeys([*known, *plans]):
        plan, info = plans.get(name, LayerPlan(name=name)), known.get(name)
        if info is None or info.kind != "block" or plan.drop:
            share = info.macs / max(facts.baseline.macs, 1) if info else None
            found.append(Layer(plan, info, times.get(name, 0.0) / whole if whole > 0 else share, whole > 0))
    return found


def layers_drawing(facts: Facts) -> Drawing | None:
    recipe = chosen_recipe(facts)
    layers = layers_of(facts, recipe) if recipe else []
    if not layers:
        return None
    heavy = sorted(layers, key=lambda layer: -(layer.share or 0.0))[:MOST_ROWS]
    shown = [layer for layer in layers if layer in heavy]
    panels = panels_of(shown)
    figure, columns = canvas(0.7 + 0.24 * len(shown), *[1.0] * len(panels), sharey=True)
    rows_(columns[0], [layer.plan.name for layer in shown])
    tips: dict[str, Sequence[str]] = {}
    for axes, (title, (colour, shares, texts)) in zip(columns, panels.items(), strict=True):
        axes.yaxis.set_visible(axes is columns[0])
        tips |= panel_(axes, title, colour, shares, texts, [layer.words for layer in shown])
    left = f"The {len(shown)} heaviest of {len(layers)} layers; the table has all." if len(shown) < len(layers) else ""
    label = f"The {facts.word} recipe over {len(shown)} layers: {weight_of(shown)}, share kept, rank and bits"
    return Drawing("layers", f"The {facts.word} recipe, layer by layer", label, left, settled(figure), tips)


def panels_of(layers: list[Layer]) -> dict[str, tuple[str, list[float], list[str]]]:
    """Title -> colour, shares (0 to 1) and texts; rank, zeros and bits only where the recipe changes them."""
    heaviest = max((layer.share or 0.0 for layer in layers), default=0.0) or 1.0
    shares = [(layer.share or 0.0) / heaviest for layer in layers]
    percents = [f"{100 * layer.share:.1f} %" if layer.share is not None else UNKNOWN for layer in layers]
    panels = {weight_of(layers): (GREY, shares, percents)}
    panels["kept"] = (BLUE, [0.0 if layer.plan.drop else layer.plan.keep for layer in layers], [layer.kept for layer in layers])
    if any(layer.plan.is_factorized for layer in layers):
        panels["rank"] = (GREEN, [layer.rank_share for layer in layers], [layer.rank.removesuffix(" of energy") for layer in layers])
    if any(layer.plan.is_sparse for layer in layers):
        panels["zeros"] = (INK, [layer.plan.sparsity for layer in layers], [layer.zeros for layer in layers])
    if any(layer.plan.is_quantized for layer in layers):
        panels["bits w / in"] = (ORANGE, [layer.plan.weight_bits / FLOAT_BITS for layer in layers], [layer.bits for layer in layers])
    return panels


def weight_of(layers: Sequence[Layer]) -> str:
    """What shares are shares of."""
    return "share of time" if any(layer.is_time for layer in layers) else "multiply-adds"


def panel_(axes: Axes, title: str, colour: str, shares: list[float], texts: list[str], words: list[str]) -> Tips:
    """Bars of shares on a pale ground of 1, each with its number; pale where the recipe leaves the layer as it is."""
    rows = range(len(shares))
    axes.barh(rows, [1.0] * len(shares), height=0.72, color=colour, alpha=0.14)
    bars = axes.barh(rows, shares, height=0.72, color=[colour if share < 1 or colour == GREY else LINE for share in shares], alpha=0.75)
    for row, text in zip(rows, texts, strict=True):
        axes.text(0.03, row, text, va="center", fontsize=SMALL - 1, in_layout=False)
    axes.set_title(title, fontsize=SMALL)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_visible(False)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return told_(bars.patches, title.partition(" ")[0], words)


def recipe_section(facts: Facts) -> str:
    """Every layer as a table, behind a line that opens, and how the model was trained afterwards."""
    recipe = chosen_recipe(facts)
    if recipe is None:
        return ""
    layers = layers_of(facts, recipe)
    work = "multiply-adds" + (", bars: share of time" if any(layer.is_time for layer in layers) else "")
    head = ("layer", work, "kept", "rank", "zeros", "weight bits", "activation bits")
    trained = f"Recovery: {recipe.recovery.steps} steps in float, {recipe.recovery.quantized_steps} quantization-aware, "
    taught = recipe.distillation
    trained += f"with a teacher at temperature {taught.temperature:g}." if taught else "without a teacher."
    lines = "".join(note(line) for line in facts.recipes[facts.trial].splitlines())
    return section(
        f"The {facts.word} recipe",
        lines,
        note(f"{trained} Digest {recipe.digest}."),
        folded(f"All {len(layers)} layers as a table", table(head, map(layer_row, layers), "layers")),
    )


def layer_row(layer: Layer) -> tuple[object, ...]:
    plan, info = layer.plan, layer.info
    rank: str | Html = bar(layer.rank_share, layer.rank) if plan.is_factorized else layer.rank
    return (
        plan.name,
        bar(layer.share or 0.0, f"{info.macs / 1e6:.2f} M") if info else UNKNOWN,
        bar(0.0 if plan.drop else plan.keep, layer.kept),
        rank,
        layer.zeros,
        bar(plan.weight_bits / FLOAT_BITS, str(plan.weight_bits)),
        bar(plan.activation_bits / FLOAT_BITS, str(plan.activation_bits)),
    )
