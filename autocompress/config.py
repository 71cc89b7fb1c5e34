"""SearchConfig: the search space from YAML plus the command line, as one frozen, stored thing. An unknown key is an error with its path."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autocompress.bounds import OBJECTIVES, Constraint, contradiction, parse_constraint
from autocompress.errors import InvalidSpace, explain
from autocompress.recipe import (
    FLOAT_BITS,
    ORDER,
    Assistant,
    Distillation,
    Frozen,
    LayerPlan,
    Pruning,
    Quantization,
    Recovery,
    Stage,
    Student,
    check_bits,
    refused_order,
)
from autocompress.records import Target

PACKAGE = Path(__file__).resolve().parent
# A wheel carries the spaces inside the package, a checkout has them beside it.
SPACES = PACKAGE / "search_spaces" if (PACKAGE / "search_spaces").is_dir() else PACKAGE.parent / "search_spaces"
DEFAULT_SPACE = "default"

Tie = Literal["layer", "model"]


class Shares(Frozen):
    """Shares to choose from, 1.0 meaning untouched; ``tie: model`` gives every layer the same one."""

    choices: tuple[float, ...] = Field(min_length=1)
    tie: Tie = "layer"

    @field_validator("choices")
    @classmethod
    def _shares(cls, choices: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in choices):
            raise ValueError("every share must be above 0 and at most 1")
        return tuple(sorted(set(choices)))


class BitChoices(Frozen):
    """Bit widths to choose from; those that the target does not run are left out, with the reason shown.

    ``real``: only widths with a kernel of their own, and of several integer ones the widest, for the kernel is the same. Without it every
    width that runs at all is a choice: fewer bits make the file smaller, not the model faster.
    """

    choices: tuple[int, ...] = Field(min_length=1)
    tie: Tie = "layer"
    real: bool = True

    @field_validator("choices")
    @classmethod
    def _bits(cls, choices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({check_bits(bits) for bits in choices}))


def one_or_more(value: Any) -> Any:
    """A single value is a ladder of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


T = TypeVar("T")
Ladder = Annotated[tuple[T, ...], BeforeValidator(one_or_more), Field(min_length=1)]


