"""Where the heads of an attention module lie in its Linear layers, found by trying.

A module that says how many heads it has (``num_heads``, ``heads``, ...) is read in every way that its Linear layers allow: q, k and v in
three layers, in two or in one; rows ordered (q k v, head, dim) or (head, q k v, dim); attributes that hold heads * head_dim or not.
A reading is right when, for random weights, the module without some heads gives just what the whole one gives with the output columns
of these heads at 0. So a head_dim that code derives from a width, or a position bias per head, cannot slip through.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.blocks.attention import NarrowAttention, PlainSelfAttention, SelfAttentionPlan
from autocompress.compress.prune.calls import BREAKS, Call, changes, copied, first_line, is_close, noise_like, record_calls
from autocompress.compress.prune.cuts import cut_linear_

COUNTS = ("num_heads", "n_heads", "heads", "num_attention_heads", "n_head", "nhead", "nheads")
SET_TOO = (*COUNTS, "num_key_value_heads", "num_kv_heads", "n_kv_heads")
# What usually names the width of the input and not that of all heads together; taken for the latter only if nothing else works.
INPUT_WIDTHS = ("embed_dim", "embedding_dim", "emb_dim", "dim", "hidden_size", "hidden_dim", "d_model", "n_embd", "width", "in_features")
NO_LAYERS = (
    "no Linear layers for q, k and v were found (three of heads * head_dim outputs, or one of three times that) with one that reads them"
)
NOT_THE_SAME = "the heads that stay do not compute the same without the others (a bias per head, or a head_dim derived from the width?)"


@dataclass(frozen=True)
class HeadCut:
    """One reading. Names are relative to ``scope``, the least module that holds all: the attention, or its parent.

    ``projections``: Linear layers with how many of q, k, v each holds; ``counts``, ``widths``: (module, attribute) to set.
    """

    scope: str
    attention: str
    projections: tuple[tuple[str, int], ...]
    output: str
    heads: int
    head_dim: int
    interleaved: bool
    counts: tuple[tuple[str, str], ...]
    widths: tuple[tuple[str, str], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names in the model: projections, then the output."""
        return tuple(".".join(filter(None, (self.scope, name))) for name in (*(name for name, _ in self.projections), self.output))

    def by_head(self, rows: Tensor, parts: int) -> Tensor:
        """Values of the rows of a projection, (parts * heads * head_dim,) -> (heads, parts * head_dim)."""
        if self.interleaved:
            return rows.view(self.heads, parts * self.head_dim)
        return rows.view(parts, self.heads, self.head_dim).transpose(0, 1).flatten(1)

    def rows(self, parts: int, kept: Sequence[int]) -> Tensor:
        """Indices of the rows of a projection that belong to the heads ``kept``, ascending."""
        of_head = self.by_head(torch.arange(parts * self.heads * self.head_dim), parts)
        return of_head[list(kept)].flatten().sort().values

    def columns(self, kept: Sequence[int]) -> Tensor:
        return torch.arange(self.heads * self.head_dim).view(self.heads, self.head_dim)[list(kept)].flatten()


def cut_heads_(scope: nn.Module, cut: HeadCut, kept: Sequence[int]) -> None:
    """Leave only the heads ``kept`` in ``scope``, the module of that name."""
    for name, parts in cut.projections:
        cut_linear_(_linear(scope, name), rows=cut.rows(parts, kept))
    cut_linear_(_linear(scope, cut.output), columns=cut.columns(kept))
    for values, value in ((cut.counts, len(kept)), (cut.widths, len(kept) * cut.head_dim)):
        for module, attribute in values:
            setattr(scope.get_submodule(module), attribute, value)
    attention = scope.get_submodule(cut.attention)
    if isinstance(attention, NarrowAttention):
        attention.narrow_(kept)


def heads_of(module: nn.Module) -> int:
    """How many heads a module says it has; 0 if it says nothing."""
    values = (vars(module).get(name) for name in COUNTS)
    return next((value for value in values if type(value) is int and value > 0), 0)


def find_cuts(model: nn.Module, example: Tensor) -> dict[str, HeadCut | str]:
    """Attention module -> how to cut it, or why not. ``model`` is in eval mode; modules are swapped and put back while it looks."""
    says = [name for name, module in model.named_modules() if name and heads_of(module) and next(module.parameters(), None) is not None]
    innermost = [name for name in says if not any(other.startswith(f"{name}.") for other in says)]
    scopes = {id(model.get_submodule(name)) for said in innermost for name in (said, _parent(said))}
    calls = record_calls(model, lambda module: isinstance(module, nn.Linear) or id(module) in scopes, example)
    with torch.no_grad():
        before = model(example)
    found: dict[str, HeadCut | str] = {}
    for name in innermost:
        found[name] = cut = _find_cut(model, name, calls)
        if isinstance(cut, HeadCut):
            reason = _breaks(model, cut, example, before)
            found[name] = reason or cut
    return found


