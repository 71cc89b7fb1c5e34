"""The hub: what to do to every layer, how to recover, with which seed. Plain frozen data; it knows no library and does nothing."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autocompress.errors import InvalidRecipe, explain

FLOAT_BITS = 32
Bits = int  # 2 to 16, or 32 for float; which of them a target realizes is the runtime's to say


def check_bits(bits: int) -> int:
    if not (2 <= bits <= 16 or bits == FLOAT_BITS):
        raise ValueError("bits must be 2 to 16, or 32 for float")
    return bits


class Frozen(BaseModel):
    """Immutable, refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


class LayerPlan(Frozen):
    """One layer: share of output channels that stay, rank of its factorization, bits of weights and of its input.

    ``keep`` is the *kept* share (0 < keep <= 1); ``rank`` is absolute and counted after pruning; ``None`` leaves the layer dense.
    """

    name: str = Field(min_length=1)
    keep: float = Field(default=1.0, gt=0.0, le=1.0)
    rank: int | None = Field(default=None, ge=1)
    weight_bits: Bits = FLOAT_BITS
    activation_bits: Bits = FLOAT_BITS

    _bits = field_validator("weight_bits", "activation_bits")(check_bits)

    @property
    def is_quantized(self) -> bool:
        return self.weight_bits < FLOAT_BITS or self.activation_bits < FLOAT_BITS


class Distillation(Frozen):
    """Loss = hard_weight * task loss + soft_weight * T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015)."""

    temperature: float = Field(default=4.0, gt=0.0, le=100.0)
    soft_weight: float = Field(default=0.7, ge=0.0)
    hard_weight: float = Field(default=0.3, ge=0.0)

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.soft_weight + self.hard_weight == 0:
            raise ValueError("soft_weight and hard_weight are both 0: there would be no loss")
        return self


class Recovery(Frozen):
    """Training after the cut: steps in float, then steps with fake quantization; learning rate at the peak; seed of data order."""

    steps: int = Field(default=200, ge=0)
    quantized_steps: int = Field(default=50, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=10.0)
    seed: int = Field(default=0, ge=0)


class Recipe(Frozen):
    """All that determines the accuracy of a compressed model, given the task and the version of this code."""

    schema_version: Literal[1] = 1
    layers: tuple[LayerPlan, ...] = ()
    distillation: Distillation | None = Distillation()
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [plan.name for plan in self.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"layers: more than one plan for {', '.join(twice)}")
        return self

    @property
    def plans(self) -> dict[str, LayerPlan]:
        return {plan.name: plan for plan in self.layers}

    @property
    def digest(self) -> str:
        """Hex digest of the canonical JSON; plans that change nothing and the order of plans do not count."""
        content = self.model_dump(mode="json")
        plans = (plan for plan in self.layers if plan != LayerPlan(name=plan.name))
        content["layers"] = [plan.model_dump(mode="json") for plan in sorted(plans, key=lambda plan: plan.name)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML, one line a layer, readable and editable by hand."""
    content = recipe.model_dump(mode="json", exclude={"layers"})
    head = yaml.safe_dump(content, sort_keys=False)
    rows = [plan.model_dump(mode="json", exclude_none=True) for plan in recipe.layers]
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