class Settings(Frozen):
    """What a part of the recipe may be: each field a value or a list of values to choose from, under the rules of the recipe itself."""

    part: ClassVar[type[Frozen]]
    beside: ClassVar[Mapping[str, Any]] = {}  # other fields that the value of one needs to be valid

    @property
    def ladders(self) -> dict[str, tuple[Any, ...]]:
        """The fields that hold values to choose from, by name; ``features`` is a tuple in the recipe as well."""
        return {name: value for name, value in self if isinstance(value, tuple) and name != "features"}

    @field_validator("*")
    @classmethod
    def _as_the_recipe_has_it(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        for one in value if isinstance(value, tuple) and name != "features" else ():
            try:
                cls.part.model_validate({**cls.beside, name: one})
            except ValidationError as error:
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return value


class DistillationSpace(Settings):
    """Settings of the distillation loss to choose from; hard_weight is 1 - soft_weight."""

    part = Distillation
    beside = {"features": ("any",), "hard_weight": 1.0}
    temperature: Ladder[float] = (4.0,)
    soft_weight: Ladder[float] = (0.7,)
    feature_weight: Ladder[float] = (0.0,)
    attention_weight: Ladder[float] = (0.0,)
    features: tuple[str, ...] = ()
    teachers: Ladder[dict[str, float]] = ({},)
    ramp: Ladder[float] = (0.0,)
    augmentation: Ladder[str] = ("none",)
    assistant: Ladder[Assistant | None] = (None,)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if any(not 0 <= weight <= 1 for weight in self.soft_weight):
            raise ValueError("soft_weight must be between 0 and 1")
        if max(*self.feature_weight, *self.attention_weight) > 0 and not self.features:
            raise ValueError("feature_weight and attention_weight need `features`: names of the modules to compare")
        return self


class RecoverySpace(Settings):
    """Training after the cut: fixed step counts, the rest to choose from."""

    part = Recovery
    steps: int = Field(default=200, ge=0)
    quantized_steps: int = Field(default=50, ge=0)
    learning_rate: Ladder[float] = (1e-3,)
    optimizer: Ladder[str] = ("adamw",)
    schedule: Ladder[str] = ("one_cycle",)
    weight_decay: Ladder[float] = (1e-4,)
    ema: Ladder[float] = (0.0,)
    batch_norm_batches: int = Field(default=0, ge=0)
    precision: Literal["float32", "mixed"] = "float32"


class PruningSpace(Settings):
    """How channels, heads and weights are chosen: criteria (a name, or weights by name) and schedules to choose from."""

    part = Pruning
    importance: Ladder[str | dict[str, float]] = ("l2",)
    schedule: Ladder[str] = ("one_shot",)
    iterations: int = Field(default=4, ge=1, le=100)
    steps_between: int = Field(default=20, ge=0)
    global_sparsity: Ladder[float] = (0.0,)


class QuantizationSpace(Settings):
    """Schemes, ranges and what saves accuracy on the grid, to choose from."""

    part = Quantization
    activations: Ladder[str] = ("static",)
    half: Literal["fp16", "bf16"] = "fp16"
    granularity: Ladder[str] = ("channel",)
    group_size: Ladder[int] = (32,)
    symmetric: Ladder[bool] = (True,)
    symmetric_activations: Ladder[bool] = (False,)
    observer: Ladder[str] = ("minmax",)
    percentile: Ladder[float] = (99.99,)
    weight_observer: Ladder[str] = ("minmax",)
    equalize: Ladder[bool] = (False,)
    bias_correction: Ladder[bool] = (False,)
    adaround_steps: Ladder[int] = (0,)
    learned_step: Ladder[bool] = (False,)
    progressive: Ladder[bool] = (False,)
    freeze_after: Ladder[float] = (0.8,)


class StudentSpace(Settings):
    """Networks of another width and depth, from the task's ``build_student``, as a choice beside the given model."""

    part = Student
    width: Ladder[float] = (0.5,)
    depth: Ladder[float] = (1.0,)


class Rule(Frozen):
    """Pins what is given for every layer whose name matches the pattern (shell wildcards); ``exclude: true`` leaves it as it is."""

    match: str = Field(min_length=1)
    exclude: bool = False
    keep: float | None = Field(default=None, gt=0, le=1)
    drop: bool | None = None
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    rank: float | None = Field(default=None, gt=0, le=1)
    weight_bits: int | None = None

    @field_validator("weight_bits")
    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        return None if bits is None else check_bits(bits)


class Sparsities(Frozen):
    """Shares of weights that become 0, and "N:M" patterns, to choose from; 0 leaves a layer dense."""

    choices: tuple[float | str, ...] = Field(default=(0.0,), min_length=1)
    tie: Tie = "layer"

    @field_validator("choices")
    @classmethod
    def _shares(cls, choices: tuple[float | str, ...]) -> tuple[float | str, ...]:
        for one in choices:
            LayerPlan.model_validate({"name": "any", "pattern": one} if isinstance(one, str) else {"name": "any", "sparsity": one})
        return tuple(sorted(set(choices), key=lambda one: (isinstance(one, str), one)))


class Space(Frozen):
    """A search space: what may vary, by how much, and which layers are pinned or left alone (the first matching rule counts)."""

    description: str = ""
    student: StudentSpace | None = None
    keep: Shares = Shares(choices=(1.0,))
    heads: Shares = Shares(choices=(1.0,))
    drop: bool = Field(default=False, description="residual blocks may be left out whole")
    sparsity: Sparsities = Sparsities()
    rank: Shares = Shares(choices=(1.0,))
    energy: Shares = Field(default=Shares(choices=(1.0,)), description="share of the squared singular values that a rank keeps")
    factorization: Ladder[str] = ("auto",)
    weight_bits: BitChoices = BitChoices(choices=(FLOAT_BITS,))
    activation_bits: BitChoices = BitChoices(choices=(8,))
    layers: tuple[Rule, ...] = ()
    pruning: PruningSpace = PruningSpace()
    quantization: QuantizationSpace = QuantizationSpace()
    distillation: DistillationSpace | None = DistillationSpace()
    recovery: RecoverySpace = RecoverySpace()
    order: tuple[tuple[Stage, ...], ...] = Field(default=(ORDER,), min_length=1)
    objectives: tuple[str, ...] = Field(default=("speedup", "drop"), description="what a front is about: these two, and more if named")
    near: dict[str, int] = Field(
        default={}, description="by dimension, a choice counted from 0: only it and its neighbours are left; `autocompress refine` sets it"
    )

    @field_validator("objectives")
    @classmethod
    def _measurable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in OBJECTIVES]
        if unknown:
            raise ValueError(f"{unknown[0]} is no objective; known: {', '.join(OBJECTIVES)}")
        if names[:2] != ("speedup", "drop") or len(set(names)) < len(names):
            raise ValueError("objectives begin with speedup and drop, which every bound is about, and name each further quantity once")
        return names

    @field_validator("factorization")
    @classmethod
    def _methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            LayerPlan.model_validate({"name": "any", "factorization": method})
        return methods

    @field_validator("order")
    @classmethod
    def _meaningful(cls, orders: tuple[tuple[Stage, ...], ...]) -> tuple[tuple[Stage, ...], ...]:
        for order in orders:
            if reason := refused_order(order):
                raise ValueError(f"{' -> '.join(order)}: {reason}")
        return orders


