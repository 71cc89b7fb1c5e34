"""The hub: what to do to every layer, in which order, how to recover, with which seed. Plain frozen data that does nothing.

Recipe
├── student         another architecture, built by the task, instead of the given model
├── layers          LayerPlan: one layer, attention module or residual block by name
├── pruning         how channels, heads and weights are chosen, and in how many steps they go
├── quantization    how ranges are found, and what saves accuracy on the grid
├── distillation    who teaches, and by what
├── recovery        steps, optimizer, schedule, seed
└── order           the stages, one after the other
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autocompress.errors import InvalidRecipe, explain

FLOAT_BITS, HALF_BITS = 32, 16
Bits = int  # weights: 2 to 8; inputs: 8; both: 16 for half floats, 32 for float. Which of them a target realizes is the runtime's to say
Importance = Literal["l1", "l2", "random", "bn_scale", "gradient", "taylor", "activation", "hessian", "entropy"]
Scheme = Literal["none", "half", "dynamic", "static", "weight_only"]
Stage = Literal["prune", "factorize", "sparsify", "distill", "quantize"]


def check_bits(bits: int) -> int:
    if not (2 <= bits <= 8 or bits in (HALF_BITS, FLOAT_BITS)):
        raise ValueError("bits must be 2 to 8, 16 for half floats, or 32 for float")
    return bits


def check_activation_bits(bits: int) -> int:
    if bits not in (8, HALF_BITS, FLOAT_BITS):
        raise ValueError("activation bits must be 8, 16 for half floats, or 32 for float")
    return bits


class Frozen(BaseModel):
    """Immutable, refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


class LayerPlan(Frozen):
    """One layer: what stays of it and in how many bits.

    ``keep`` is the *kept* share of its output channels (of an attention module: of its heads); ``drop`` leaves out a residual block
    whole. ``sparsity`` is the share of weights set to 0, ``pattern`` "N:M" leaves N of every M neighbouring inputs of an output.
    ``rank`` is absolute and counted after pruning; ``energy`` asks for the least rank that keeps this share of the squared singular
    values; without both the layer stays dense. Bits: integers up to 8, half floats 16, float 32. Integer weights with float
    inputs are weight-only.
    """

    name: str = Field(min_length=1)
    keep: float = Field(default=1.0, gt=0.0, le=1.0)
    drop: bool = False
    sparsity: float = Field(default=0.0, ge=0.0, lt=1.0)
    pattern: str | None = None
    rank: int | None = Field(default=None, ge=1)
    energy: float | None = Field(default=None, gt=0.0, lt=1.0)
    factorization: Literal["auto", "svd", "activation_svd", "tucker2", "cp", "spatial_svd"] = "auto"
    weight_bits: Bits = FLOAT_BITS
    activation_bits: Bits = FLOAT_BITS

    _bits = field_validator("weight_bits")(check_bits)
    _activation_bits = field_validator("activation_bits")(check_activation_bits)

    @field_validator("pattern")
    @classmethod
    def _n_of_m(cls, pattern: str | None) -> str | None:
        found = re.fullmatch(r"(\d+):(\d+)", pattern or "1:2")
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError('pattern must be "N:M" with 0 < N < M, such as "2:4"')
        return pattern

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.rank is not None and self.energy is not None:
            raise ValueError("rank and energy both say how much of the factorization stays; give one of them")
        if self.sparsity and self.pattern:
            raise ValueError("sparsity and pattern both say which weights become 0; give one of them")
        return self

    @property
    def is_quantized(self) -> bool:
        return min(self.weight_bits, self.activation_bits) < FLOAT_BITS

    @property
    def is_factorized(self) -> bool:
        return self.rank is not None or self.energy is not None

    @property
    def is_sparse(self) -> bool:
        return self.sparsity > 0 or self.pattern is not None

    @property
    def is_cut(self) -> bool:
        return self.keep < 1 or self.drop


class Student(Frozen):
    """A network of its own, from the task's ``build_student(width, depth)``; bits of its layers that have no plan of their own."""

    width: float = Field(default=1.0, gt=0.0, le=4.0)
    depth: float = Field(default=1.0, gt=0.0, le=4.0)
    weight_bits: Bits = FLOAT_BITS
    activation_bits: Bits = FLOAT_BITS

    _bits = field_validator("weight_bits")(check_bits)
    _activation_bits = field_validator("activation_bits")(check_activation_bits)


