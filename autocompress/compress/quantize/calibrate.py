"""Which layers get which bits, and the grids of a model from calibration data. The training between is recover's.

Fold batch norm, equalize weights, collect ranges in one pass over all data (Jacob et al. 2018), round adaptively, correct biases:
whichever of these the recipe asks for, in this order.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized, WeightQuantizer
from autocompress.compress.quantize.adaround import adaround_
from autocompress.compress.quantize.bias_correction import bias_correct_
from autocompress.compress.quantize.equalize import equalize
from autocompress.compress.quantize.fold import fold_batch_norm
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import FLOAT_BITS, Recipe, scheme_of

KINDS = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU)
Pair = tuple[int, int]


def quantize(model: nn.Module, recipe: Recipe, calibration: Iterable[Tensor]) -> FakeQuantized:
    """A fake-quantized copy of ``model``, batch norm folded, ranges from all ``calibration`` inputs (N, ...), ready to train or freeze.

    Raises InfeasibleRecipe where calibration data are missing, not finite or of one constant value, and where a layer cannot be of its
    scheme; before anything is computed where the data are at fault.
    """
    batches = list(calibration)
    check_calibration(batches)
    example, settings = batches[0][:1], recipe.quantization
    folded = fold_batch_norm(model, example)
    bits = layer_bits(folded, recipe, example)
    if settings.equalize:
        folded = equalize(folded, example)
    wrapped = FakeQuantized(folded, bits, settings).eval()
    with torch.no_grad():
        for batch in batches:
            wrapped(batch)
    wrapped.phase = "quantize"
    _check_reached(wrapped)
    if settings.adaround_steps > 0:
        adaround_(wrapped, batches, settings.adaround_steps, recipe.recovery.seed)
        _hold_weights_(wrapped)
    if settings.bias_correction:
        bias_correct_(wrapped, batches)
    return wrapped


def check_calibration(batches: Sequence[Tensor]) -> None:
    """Raises InfeasibleRecipe for data that no range can be taken from."""
    filled = [batch for batch in batches if batch.numel()]
    if not filled:
        raise InfeasibleRecipe("calibration: there are no data to take ranges from. Give at least one batch of inputs.")
    for batch in filled:
        if not torch.isfinite(batch).all():
            raise InfeasibleRecipe("calibration: the data hold NaN or infinite values; ranges cannot be taken from them. Clean the data.")
    first = filled[0].flatten()[0]
    if all(bool((batch == first).all()) for batch in filled):
        raise InfeasibleRecipe(
            f"calibration: every value of the data is {first.item():g}; a constant has no range. Give inputs like those of real use."
        )


def layer_bits(model: nn.Module, recipe: Recipe, example: Tensor | None = None) -> dict[str, Pair]:
    """(weight bits, activation bits) of every Conv2d, Linear, LSTM and GRU that is quantized.

    A plan speaks for its layer, for the factors of that layer, and for what lies inside of the module that it names, unless there is a
    plan further in. What no plan speaks for has the student's bits; but the first and the last layer (in the order in which they run on
    ``example`` (1, ...), else in which they are registered) stay in float, and so do kinds that the scheme of these bits has no kernel for.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    plans = recipe.plans
    found: dict[str, Pair] = {}
    unplanned = _unplanned(model, recipe, example)
    for name in layers:
        plan = next((plans[owner] for owner in _owners(name) if owner in plans), None)
        if plan is not None and plan.is_quantized:
            found[name] = (plan.weight_bits, plan.activation_bits)
        elif plan is None and name in unplanned:
            found[name] = unplanned[name]
    return found


def _unplanned(model: nn.Module, recipe: Recipe, example: Tensor | None) -> dict[str, Pair]:
    """The student's bits for every layer that takes them."""
    if recipe.student is None or min(recipe.student.weight_bits, recipe.student.activation_bits) == FLOAT_BITS:
        return {}
    pair = (recipe.student.weight_bits, recipe.student.activation_bits)
    scheme = scheme_of(*pair, recipe.quantization)
    modules = dict(model.named_modules())
    order = execution_order(model, example)
    inner = [name for name in order[1:-1] if not isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention)]
    refused: tuple[type[nn.Module], ...] = (nn.Conv2d,) if scheme == "dynamic" else (nn.LSTM, nn.GRU) if scheme == "static" else ()
    return {name: pair for name in inner if not isinstance(modules[name], refused)}


def execution_order(model: nn.Module, example: Tensor | None) -> list[str]:
    """Names of the layers in the order in which they run first on ``example`` (1, ...), or without it as they are registered."""
    layers = [name for name, module in model.named_modules() if isinstance(module, KINDS)]
    if example is None:
        return layers
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name) if name not in ran else None)
        for name, module in model.named_modules()
        if name in layers
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return ran


def _check_reached(wrapped: FakeQuantized) -> None:
    """Raises InfeasibleRecipe for a layer whose input should be on a grid and never was, as inside of torch's own attention."""
    for name, scheme in wrapped.schemes.items():
        if scheme in ("static", "dynamic") and name not in wrapped.reached:
            raise InfeasibleRecipe(
                f"{name}: activation_bits {wrapped.bits[name][1]}: its input is never seen on the calibration data (it does not "
                "run, or runs inside of a fused operator). Set activation_bits to 32."
            )


def _hold_weights_(wrapped: FakeQuantized) -> None:
    """The grids that weights were rounded to adaptively stay, unless they are learned."""
    for _, _, quantizer in wrapped.quantizers():
        if isinstance(quantizer, WeightQuantizer) and not quantizer.learned:
            quantizer.hold_()


def _owners(name: str) -> Iterable[str]:
    """``a.b.c`` -> ``a.b.c``, ``a.b``, ``a``: a factor of a low-rank layer belongs to that layer's plan."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))