class Budget(Frozen):
    """Either a number of finished trials in all, or seconds of wall clock."""

    trials: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.trials is None) == (self.seconds is None):
            raise ValueError("a budget is either trials or seconds")
        return self

    def __str__(self) -> str:
        if self.trials is not None:
            return f"{self.trials} finished trials in all"
        return f"{(self.seconds or 0) / 60:g} minutes of wall clock"


Sampler = Literal["auto", "tpe", "nsga2", "nsga3", "gp", "random", "qmc"]
Part = Literal["survey", "analytic", "gate", "accuracy_model"]
PARTS: tuple[Part, ...] = get_args(Part)


class SearchConfig(Frozen):
    """Everything that was asked of a search; stored as config.yaml, so that a study can be resumed.

    ``sampler``: auto is this program's own search; the others are Optuna's, alone, over the same space. ``parts`` of the own search may
    be left out to see what each earns.
    """

    study: str
    task: str
    task_options: dict[str, str] = Field(default={}, description="as the factory of the task takes them; paths are absolute")
    space: Space
    budget: Budget
    target: Target
    device: str = "cpu"
    max_drop: float = Field(default=3.0, ge=0)
    min_speedup: float = Field(default=2.0, gt=0)
    constraints: tuple[str, ...] = Field(default=(), description="as `parse_constraint` reads them")
    seed: int = Field(default=0, ge=0)
    storage: str | None = None
    sampler: Sampler = "auto"
    parts: tuple[Part, ...] = PARTS
    stop_when_flat: bool = False
    warm_start: str | None = Field(default=None, description="another study of the same folder, whose front is tried early")

    @field_validator("constraints")
    @classmethod
    def _readable(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_constraint(text)) for text in constraints))

    @model_validator(mode="after")
    def _bounds_can_hold(self) -> Self:
        if found := contradiction((Constraint("drop", "<=", self.max_drop), Constraint("speedup", ">=", self.min_speedup), *self.limits)):
            raise ValueError(f"constraints: {found}")
        return self

    @property
    def limits(self) -> tuple[Constraint, ...]:
        return tuple(map(parse_constraint, self.constraints))


def parts_without(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of the own search that stay. Raises InvalidSpace for a name that is none."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise InvalidSpace(f"--without: must be {', '.join(PARTS)}, got {unknown[0]!r}")
    return tuple(part for part in PARTS if part not in names)


def parse_budget(text: str | int) -> Budget:
    """``50`` -> 50 trials; ``"20m"``, ``"2h"``, ``"90s"`` -> wall clock. Raises InvalidSpace otherwise."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if found:
        amount, unit = float(found[1]), found[2]
        if amount > 0 and unit:
            return Budget(seconds=amount * {"s": 1, "m": 60, "h": 3600}[unit])
        if amount >= 1 and amount == int(amount):
            return Budget(trials=int(amount))
    raise InvalidSpace(f"--budget: must be a whole number of trials of at least 1 (50) or a time (90s, 20m, 2h), got {text!r}")


def parse_counts(option: str, text: str | int | Sequence[int]) -> tuple[int, ...]:
    """What ``option`` was given, ``8`` or ``"8"`` -> (8,); ``"1,8,32"`` or (1, 8, 32) -> (1, 8, 32). Raises InvalidSpace otherwise."""
    parts = text.split(",") if isinstance(text, str) else [text] if isinstance(text, int) else list(text)
    sizes = [int(str(part)) for part in parts if re.fullmatch(r"\s*\d+\s*", str(part))]
    if not parts or len(sizes) < len(parts) or min(sizes) < 1:
        raise InvalidSpace(f"{option}: must be a whole number of at least 1, or several with commas (1,8,32), got {text!r}")
    return tuple(sorted(set(sizes)))


def load_space(source: str | Path) -> Space:
    """A space by file, or by the name of one in search_spaces/. Raises InvalidSpace with the path of every wrong field."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        path = SPACES / f"{source}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in SPACES.glob("*.yaml"))) or "none"
        raise InvalidSpace(f"--space: no file {path}. Give a YAML file or one of the built-in spaces: {known}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpace(f"--space: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InvalidSpace(f"--space: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InvalidSpace(f"--space: {path} must be a mapping of settings, got {type(content).__name__}")
    try:
        return Space.model_validate(content)
    except ValidationError as error:
        raise InvalidSpace(explain(error, str(path))) from None


def search_config(target: Mapping[str, Any], **fields: Any) -> SearchConfig:
    """A SearchConfig from plain values. Raises InvalidSpace in one line for each that is unknown or out of range."""
    try:
        return SearchConfig.model_validate({"target": dict(target), **fields})
    except ValidationError as error:
        raise InvalidSpace(explain(error, "settings")) from None
