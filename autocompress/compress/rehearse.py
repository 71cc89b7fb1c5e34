"""One choice of a recipe shown in advance on a working copy, in place and taken back, so that a thousand cost no thousand copies.

Nothing is trained. Channels, heads and units give 0, blocks are stepped over, a low-rank weight is multiplied out, weights are masked,
one layer is rounded to its grid: outputs are those of really compressing (`build`), up to rounding, at the cost of one forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill import Loss, Sample
from autocompress.compress.factorize import Factorization, factorization
from autocompress.compress.prune import Scoring, mask_of, skip_, weight_scores
from autocompress.compress.prune.calls import eval_copy, seen_modules
from autocompress.compress.prune.silence import Channels, Heads, Units, keep_
from autocompress.compress.quantize import fold_batch_norm, layer_bits
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Recipe

Run = Callable[[nn.Module, Tensor], Tensor]


class Rehearsal:
    """Working copies of ``model`` for one recipe after the other; ``samples`` are what importances that look at data look at.

    Parts are made when first needed. The model itself is not changed. ``inputs`` (N, ...) give the ranges of integer layers.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, samples: tuple[Sample, ...] = (), loss: Loss | None = None) -> None:
        self.model, self.inputs, self.example = model, inputs, inputs[:1]
        self.samples, self.loss = samples, loss
        self.scoring = Scoring()
        self.factors: dict[tuple[str, str], Factorization] = {}

    @cached_property
    def work(self) -> nn.Module:
        return eval_copy(self.model)

    @cached_property
    def folded(self) -> nn.Module:
        """With batch norm folded, as integer layers are."""
        return fold_batch_norm(self.model, self.example)

    @cached_property
    def channels(self) -> Channels:
        return Channels(self.model, self.work, self.example, self.scoring)

    @cached_property
    def units(self) -> Units:
        return Units(self.model, self.work, self.example, self.scoring)

    @cached_property
    def heads(self) -> Heads:
        return Heads(self.model, self.example, self.scoring)

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        return weight_scores(self.work, self.scoring)

    @contextmanager
    def applied(self, recipe: Recipe, run: Run) -> Iterator[tuple[nn.Module, nn.Module, set[str]]]:
        """(module to run, the working copy in it, names of what was changed in that) while it lasts; ``run(module, inputs)`` gives outputs.

        The recipe makes choices of one kind: cuts, zeros, ranks or bits. Raises InfeasibleRecipe as compressing by it would.
        """
        self._score_by(recipe)
        with ExitStack() as undo, seen_modules(), torch.no_grad():
            plans = [plan for plan in recipe.layers if plan != LayerPlan(name=plan.name)]
            if any(plan.is_quantized for plan in plans):
                yield self._quantized(recipe, run)
                return
            cuts = {plan.name: plan.keep for plan in plans if plan.keep < 1}
            attention = {name: share for name, share in cuts.items() if not isinstance(self.work.get_submodule(name), KNOWN)}
            if attention:
                yield self.heads.work, self.heads.work, self.heads.silence_(attention, undo)
                return
            changed = set()
            units = {name: share for name, share in cuts.items() if isinstance(self.work.get_submodule(name), nn.RNNBase)}
            if units:
                changed |= self.units.silence_(units, undo)
            if cuts.keys() - units.keys():
                changed |= self.channels.silence_({name: share for name, share in cuts.items() if name not in units}, undo)
            for plan in plans:
                if plan.drop:
                    undo.callback(self.work.set_submodule, plan.name, skip_(self.model, self.work, plan.name, self.example))
                elif plan.is_factorized or plan.is_sparse:
                    self._reweigh_(plan, undo)
                changed |= {plan.name} if plan.drop or plan.is_factorized or plan.is_sparse else set()
            yield self.work, self.work, changed

    def _score_by(self, recipe: Recipe) -> None:
        """Choose by the recipe's importance from here on."""
        importance = {str(name): weight for name, weight in recipe.pruning.importance.items()}
        if importance != dict(self.scoring.importance):
            self.scoring = Scoring(importance, self.samples, self.loss, recipe.pruning.seed)
            for part in ("channels", "units", "heads", "scores"):
                vars(self).pop(part, None)

    def _reweigh_(self, plan: LayerPlan, undo: ExitStack) -> None:
        """A weight of lower rank, or with zeros, in the place of the given one."""
        layer = self.work.get_submodule(plan.name)
        weight = layer.get_parameter("weight")
        keep_(undo, [weight])
        if plan.is_factorized:
            key = (plan.name, plan.factorization)
            if key not in self.factors:
                self.factors[key] = factorization(self.model, plan, self.inputs)
            rank = plan.rank if plan.rank is not None else self.factors[key].rank_for(plan.energy or 1.0)
            weight.copy_(self.factors[key].block(rank).weight)
        if plan.is_sparse:
            weight.mul_(mask_of(plan, self.scores[plan.name]))

    def _quantized(self, recipe: Recipe, run: Run) -> tuple[nn.Module, nn.Module, set[str]]:
        """Ranges from one pass over all inputs, with everything else in float."""
        bits = layer_bits(self.folded, recipe, self.example)
        wrapped = FakeQuantized(self.folded, bits, recipe.quantization).eval()
        run(wrapped, self.inputs)
        wrapped.phase = "quantize"
        missed = [name for name, scheme in wrapped.schemes.items() if scheme in ("static", "dynamic") and name not in wrapped.reached]
        if missed:
            raise InfeasibleRecipe(f"{missed[0]}: its input is never seen; it does not run, or inside of a fused operator")
        return wrapped, self.folded, set(bits)


KNOWN = (nn.Conv2d, nn.Linear, nn.RNNBase)