def find_plain(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, SelfAttentionPlan]:
    """Those of the modules that compute nothing but self-attention of the one tensor they get, and how; by trying, with random weights."""
    wanted = {id(model.get_submodule(name)) for name in names}
    calls = record_calls(model, lambda module: isinstance(module, nn.Linear) or id(module) in wanted, example)
    times = Counter(call.name for call in calls)
    order = [call.name for call in calls if times[call.name] == 1]
    plans = {}
    for call in (call for call in calls if call.name in names and times[call.name] == 1):
        plan = _plain(model, call, [name for name in order if isinstance(model.get_submodule(name), nn.Linear)])
        if plan is not None:
            plans[call.name] = plan
    return plans


def _plain(model: nn.Module, call: Call, order: Sequence[str]) -> SelfAttentionPlan | None:
    nothing = all(value is None or value is False for value in call.kwargs.values())
    if len(call.args) != 1 or not isinstance(call.args[0], Tensor) or call.args[0].dim() != 3 or not nothing:
        return None
    module = _stirred(model.get_submodule(call.name))
    noise = [3 * noise_like(call.args[0], seed) for seed in (1, 2)]
    try:
        tries = [(x, module(x.clone(), **call.kwargs)) for x in (call.args[0], *noise)]
        for plan in dict.fromkeys(_plain_readings(model, call.name, order)):
            plain = PlainSelfAttention(copy.deepcopy(module), plan)
            if all(is_close(plain(x), expected) for x, expected in tries):
                return plan
    except BREAKS:  # it does not bear other numbers than those of the example: then nothing is known of it
        return None
    return None


def _plain_readings(model: nn.Module, name: str, order: Sequence[str]) -> Iterator[SelfAttentionPlan]:
    """Every order in which the layers of a reading may hold q, k and v, and both ways to see later steps."""
    for cut in _readings(model, name, name, order):
        ends = list(itertools.accumulate(parts for _, parts in cut.projections))
        for letters, causal in itertools.product(("qkv", "kqv", "qvk", "vqk", "kvq", "vkq"), (False, True)):
            split = tuple((layer, letters[end - parts : end]) for (layer, parts), end in zip(cut.projections, ends, strict=True))
            yield SelfAttentionPlan(split, cut.output, cut.heads, cut.head_dim, cut.interleaved, causal)


def _find_cut(model: nn.Module, name: str, calls: Sequence[Call]) -> HeadCut | str:
    times = Counter(call.name for call in calls)
    first = {call.name: call for call in reversed(calls)}
    if times[name] != 1:
        return f"it is called {times[name]} times in one pass" if times[name] else "it does not run"
    if heads_of(model.get_submodule(name)) == 1:
        return "it has a single head"
    order = [call.name for call in calls if times[call.name] == 1 and isinstance(model.get_submodule(call.name), nn.Linear)]
    reasons = []
    for scope in (name, _parent(name)):
        for cut in _readings(model, name, scope, order) if times[scope] == 1 else ():
            reason = _differs(model.get_submodule(scope), cut, first[scope])
            if not reason:
                return cut
            reasons.append(reason)
    return reasons[0] if reasons else NO_LAYERS


