"""Compress a trained PyTorch model for the machine it must be fast on: ``autocompress.search(task, budget=50)``.

The public names are imported when they are first asked for, so that ``import autocompress`` costs nothing and loads no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.compare import compare
    from autocompress.config import SearchConfig, Space
    from autocompress.errors import AutocompressError, UserError
    from autocompress.job import apply, doctor, explain, export, inspect, load, resume, search, show, verify
    from autocompress.recipe import Distillation, LayerPlan, Recipe, Recovery
    from autocompress.records import Measurement, Target, TrialResult
    from autocompress.refine import refine
    from autocompress.study.ask import ask
    from autocompress.tasks.task import Task

__version__ = "0.1.0"

__all__ = [
    "AutocompressError",
    "Distillation",
    "LayerPlan",
    "Measurement",
    "Recipe",
    "Recovery",
    "SearchConfig",
    "Space",
    "Target",
    "Task",
    "TrialResult",
    "UserError",
    "apply",
    "ask",
    "compare",
    "doctor",
    "explain",
    "export",
    "inspect",
    "load",
    "refine",
    "resume",
    "search",
    "show",
    "verify",
]

_MODULES = {
    "AutocompressError": "autocompress.errors",
    "Distillation": "autocompress.recipe",
    "LayerPlan": "autocompress.recipe",
    "Measurement": "autocompress.records",
    "Recipe": "autocompress.recipe",
    "Recovery": "autocompress.recipe",
    "SearchConfig": "autocompress.config",
    "Space": "autocompress.config",
    "Target": "autocompress.records",
    "Task": "autocompress.tasks.task",
    "TrialResult": "autocompress.records",
    "UserError": "autocompress.errors",
    "apply": "autocompress.job",
    "ask": "autocompress.study.ask",
    "compare": "autocompress.compare",
    "doctor": "autocompress.job",
    "explain": "autocompress.job",
    "export": "autocompress.job",
    "inspect": "autocompress.job",
    "load": "autocompress.job",
    "refine": "autocompress.refine",
    "resume": "autocompress.job",
    "search": "autocompress.job",
    "show": "autocompress.job",
    "verify": "autocompress.job",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the public names: importing the room export.py would set ``autocompress.export`` to that module."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
