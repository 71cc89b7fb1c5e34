"""Weights from a file of the user's into a model: safetensors, or a torch checkpoint read without running any code of it."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import InvalidTask

NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights beside the optimizer's
WRAPPED = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
SHOWN = 3
UNUSED = "num_batches_tracked"  # a count that nothing here reads; checkpoints of old versions lack it


def load_weights_(model: nn.Module, file: Path) -> None:
    """Put the weights of a file into ``model``.

    Raises InvalidTask in one line for a file that is not there, does not read, would run code, or does not fit; and for NaN in it.
    """
    state = read_weights(file)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(UNUSED)]
    strangers = [name for name in state if name not in own]
    if missing or strangers:
        told = [f"{what} {some(names)}" for what, names in (("it lacks", missing), ("the model has no", strangers)) if names]
        raise InvalidTask(f"--weights: {file}: not the weights of this model: {'; '.join(told)}. Give the architecture with --model")
    misshapen = [name for name, value in state.items() if value.shape != own[name].shape]
    if misshapen:
        first = misshapen[0]
        shapes = f"{first} is {tuple(state[first].shape)} where the model has {tuple(own[first].shape)}"
        more = f", and {len(misshapen) - 1} more" if misshapen[1:] else ""
        raise InvalidTask(f"--weights: {file}: not the shapes of this model: {shapes}{more}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InvalidTask(f"--weights: {file}: NaN or infinite values in {some(broken)}")
    model.load_state_dict(dict(state), strict=False)


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Name -> tensor, without the prefixes of wrappers."""
    if not file.is_file():
        raise InvalidTask(f"--weights: {file}: no such file")
    content = _safetensors(file) if file.suffix == ".safetensors" else _checkpoint(file)
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise InvalidTask(f"--weights: {file}: must hold weights by name, a state_dict, got {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InvalidTask(f"--weights: {file}: must hold tensors by name, a state_dict; {some(others)} is none")
    state = {str(name): value for name, value in content.items()}
    for prefix in WRAPPED:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def _safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InvalidTask(f"--weights: {file}: not readable as safetensors: {' '.join(str(error).split())}") from None


def _checkpoint(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = any(word in str(error).lower() for word in ("global", "unsupported class", "reduce"))
        what = "it wants to run code while it is read, which is refused" if refused else "not readable as a torch checkpoint"
        text = " ".join(str(error).split())
        detail = text[max(0, text.find("WeightsUnpickler error:")) :].partition(" Check the doc")[0][:120]
        raise InvalidTask(f"--weights: {file}: {what} ({detail}); save its state_dict, best as safetensors") from None
    except Exception as error:  # torch has no error of its own for a broken file: RuntimeError, EOFError, KeyError, ...
        raise InvalidTask(f"--weights: {file}: not readable as a torch checkpoint: {' '.join(str(error).split())[:160]}") from None