class Pruning(Frozen):
    """How channels, heads and weights are chosen, and in how many cuts they go.

    ``importance``: weights of the criteria that are added, each scaled to a mean of 1. ``cubic``: ``iterations`` cuts along
    1 - (1 - t)^3 with ``steps_between`` recovery steps after each (Zhu and Gupta 2017). ``global_sparsity``: share of all weights of the
    layers without a sparsity of their own that become 0, by one threshold.
    """

    importance: dict[Importance, float] = {"l2": 1.0}
    schedule: Literal["one_shot", "cubic"] = "one_shot"
    iterations: int = Field(default=4, ge=1, le=100)
    steps_between: int = Field(default=20, ge=0)
    global_sparsity: float = Field(default=0.0, ge=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)

    @field_validator("importance", mode="before")
    @classmethod
    def _one_name(cls, importance: Any) -> Any:
        return {importance: 1.0} if isinstance(importance, str) else importance

    @field_validator("importance")
    @classmethod
    def _some(cls, importance: dict[Importance, float]) -> dict[Importance, float]:
        if not importance or min(importance.values()) < 0 or sum(importance.values()) == 0:
            raise ValueError("importance needs at least one criterion with a weight above 0, and none below")
        return dict(sorted(importance.items()))


class Quantization(Frozen):
    """How scales and zero points are found (Jacob et al. 2018), and what saves accuracy on the grid.

    ``activations``: ranges from calibration (static) or from each input (dynamic). ``granularity``: what shares one scale: a tensor, an
    output channel, or a group of ``group_size`` neighbouring inputs of a channel. ``observer`` finds ranges of activations,
    ``weight_observer`` those of weights. ``adaround_steps``: steps of adaptive rounding a layer. During quantized training:
    ``learned_step`` trains the scales (LSQ), ``progressive`` anneals weight bits from 8 to the target, and from ``freeze_after`` (share
    of the steps) on scales and batch norm stand still.
    """

    activations: Literal["static", "dynamic"] = "static"
    half: Literal["fp16", "bf16"] = "fp16"
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int = Field(default=32, ge=2, le=4096)
    symmetric: bool = True
    symmetric_activations: bool = False
    observer: Literal["minmax", "moving_average", "percentile", "entropy", "mse"] = "minmax"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    weight_observer: Literal["minmax", "mse"] = "minmax"
    equalize: bool = False
    bias_correction: bool = False
    adaround_steps: int = Field(default=0, ge=0)
    learned_step: bool = False
    progressive: bool = False
    freeze_after: float = Field(default=0.8, ge=0.0, le=1.0)


class Assistant(Frozen):
    """A network between teacher and student (Mirzadeh et al. 2020): the given model at ``keep`` channels, taught for ``steps`` steps."""

    keep: float = Field(default=0.7, gt=0.0, le=1.0)
    steps: int = Field(default=100, ge=1)


class Distillation(Frozen):
    """Loss = hard_weight * task loss + ramp(t) * (soft_weight * T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015)
    + feature_weight * mean square of adapted features (Romero et al. 2015) + attention_weight * distance of attention maps
    (Zagoruyko and Komodakis 2017)).

    ``features``: modules compared, by name, or "student=teacher" where the names differ. ``teachers``: weights of the task's teachers
    by name, "model" being the uncompressed one; empty means that one alone. ``ramp``: share of the steps in which the weight of the
    teacher rises from 0. ``augmentation`` is applied to inputs on the device, and the teacher sees the same ones.
    """

    temperature: float = Field(default=4.0, gt=0.0, le=100.0)
    soft_weight: float = Field(default=0.7, ge=0.0)
    hard_weight: float = Field(default=0.3, ge=0.0)
    feature_weight: float = Field(default=0.0, ge=0.0)
    attention_weight: float = Field(default=0.0, ge=0.0)
    features: tuple[str, ...] = ()
    teachers: dict[str, float] = {}
    ramp: float = Field(default=0.0, ge=0.0, le=1.0)
    augmentation: Literal["none", "mixup", "cutmix", "randaugment"] = "none"
    assistant: Assistant | None = None

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.soft_weight + self.hard_weight + self.feature_weight + self.attention_weight == 0:
            raise ValueError("soft_weight and hard_weight are both 0: there would be no loss")
        if (self.feature_weight or self.attention_weight) and not self.features:
            raise ValueError("feature_weight and attention_weight need `features`: names of the modules to compare")
        if self.teachers and (min(self.teachers.values()) < 0 or sum(self.teachers.values()) == 0):
            raise ValueError("teachers: weights must not be below 0, nor all be 0")
        return self


