"""The rows of benchmarks/techniques.py: every technique alone and in the usual combinations, as recipes for whatever layers a task has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autocompress.recipe import Assistant, Distillation, LayerPlan, Pruning, Quantization, Recipe, Recovery, Stage, Student
from autocompress.records import LayerInfo

Plans = tuple[LayerPlan, ...]
STUDENT = Student(width=0.3)  # a tenth of the parameters, or less
GROUP = 16  # divides the inputs of every layer but the first
RANK = 0.5  # of the narrower side of a convolution


@dataclass(frozen=True)
class Subject:
    """What the rows are made for: the layers, the modules whose outputs are compared, and the steps of a short recovery."""

    layers: tuple[LayerInfo, ...]
    features: tuple[str, ...]
    steps: int

    @property
    def weighted(self) -> tuple[LayerInfo, ...]:
        """Convolutions and linear layers in order of execution."""
        return tuple(layer for layer in self.layers if layer.kind in ("conv2d", "linear"))

    @property
    def inner(self) -> tuple[LayerInfo, ...]:
        """Without the first and the last, which stay dense and at eight bits where the others have fewer."""
        return self.weighted[1:-1]

    @property
    def eight(self) -> int:
        """The widest integer weights with a kernel of their own here: 8, or 7 on a CPU without VNNI."""
        return max(bits for bits in (7, *self.weighted[0].weight_bits) if bits <= 8)


@dataclass(frozen=True)
class Bound:
    """What a row must reach on the test images of Fashion-MNIST."""

    most_drop: float | None = None  # points lost
    least_speed: float | None = None  # times
    least_kept: float | None = None  # share of the given model's accuracy
    least_smaller: float | None = None  # times fewer parameters, from the size of the packed file


@dataclass(frozen=True)
class Row:
    """One line of the table; ``smoke``: one of the few that CI runs."""

    name: str
    make: Callable[[Subject], Recipe]
    bound: Bound | None = None
    smoke: bool = False


def integer(subject: Subject, bits: int = 8, activations: int = 8) -> Plans:
    """Every layer in integers; the first and the last at eight bits."""
    inner = {layer.name for layer in subject.inner}
    return tuple(
        LayerPlan(name=layer.name, weight_bits=min(bits if layer.name in inner else 8, subject.eight), activation_bits=activations)
        for layer in subject.weighted
    )


def channels(subject: Subject, keep: float) -> Plans:
    """Every group of layers that may lose channels, at one share."""
    return tuple(LayerPlan(name=layer.name, keep=keep) for layer in subject.weighted if layer.group is not None)


def sparse(subject: Subject, **fields: Any) -> Plans:
    return tuple(LayerPlan(name=layer.name, **fields) for layer in subject.inner)


def convolutions(subject: Subject, **fields: Any) -> Plans:
    """A low-rank form for every convolution with a kernel but the first; ``rank`` relative to the narrower side."""
    plans = []
    for layer in subject.inner:
        if layer.kernel != (1, 1) and layer.factorizable:
            own = dict(fields)
            if "rank" in own:
                own["rank"] = max(1, round(own["rank"] * min(layer.in_channels, layer.out_channels)))
            plans.append(LayerPlan(name=layer.name, **own))
    return tuple(plans)


def merged(*parts: Plans) -> Plans:
    """Plans of the same layers as one, with every field that one of them changes."""
    fields: dict[str, dict[str, Any]] = {}
    for plan in (plan for part in parts for plan in part):
        fields.setdefault(plan.name, {}).update(plan.model_dump(exclude_defaults=True))
    return tuple(LayerPlan(**one) for one in fields.values())


def untrained(layers: Plans, **quantization: Any) -> Recipe:
    """No step of training."""
    return Recipe(
        layers=layers, quantization=Quantization(**quantization), distillation=None, recovery=Recovery(steps=0, quantized_steps=0)
    )


def recovered(layers: Plans, steps: int, quantized: int = 0, rate: float = 1e-3, **more: Any) -> Recipe:
    """Recovery with the given model as teacher."""
    return Recipe(layers=layers, recovery=Recovery(steps=steps, quantized_steps=quantized, learning_rate=rate), **more)


# ---- one function a family of rows


def post_training(name: str, bits: int = 8, activations: int = 8, bound: Bound | None = None, smoke: bool = False, **settings: Any) -> Row:
    return Row(name, lambda subject: untrained(integer(subject, bits, activations), **settings), bound, smoke)


def quantization_aware(name: str, bits: int, bound: Bound | None = None, rate: float = 3e-3, **settings: Any) -> Row:
    def make(subject: Subject) -> Recipe:
        return recovered(integer(subject, bits), 0, subject.steps, rate, quantization=Quantization(**settings))

    return Row(name, make, bound)


def weight_only(bits: int) -> Row:
    """Groups of inputs share a scale; the first layer, whose nine inputs no group divides, stays in float."""

    def make(subject: Subject) -> Recipe:
        plans = tuple(plan for plan in integer(subject, bits, activations=32) if plan.name != subject.weighted[0].name)
        return untrained(plans, granularity="group", group_size=GROUP)

    return Row(f"weight-only {bits} bits, groups of {GROUP}", make, smoke=bits == 4)


def dynamic() -> Row:
    def make(subject: Subject) -> Recipe:
        linear = tuple(layer.name for layer in subject.weighted if layer.kind == "linear")
        return untrained(tuple(LayerPlan(name=name, weight_bits=8, activation_bits=8) for name in linear), activations="dynamic")

    return Row("dynamic int8 (linear layer)", make)


def stored(kind: str) -> Row:
    def make(subject: Subject) -> Recipe:
        return untrained(tuple(LayerPlan(name=layer.name, weight_bits=16) for layer in subject.weighted), half=kind)

    return Row(f"{kind} stored", make)


def pruned(name: str, importance: str | dict[str, float], smoke: bool = False, **schedule: Any) -> Row:
    def make(subject: Subject) -> Recipe:
        steps = subject.steps if not schedule else subject.steps // 2
        between = {"steps_between": subject.steps // 8, "iterations": 4} if schedule else {}
        pruning = Pruning.model_validate({"importance": importance, **schedule, **between})
        return recovered(channels(subject, 0.5), steps, pruning=pruning)

    return Row(f"half the channels: {name}", make, smoke=smoke)


def blocks() -> Row:
    """The last of the blocks that may go: it works on the fewest positions, the others before it repair its loss."""

    def make(subject: Subject) -> Recipe:
        names = [layer.name for layer in subject.layers if layer.droppable]
        return recovered((LayerPlan(name=names[-1], drop=True),), subject.steps)

    return Row("depth: one residual block left out", make, smoke=True)


def sparsified(name: str, bound: Bound | None = None, share: float = 0.0, **fields: Any) -> Row:
    def make(subject: Subject) -> Recipe:
        return recovered(sparse(subject, **fields) if fields else (), subject.steps, pruning=Pruning(global_sparsity=share))

    return Row(f"zeros: {name}", make, bound)


def head(name: str, method: str) -> Row:
    """Ten classes leave little to factorize: rank 6 of 10."""

    def make(subject: Subject) -> Recipe:
        plan = LayerPlan.model_validate({"name": subject.weighted[-1].name, "rank": 6, "factorization": method})
        return recovered((plan,), 0)

    return Row(f"low rank: {name}", make)


def low_rank(name: str, method: str, smoke: bool = False, **fields: Any) -> Row:
    return Row(
        f"low rank: {name}",
        lambda subject: recovered(convolutions(subject, factorization=method, **fields), subject.steps),
        smoke=smoke,
    )


def student(name: str, bound: Bound | None = None, smoke: bool = False, **settings: Any) -> Row:
    """From random weights, so with SGD at a high rate and far more steps than a repair takes."""

    def make(subject: Subject) -> Recipe:
        more = dict(settings)
        if more.pop("by_features", False):
            more["features"] = subject.features
        if more.pop("assisted", False):
            more["assistant"] = Assistant(keep=0.5, steps=subject.steps)
        distillation = None if more.pop("alone", False) else Distillation.model_validate(more)
        training = Recovery(steps=16 * subject.steps, quantized_steps=0, learning_rate=0.2, optimizer="sgd", weight_decay=5e-4)
        return Recipe(student=STUDENT, distillation=distillation, recovery=training)

    return Row(f"student, 10x fewer parameters: {name}", make, bound, smoke)


def combined(order: tuple[Stage, ...], bound: Bound | None = None, smoke: bool = False, gradual: bool = False) -> Row:
    """Half the channels, and static int8; ``gradual``: training lies between the cuts, as no stage after them has any in float."""

    def make(subject: Subject) -> Recipe:
        plans = merged(channels(subject, 0.5), integer(subject))
        cubic = Pruning(schedule="cubic", iterations=4, steps_between=subject.steps)
        return recovered(plans, 2 * subject.steps, subject.steps, 3e-3, order=order, pruning=cubic if gradual else Pruning())

    return Row(" -> ".join(order), make, bound, smoke)


def everything(subject: Subject) -> Recipe:
    """Half the channels, half of what is left of the weights, four bits."""
    plans = merged(channels(subject, 0.5), sparse(subject, sparsity=0.5), integer(subject, 4))
    return recovered(plans, 2 * subject.steps, subject.steps)


OBSERVERS = ("moving_average", "percentile", "entropy", "mse")
CRITERIA = ("l1", "random", "gradient", "taylor", "activation", "hessian", "bn_scale", "entropy")
INT8 = Bound(most_drop=0.3, least_speed=1.3)
FOUR_BITS = Bound(most_drop=1.0)
HALF_ZEROS = Bound(most_drop=0.5)
CHAIN = Bound(most_drop=1.5, least_speed=3.0)

ROWS: tuple[Row, ...] = (
    Row("fp32", lambda subject: untrained(())),
    stored("fp16"),
    stored("bf16"),
    dynamic(),
    post_training("static int8: min-max", bound=INT8, smoke=True),
    *(post_training(f"static int8: {observer}", observer=observer) for observer in OBSERVERS),
    post_training("static int8: one scale a tensor", granularity="tensor"),
    post_training("static int8: asymmetric weights", symmetric=False),
    post_training("static int8: + equalization, bias correction", equalize=True, bias_correction=True),
    quantization_aware("static int8: quantization-aware", 8, INT8),
    post_training("4-bit weights: nearest", 4),
    post_training("4-bit weights: AdaRound", 4, bound=FOUR_BITS, adaround_steps=200),
    quantization_aware("4-bit weights: quantization-aware", 4, FOUR_BITS),
    quantization_aware("4-bit weights: learned steps (LSQ)", 4, FOUR_BITS, learned_step=True),
    quantization_aware("4-bit weights: progressive", 4, FOUR_BITS, progressive=True),
    *(weight_only(bits) for bits in (8, 4, 3, 2)),
    pruned("l2", "l2", smoke=True),
    *(pruned(name, name) for name in CRITERIA),
    pruned("l2 + taylor", {"l2": 0.5, "taylor": 0.5}),
    pruned("l2, in four cuts", "l2", schedule="cubic"),
    blocks(),
    sparsified("50 % of each layer", HALF_ZEROS, sparsity=0.5),
    sparsified("50 % of all, one threshold", HALF_ZEROS, share=0.5),
    sparsified("2:4", pattern="2:4"),
    head("SVD of the head", "svd"),
    head("activation-aware SVD of the head", "activation_svd"),
    low_rank("Tucker-2", "tucker2", rank=RANK),
    low_rank("CP", "cp", rank=1.0),
    low_rank("spatial SVD", "spatial_svd", rank=RANK),
    low_rank("spatial SVD, 70 % of the energy", "spatial_svd", energy=0.7, smoke=True),
    student("no teacher", alone=True),
    student("logits", Bound(least_kept=0.97, least_smaller=9.5), smoke=True),
    student("+ features", feature_weight=1.0, by_features=True),
    student("+ attention maps", attention_weight=100.0, by_features=True),
    *(student(f"+ {augmentation}", augmentation=augmentation) for augmentation in ("mixup", "cutmix", "randaugment")),
    student("+ assistant", assisted=True),
    combined(("prune", "distill", "quantize")),
    combined(("distill", "prune", "quantize"), CHAIN, gradual=True),
    combined(("distill", "prune", "distill", "quantize"), smoke=True),
    Row("half the channels, half zeros, 4-bit weights", everything),
)
