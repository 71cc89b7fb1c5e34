"""What can go wrong, as a tree.

    AutocompressError
    ├── UserError                 the input is wrong: one line, exit code 2, no traceback
    │   ├── InvalidRecipe         a recipe that does not read, or names what the model does not have
    │   ├── InvalidSpace          a search space or configuration that does not read
    │   ├── InvalidTask           a task that cannot be imported, built or run on its own example
    │   ├── InvalidStudy          a study that is absent, taken, changed, or measured elsewhere
    │   ├── InvalidArtifact       an exported folder with a file missing or changed
    │   └── MissingDependency     a runtime whose package is not installed; names the pip command
    ├── InfeasibleRecipe          a well-formed recipe that this model or target cannot realize  -> outcome `infeasible`
    └── Diverged                  recovery produced a loss that is not finite                     -> outcome `diverged`

The last two end a trial, never a study; everything else that is raised stops the study with its traceback.
"""

from collections.abc import Sequence

from pydantic import ValidationError


class AutocompressError(Exception):
    """Root of every error that this package raises on purpose."""


class UserError(AutocompressError):
    """The user's input is wrong; the message says rule, value, place and next step."""


class InvalidRecipe(UserError):
    """A recipe that cannot be read or does not belong to this model."""


class InvalidSpace(UserError):
    """A search space or a configuration value that cannot be read."""


class InvalidTask(UserError):
    """A task that cannot be imported, built, or run on its own example."""


class InvalidStudy(UserError):
    """A study that does not exist, exists already, is in use, or does not fit task or machine."""


class InvalidArtifact(UserError):
    """An exported folder that is none, or that is no longer what was exported."""


class MissingDependency(UserError):
    """A package that an optional part needs is not installed."""


class InfeasibleRecipe(AutocompressError):
    """A well-formed recipe that this model or this target cannot realize."""


class Diverged(AutocompressError):
    """Recovery training produced a loss that is not finite."""


def field_path(location: Sequence[str | int]) -> str:
    """``("layers", 3, "keep")`` -> ``"layers[3].keep"``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "(top level)"


def explain(error: ValidationError, source: str) -> str:
    """One line for every field that pydantic refused: file, path of the field, rule, value."""
    lines = []
    for item in error.errors():
        value = "" if item["type"] in ("missing", "extra_forbidden") else f" (got {item['input']!r:.80})"
        rule = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{source}: {field_path(item['loc'])}: {rule}{value}")
    return "\n".join(lines)
