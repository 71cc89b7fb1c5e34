"""Which layers of a model are factorized and by what: the methods are in the files beside this one."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from autocompress.compress.factorize.activation_svd import ActivationSvd, second_moments
from autocompress.compress.factorize.cp import Cp
from autocompress.compress.factorize.rank import Method, check_rank, kernel_of, method_for, unfit
from autocompress.compress.factorize.spatial_svd import SpatialSvd
from autocompress.compress.factorize.stand_in import Factorization, Layer
from autocompress.compress.factorize.svd import Svd
from autocompress.compress.factorize.tucker import Tucker
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan


def factorize(model: nn.Module, plans: Mapping[str, LayerPlan], inputs: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` in which every layer whose plan has a rank or an energy is a product of smaller ones.

    ``activation_svd`` weights errors by what the layers of the given model read on the calibration ``inputs`` (N, ...).
    Raises InfeasibleRecipe where a layer cannot be factorized, its weight is not finite, calibration inputs are missing, or the result
    would have no fewer multiply-adds than the dense layer.
    """
    result = copy.deepcopy(model)
    wanted = {name: plan for name, plan in plans.items() if plan.is_factorized}
    layers = {name: _checked(result, name, plan) for name, plan in wanted.items()}
    methods = {name: method_for(kernel_of(layer), wanted[name].factorization) for name, layer in layers.items()}
    for name, plan in wanted.items():
        if plan.rank is not None:
            check_rank(name, layers[name], methods[name], plan.rank, plan)
    moments = _moments(result, [name for name, method in methods.items() if method == "activation_svd"], inputs)
    for name, plan in wanted.items():
        layer, method = layers[name], methods[name]
        found = _factorization(name, layer, method, moments.get(name))
        rank = plan.rank if plan.rank is not None else found.rank_for(plan.energy or 1.0)
        check_rank(name, layer, method, rank, plan)
        parent, _, leaf = name.rpartition(".")
        setattr(result.get_submodule(parent), leaf, found.block(rank))
    return result


def factorization(model: nn.Module, plan: LayerPlan, inputs: Tensor | None = None) -> Factorization:
    """The decomposed weight of a plan's layer, for any rank. Raises InfeasibleRecipe as `factorize` does."""
    layer = _checked(model, plan.name, plan)
    method = method_for(kernel_of(layer), plan.factorization)
    moments = _moments(model, [plan.name] if method == "activation_svd" else [], inputs)
    return _factorization(plan.name, layer, method, moments.get(plan.name))


def refusal(layer: nn.Module, method: str = "auto") -> str:
    """Why a layer cannot be factorized by ``method`` at all, or an empty string."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return "only Linear and Conv2d are factorized"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "MultiheadAttention reads the weight of this projection without calling it"
    if type(layer).forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return f"its class {type(layer).__name__} has a forward of its own"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "a grouped convolution is not factorized"
    return unfit(kernel_of(layer), method)


def shared(model: nn.Module, name: str) -> str:
    """Why a layer cannot be replaced in this model, because it is or shares weights with another one, or an empty string."""
    own = {id(parameter) for parameter in model.get_submodule(name).parameters()}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not other.startswith(f"{name}."):
            return f"its weights are shared with {other}, and factorizing would untie them"
    return ""


def _checked(model: nn.Module, name: str, plan: LayerPlan) -> Layer:
    """The layer of a plan. Raises InfeasibleRecipe where it cannot be factorized whatever the rank."""
    asked, field = (f"rank {plan.rank}", "rank") if plan.energy is None else (f"energy {plan.energy:g}", "energy")
    layer = dict(model.named_modules(remove_duplicate=False)).get(name)
    if layer is None:
        raise InfeasibleRecipe(f"{name}: {asked} is not possible: the model has no such layer. Take this plan out.")
    reason = refusal(layer, plan.factorization) or shared(model, name)
    if not reason and not torch.isfinite(layer.weight).all():
        reason = "its weights are not all finite"
    if reason:
        raise InfeasibleRecipe(f"{name}: {asked} is not possible: {reason}. Leave the {field} out.")
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def _moments(model: nn.Module, names: list[str], inputs: Tensor | None) -> dict[str, Tensor]:
    if not names:
        return {}
    if inputs is None or len(inputs) == 0:
        raise InfeasibleRecipe(f"{names[0]}: activation_svd needs calibration inputs, and there are none. Give some or choose svd.")
    return second_moments(model, names, inputs)


def _factorization(name: str, layer: Layer, method: Method, moment: Tensor | None) -> Factorization:
    if moment is not None:
        return ActivationSvd(layer, moment)
    if isinstance(layer, nn.Linear) or method == "svd":
        return Svd(layer)
    if method == "cp":
        return Cp(layer, name)
    return Tucker(layer) if method == "tucker2" else SpatialSvd(layer)