def _readings(model: nn.Module, name: str, scope: str, order: Sequence[str]) -> Iterator[HeadCut]:
    """Every way in which the Linear layers of an attention module, in the order of their calls, may hold its heads."""
    module, heads = model.get_submodule(name), heads_of(model.get_submodule(name))
    inside = [layer for layer in order if layer.startswith(f"{name}.")]
    around = [layer for layer in order if scope in ("", name) or layer.startswith(f"{scope}.")]
    start = len(scope) + 1 if scope else 0
    counts = _attributes(module, name[start:], heads, SET_TOO)
    for projections, inner in _groups(model, inside, heads):
        behind = around[around.index(projections[-1][0]) + 1 :]
        output = next((layer for layer in behind if _linear(model, layer).in_features == inner), None)
        if output is None or (scope == name) != output.startswith(f"{name}."):
            continue
        named = [(layer[start:], parts) for layer, parts in projections]
        holding = [pair for pair in _attributes(module, name[start:], inner) if pair[1] not in SET_TOO]
        derived = tuple(pair for pair in holding if pair[1] not in INPUT_WIDTHS)
        interleaved = (False, True) if any(parts > 1 for _, parts in projections) else (False,)
        for widths, mixed in itertools.product(dict.fromkeys((derived, (), tuple(holding))), interleaved):
            yield HeadCut(scope, name[start:], tuple(named), output[start:], heads, inner // heads, mixed, counts, widths)


def _groups(model: nn.Module, layers: Sequence[str], heads: int) -> Iterator[tuple[list[tuple[str, int]], int]]:
    """Layers that may hold q, k and v, how many of them each, and the width of one of these."""
    out = {layer: _linear(model, layer).out_features for layer in layers}
    for three in zip(layers, layers[1:], layers[2:], strict=False):
        if len({out[layer] for layer in three}) == 1 and out[three[0]] % heads == 0:
            yield [(layer, 1) for layer in three], out[three[0]]
    for layer in layers:
        if out[layer] % (3 * heads) == 0:
            yield [(layer, 3)], out[layer] // 3
    for a, b in itertools.pairwise(layers):
        small, large = sorted((out[a], out[b]))
        if large == 2 * small and small % heads == 0:
            yield [(a, out[a] // small), (b, out[b] // small)], small


def _attributes(module: nn.Module, prefix: str, value: int, names: Sequence[str] | None = None) -> tuple[tuple[str, str], ...]:
    """(module, attribute) in and under ``module`` where a whole number ``value`` is kept; layers without parts hold their own widths."""
    places = [(path, part) for path, part in module.named_modules() if part is module or next(part.children(), None) is not None]
    return tuple(
        (".".join(filter(None, (prefix, path))), attribute)
        for path, part in places
        for attribute, held in vars(part).items()
        if type(held) is int and held == value and (names is None or attribute in names)
    )


def _differs(scope: nn.Module, cut: HeadCut, call: Call) -> str:
    """Cut heads on copies with random weights and look: why the reading is wrong, or an empty string."""
    stirred = _stirred(scope)
    for kept in {tuple(range(1, cut.heads)), (cut.heads - 1,)}:
        whole, narrow = copy.deepcopy(stirred), copy.deepcopy(stirred)
        gone = [head for head in range(cut.heads) if head not in kept]
        _linear(whole, cut.output).weight.data[:, cut.columns(gone)] = 0
        try:
            cut_heads_(narrow, cut, kept)
            expected, found = (_gives(copied_scope, cut, call) for copied_scope in (whole, narrow))
        except BREAKS as error:
            return f"it does not run without a head ({first_line(error)}); does it derive head_dim from the width?"
        if not is_close(found, expected):
            return NOT_THE_SAME
    return ""


def _gives(scope: nn.Module, cut: HeadCut, call: Call) -> Tensor:
    """What the output layer gives when ``scope`` is called as it was on the example."""
    output = scope.get_submodule(cut.output)
    (seen,) = record_calls(scope, lambda module: module is output, *copied(call.args), **copied(dict(call.kwargs)))
    value: Tensor = seen.output
    return value


def _stirred(module: nn.Module) -> nn.Module:
    """A copy with random parameters: trained ones may be 0 or so small that a wrong cut would not show."""
    work = copy.deepcopy(module)
    for seed, parameter in enumerate(work.parameters()):
        noise = noise_like(parameter, seed)
        parameter.data = noise / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else parameter.data + 0.3 * noise
    return work


def _breaks(model: nn.Module, cut: HeadCut, example: Tensor, before: object) -> str:
    """Why the whole model does not run once its module is cut, or an empty string."""
    scope = model.get_submodule(cut.scope)
    narrow = copy.deepcopy(scope)
    cut_heads_(narrow, cut, tuple(range(1, cut.heads)))
    if not cut.scope:
        return changes(narrow, example, before)
    model.set_submodule(cut.scope, narrow)
    reason = changes(model, example, before)
    model.set_submodule(cut.scope, scope)
    return reason


def scores_by_weight(cut: HeadCut, of: Callable[[str], Tensor]) -> Tensor:
    """Scores (heads,): the sum over a head's rows of q, k, v and its columns of the output; ``of``: parameter -> scores like it."""
    *projections, output = cut.layers
    total = _by_column(cut, of(f"{output}.weight").sum(0))
    for name, (_, parts) in zip(projections, cut.projections, strict=True):
        total = total + cut.by_head(of(f"{name}.weight").sum(1), parts).sum(1)
    return total


def scores_by_input(cut: HeadCut, of: Callable[[str], Tensor]) -> Tensor:
    """Scores (heads,): the sum over what the output layer reads of a head; ``of``: layer -> scores of its inputs."""
    return _by_column(cut, of(cut.layers[-1]))


def _by_column(cut: HeadCut, values: Tensor) -> Tensor:
    return values.view(cut.heads, cut.head_dim).sum(1)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