class Recovery(Frozen):
    """Training after the cut: steps in float, then steps with fake quantization; learning rate at the peak; seed of data order.

    ``ema``: decay of the moving average of the weights that is kept in the end (0: the last weights). ``batch_norm_batches``: training
    batches from which batch norm statistics are taken anew afterwards. ``precision`` mixed: bfloat16 autocast on CUDA.
    """

    steps: int = Field(default=200, ge=0)
    quantized_steps: int = Field(default=50, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=10.0)
    seed: int = Field(default=0, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    weight_decay: float = Field(default=1e-4, ge=0.0)
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    batch_norm_batches: int = Field(default=0, ge=0)
    precision: Literal["float32", "mixed"] = "float32"


ORDER: tuple[Stage, ...] = ("prune", "factorize", "sparsify", "distill", "quantize")


class Recipe(Frozen):
    """All that determines the accuracy of a compressed model, given the task and the version of this code."""

    schema_version: Literal[2] = 2
    student: Student | None = None
    layers: tuple[LayerPlan, ...] = ()
    pruning: Pruning = Pruning()
    quantization: Quantization = Quantization()
    distillation: Distillation | None = Distillation()
    recovery: Recovery = Recovery()
    order: tuple[Stage, ...] = ORDER

    @field_validator("schema_version", mode="before")
    @classmethod
    def _reads_version_1(cls, version: Any) -> Any:
        return 2 if version == 1 else version  # the fields that came with 2 default to what 1 did

    @field_validator("order")
    @classmethod
    def _meaningful(cls, order: tuple[Stage, ...]) -> tuple[Stage, ...]:
        reason = refused_order(order)
        if reason:
            raise ValueError(f"{' -> '.join(order) or 'no stage'}: {reason}")
        return order

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [plan.name for plan in self.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"layers: more than one plan for {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _every_plan_has_its_stage(self) -> Self:
        asks = {
            "prune": any(plan.is_cut for plan in self.layers),
            "factorize": any(plan.is_factorized for plan in self.layers),
            "sparsify": any(plan.is_sparse for plan in self.layers) or self.pruning.global_sparsity > 0,
            "quantize": self.is_quantized,
        }
        missing = [stage for stage, asked in asks.items() if asked and stage not in self.order]
        if missing:
            raise ValueError(f"order: {' -> '.join(self.order)} lacks {', '.join(missing)}, which the layers ask for; add it")
        return self

    @property
    def plans(self) -> dict[str, LayerPlan]:
        return {plan.name: plan for plan in self.layers}

    @property
    def is_quantized(self) -> bool:
        student = self.student is not None and min(self.student.weight_bits, self.student.activation_bits) < FLOAT_BITS
        return student or any(plan.is_quantized for plan in self.layers)

    @property
    def digest(self) -> str:
        """Hex digest of the canonical JSON; plans that change nothing and the order of plans do not count."""
        content = self.model_dump(mode="json")
        plans = (plan for plan in self.layers if plan != LayerPlan(name=plan.name))
        content["layers"] = [plan.model_dump(mode="json") for plan in sorted(plans, key=lambda plan: plan.name)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def refused_order(order: tuple[Stage, ...]) -> str:
    """Why these stages cannot follow each other, or an empty string."""
    place = {stage: order.index(stage) for stage in order}
    twice = [stage for stage in get_args(Stage) if stage != "distill" and order.count(stage) > 1]
    if not order:
        return "a recipe has at least one stage; leave `order` out for the usual one"
    if twice:
        return f"{twice[0]} comes twice; a plan says what stays once, counted from the given model"
    if "quantize" in place and place["quantize"] != len(order) - 1:
        return "quantize must come last: what follows would move weights off their grid (training on the grid is recovery.quantized_steps)"
    for first, second, why in (
        ("prune", "factorize", "ranks are counted after pruning, and the factors of a layer cannot be cut"),
        ("prune", "sparsify", "a mask is chosen for the weights that stay"),
        ("factorize", "sparsify", "the factors of a masked weight are dense again"),
    ):
        if first in place and second in place and place[first] > place[second]:
            return f"{first} must come before {second}: {why}"
    if any(pair == ("distill", "distill") for pair in itertools.pairwise(order)):
        return "distill twice in a row is one stage; raise recovery.steps instead"
    return ""


def scheme_of(weight_bits: int, activation_bits: int, settings: Quantization) -> Scheme:
    """By which scheme a layer of these bits is quantized: integer inputs decide first, then integer weights, then half floats."""
    if activation_bits <= 8:
        return settings.activations
    if weight_bits <= 8:
        return "weight_only"
    return "half" if min(weight_bits, activation_bits) == HALF_BITS else "none"


ALWAYS_SHOWN = ("name", "keep", "weight_bits", "activation_bits")


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML, one line a layer, readable and editable by hand."""
    content = recipe.model_dump(mode="json", exclude={"layers"})
    head = yaml.safe_dump(content, sort_keys=False)
    plain = LayerPlan(name="any").model_dump(mode="json")
    rows = [
        {name: value for name, value in plan.model_dump(mode="json").items() if name in ALWAYS_SHOWN or value != plain[name]}
        for plan in recipe.layers
    ]
    lines = [yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=1000).strip() for row in rows]
    return head + ("layers:\n" + "".join(f"  - {line}\n" for line in lines) if lines else "layers: []\n")


def from_yaml(text: str, source: str = "recipe") -> Recipe:
    """Read a recipe; raises InvalidRecipe with the path of every field that is wrong."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRecipe(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise InvalidRecipe(f"{source}: a recipe is a mapping with the key `layers`, got {type(content).__name__}")
    return from_mapping(content, source)


def from_mapping(content: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InvalidRecipe(explain(error, source)) from None
