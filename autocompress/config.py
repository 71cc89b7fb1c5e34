"""SearchConfig: the search space from YAML plus the command line, as one frozen, stored thing. An unknown key is an error with its path."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from autocompress.errors import InvalidSpace, explain
from autocompress.recipe import FLOAT_BITS, Frozen, check_bits
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
    """Bit widths to choose from; those that no kernel of the target realizes are left out, with the reason shown."""

    choices: tuple[int, ...] = Field(min_length=1)
    tie: Tie = "layer"

    @field_validator("choices")
    @classmethod
    def _bits(cls, choices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({check_bits(bits) for bits in choices}))


class DistillationSpace(Frozen):
    """Settings of the distillation loss to choose from; hard_weight is 1 - soft_weight."""

    temperature: tuple[float, ...] = Field(default=(4.0,), min_length=1)
    soft_weight: tuple[float, ...] = Field(default=(0.7,), min_length=1)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if any(not 0 <= weight <= 1 for weight in self.soft_weight):
            raise ValueError("soft_weight must be between 0 and 1")
        if any(not 0 < value <= 100 for value in self.temperature):
            raise ValueError("temperature must be above 0 and at most 100")
        return self


class RecoverySpace(Frozen):
    """Training after the cut: fixed step counts, learning rates to choose from."""

    steps: int = Field(default=200, ge=0)
    quantized_steps: int = Field(default=50, ge=0)
    learning_rate: tuple[float, ...] = Field(default=(1e-3,), min_length=1)

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate <= 10 for rate in rates):
            raise ValueError("learning_rate must be above 0 and at most 10")
        return tuple(sorted(set(rates)))


class Rule(Frozen):
    """Pins what is given for every layer whose name matches the pattern (shell wildcards); ``exclude: true`` leaves it as it is."""

    match: str = Field(min_length=1)
    exclude: bool = False
    keep: float | None = Field(default=None, gt=0, le=1)
    rank: float | None = Field(default=None, gt=0, le=1)
    weight_bits: int | None = None

    @field_validator("weight_bits")
    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        return None if bits is None else check_bits(bits)


class Space(Frozen):
    """A search space: what may vary, by how much, and which layers are pinned or left alone (the first matching rule counts)."""

    description: str = ""
    keep: Shares = Shares(choices=(1.0,))
    rank: Shares = Shares(choices=(1.0,))
    weight_bits: BitChoices = BitChoices(choices=(FLOAT_BITS,))
    activation_bits: BitChoices = BitChoices(choices=(8,))
    layers: tuple[Rule, ...] = ()
    distillation: DistillationSpace | None = DistillationSpace()
    recovery: RecoverySpace = RecoverySpace()


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


class SearchConfig(Frozen):
    """Everything that was asked of a search; stored as config.yaml, so that a study can be resumed."""

    study: str
    task: str
    space: Space
    budget: Budget
    target: Target
    device: str = "cpu"
    max_drop: float = Field(default=3.0, ge=0)
    min_speedup: float = Field(default=2.0, gt=0)
    seed: int = Field(default=0, ge=0)
    storage: str | None = None


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
