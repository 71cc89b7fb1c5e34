"""Runtimes by name: one file a runtime, one row a runtime. Importing this loads no torch, so that ``session`` needs none."""

import importlib
from typing import TYPE_CHECKING, cast

from autocompress.errors import MissingDependency, UserError

if TYPE_CHECKING:
    from autocompress.runtimes.runtime import Runtime

# name -> module, the package it needs, the pip command that brings it
RUNTIMES = {
    "onnxruntime": ("autocompress.runtimes.onnx_runtime", "onnxruntime", "pip install onnxruntime"),
    "eager": ("autocompress.runtimes.eager", "torch", "pip install torch"),
    "fake": ("autocompress.runtimes.fake", "torch", "pip install torch"),
}
DEFAULT = "onnxruntime"


def find_runtime(name: str) -> "Runtime":
    """The runtime called ``name``; ``auto`` is ONNX Runtime.

    Raises UserError for an unknown name, MissingDependency with the pip command.
    """
    name = DEFAULT if name == "auto" else name
    if name not in RUNTIMES:
        raise UserError(f"--runtime: {name!r} is unknown; the runtimes are auto, {', '.join(sorted(set(RUNTIMES) - {'fake'}))}")
    module, package, command = RUNTIMES[name]
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependency(f"--runtime {name}: the package {package!r} is not installed; get it with `{command}`") from None
    return cast("Runtime", loaded.RUNTIME)
