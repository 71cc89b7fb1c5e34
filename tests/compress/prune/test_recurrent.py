"""Hidden units of LSTM and GRU leave from every gate, from the recurrence and from what reads them."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill import Sample
from autocompress.compress.prune.importance import Scoring
from autocompress.compress.prune.recurrent import prune_recurrent, recurrent_modules
from autocompress.errors import InfeasibleRecipe
from tests.small_models import Net, fingerprint, inputs, outputs

STEPS = inputs(1, 5, 3)
HIDDEN = 6
Cell = type[nn.LSTM] | type[nn.GRU]


def model_of(run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    return Net(run, **layers).eval()


def last_step(cell: Cell, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = {"cell": cell(3, HIDDEN, batch_first=True, **options), "drop": nn.Dropout(0.5), "head": nn.Linear(HIDDEN, 2)}
    return model_of(lambda m, x: m.head(m.drop(m.cell(x)[0][:, -1])), **layers)


def last_state(cell: Cell) -> nn.Module:
    """Steps first, and the head reads h_n."""
    torch.manual_seed(1)

    def run(m: Net, x: Tensor) -> Tensor:
        state = m.cell(x.transpose(0, 1))[1]
        return m.head((state[0] if isinstance(state, tuple) else state).squeeze(0))

    return model_of(run, cell=cell(3, HIDDEN), head=nn.Linear(HIDDEN, 2))


def flattened(cell: Cell) -> nn.Module:
    """Every unit is five inputs of the head, and passes a ReLU."""
    torch.manual_seed(2)
    layers = {"cell": cell(3, HIDDEN, batch_first=True), "relu": nn.ReLU(), "head": nn.Linear(5 * HIDDEN, 2)}
    return model_of(lambda m, x: m.head(m.relu(m.cell(x)[0]).flatten(1)), **layers)


def joined(cell: Cell) -> nn.Module:
    """One head reads the input, the mean of a first and the maximum of a second cell."""
    torch.manual_seed(3)
    layers = {"cell": cell(3, HIDDEN, batch_first=True), "other": cell(3, 4, batch_first=True), "head": nn.Linear(3 + HIDDEN + 4, 2)}
    return model_of(lambda m, x: m.head(torch.cat([x[:, 0], m.cell(x)[0].mean(1), m.other(x)[0].amax(1)], -1)), **layers)


def stacked(cell: Cell) -> nn.Module:
    """A second cell reads the first one, in both directions; two heads read the first one too."""
    torch.manual_seed(4)
    layers = {
        "cell": cell(3, HIDDEN, batch_first=True),
        "second": nn.GRU(HIDDEN, 3, batch_first=True, bidirectional=True),
        "a": nn.Linear(HIDDEN, 2),
        "b": nn.Linear(6, 2),
    }

    def run(m: Net, x: Tensor) -> Tensor:
        x = m.cell(x)[0]
        return m.a(x[:, -1]) + m.b(m.second(x)[0][:, -1])

    return model_of(run, **layers)


MODELS = [last_step, last_state, flattened, joined, stacked]
EVERY = pytest.mark.parametrize(("make", "cell"), [(make, cell) for make in MODELS for cell in (nn.LSTM, nn.GRU)])


def left(model: nn.Module, pruned: nn.Module, name: str) -> list[int]:
    """Which units of the cell ``name`` are left, by the (unique) biases of the first gate."""
    before, after = (work.get_submodule(name).bias_ih_l0.detach() for work in (model, pruned))
    size, fewer = model.get_submodule(name).hidden_size, pruned.get_submodule(name).hidden_size
    return [next(unit for unit in range(size) if torch.equal(before[unit], row)) for row in after[:fewer]]


def without_units(model: nn.Module, pruned: nn.Module, *names: str) -> nn.Module:
    """The uncut model with the rows, in all gates, of the units that ``pruned`` lacks at 0."""
    work = copy.deepcopy(model)
    for name in names:
        cell, stay = work.get_submodule(name), left(model, pruned, name)
        gone = [unit for unit in range(cell.hidden_size) if unit not in stay]
        for parameter in cell.parameters():
            for gate in range(len(parameter) // cell.hidden_size):
                parameter.data[[gate * cell.hidden_size + unit for unit in gone]] = 0
    return work


@EVERY
@pytest.mark.parametrize("share", [0.67, 0.5, 0.01])
def test_a_cut_model_equals_its_uncut_copy_whose_units_are_zero(make: Callable[[Cell], nn.Module], cell: Cell, share: float) -> None:
    model, x = make(cell), inputs(4, 5, 3, seed=1)
    found = recurrent_modules(model, STEPS)["cell"]
    assert (found.hidden, found.reason) == (HIDDEN, "")
    pruned = prune_recurrent(model, {"cell": share}, STEPS)
    assert pruned.cell.hidden_size == max(1, round(share * HIDDEN))
    assert pruned.cell.weight_hh_l0.shape[1] == pruned.cell.hidden_size
    torch.testing.assert_close(outputs(pruned, x), outputs(without_units(model, pruned, "cell"), x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_cells_that_one_layer_reads_side_by_side_can_be_cut_at_once(cell: Cell) -> None:
    model, x = joined(cell), inputs(4, 5, 3, seed=1)
    pruned = prune_recurrent(model, {"cell": 0.5, "other": 0.75}, STEPS)
    assert pruned.head.in_features == 3 + 3 + 3
    torch.testing.assert_close(outputs(pruned, x), outputs(without_units(model, pruned, "cell", "other"), x), atol=1e-6, rtol=1e-5)


def test_a_cell_that_reads_a_cut_one_can_be_cut_itself() -> None:
    torch.manual_seed(5)
    layers = {"first": nn.LSTM(3, 6, batch_first=True), "second": nn.GRU(6, 4, batch_first=True), "head": nn.Linear(4, 2)}
    model, x = model_of(lambda m, x: m.head(m.second(m.first(x)[0])[0][:, -1]), **layers), inputs(4, 5, 3, seed=1)
    pruned = prune_recurrent(model, {"first": 0.5, "second": 0.5}, STEPS)
    assert (pruned.second.input_size, pruned.second.hidden_size, pruned.head.in_features) == (3, 2, 2)
    torch.testing.assert_close(outputs(pruned, x), outputs(without_units(model, pruned, "first", "second"), x), atol=1e-6, rtol=1e-5)


def test_the_units_with_the_least_weight_leave() -> None:
    model = last_step(nn.LSTM)
    cell, head = model.cell, model.head
    score = [
        sum(
            float(weight.detach()[gate * HIDDEN + unit].square().sum())
            for weight in (cell.weight_ih_l0, cell.weight_hh_l0)
            for gate in range(4)
        )
        + float(cell.weight_hh_l0.detach()[:, unit].square().sum() + head.weight.detach()[:, unit].square().sum())
        for unit in range(HIDDEN)
    ]
    best = sorted(sorted(range(HIDDEN), key=score.__getitem__)[2:])
    assert left(model, prune_recurrent(model, {"cell": 4 / 6}, STEPS), "cell") == best


def samples() -> list[Sample]:
    return [Sample(inputs(4, 5, 3, seed=seed), torch.arange(4) % 2) for seed in (2, 3)]


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_units_leave_by_the_criterion_that_is_asked_for(criterion: str, cell: Cell) -> None:
    model = last_step(cell)
    work = copy.deepcopy(model).double()
    read: list[Tensor] = []
    work.head.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    (sum(F.cross_entropy(work(sample.inputs.double()), sample.targets) for sample in samples()) / 2).backward()
    if criterion == "activation":
        expected = torch.cat(read).abs().mean(0).tolist()
    else:
        into, back, out = (
            (weight * weight.grad).abs().detach() for weight in (work.cell.weight_ih_l0, work.cell.weight_hh_l0, work.head.weight)
        )
        rows = into.sum(1) + back.sum(1)
        expected = [float(rows[unit::HIDDEN].sum() + back[:, unit].sum() + out[:, unit].sum()) for unit in range(HIDDEN)]
    for count in (1, 3, 5):
        pruned = prune_recurrent(model, {"cell": count / HIDDEN}, STEPS, Scoring({criterion: 1.0}, samples(), F.cross_entropy))
        assert left(model, pruned, "cell") == sorted(sorted(range(HIDDEN), key=expected.__getitem__)[HIDDEN - count :])


def test_what_a_second_cell_reads_counts_in_activations_too() -> None:
    model, read = stacked(nn.GRU), []
    work = copy.deepcopy(model)
    work.cell.register_forward_hook(lambda module, args, out: read.append(out[0].detach().abs()))
    for sample in samples():
        work(sample.inputs)
    expected = (torch.cat(read).mean((0, 1)) + torch.cat(read)[:, -1].mean(0)).tolist()  # the GRU reads every step, the head the last one
    pruned = prune_recurrent(model, {"cell": 0.5}, STEPS, Scoring({"activation": 1.0}, samples()))
    assert left(model, pruned, "cell") == sorted(sorted(range(HIDDEN), key=expected.__getitem__)[3:])


def test_criteria_that_units_do_not_have_are_refused() -> None:
    with pytest.raises(InfeasibleRecipe, match="cell: importance bn_scale scores channels"):
        prune_recurrent(last_step(nn.GRU), {"cell": 0.5}, STEPS, Scoring({"bn_scale": 1.0}))


def test_shares_can_count_from_the_units_before_an_earlier_cut() -> None:
    once = prune_recurrent(last_step(nn.LSTM, bias=False), {"cell": 4 / 6}, STEPS)
    assert prune_recurrent(once, {"cell": 0.5}, STEPS, hidden={"cell": HIDDEN}).cell.hidden_size == 3
    assert prune_recurrent(once, {"cell": 4 / 6}, STEPS, hidden={"cell": HIDDEN}).cell.hidden_size == 4


@pytest.mark.parametrize("hidden", [2, 3, 8, 33])
def test_readers_are_found_for_any_number_of_units(hidden: int) -> None:
    torch.manual_seed(6)
    layers = {"cell": nn.GRU(3, hidden, batch_first=True), "head": nn.Linear(hidden + 1, 2)}
    model = model_of(lambda m, x: m.head(torch.cat([x[:, 0, :1], m.cell(x)[0][:, -1].flip(1)], 1)), **layers)
    assert recurrent_modules(model, STEPS)["cell"].readers == {"head": (-1, *reversed(range(hidden)))}


def normed(m: Net, x: Tensor) -> Tensor:
    return m.head(m.norm(m.cell(x)[0][:, -1]))


def started(m: Net, x: Tensor) -> Tensor:
    return m.head(m.cell(x, x.new_zeros(1, len(x), HIDDEN))[0][:, -1])


def looked_at(m: Net, x: Tensor) -> Tensor:
    out = m.cell(x)[0][:, -1]
    return m.head(out) * out.mean(-1, keepdim=True)


def packed(m: Net, x: Tensor) -> Tensor:
    return m.head(m.cell(nn.utils.rnn.pack_sequence([x[0]]))[1].squeeze(0))


def read_last(m: Net, x: Tensor) -> Tensor:
    return m.head(m.cell(x)[0][:, -1])


def attend(m: Net, x: Tensor) -> Tensor:
    out = m.cell(x)[0]
    return m.head((out * m.look(out).softmax(1)).sum(1))


GRU = {"cell": lambda: nn.GRU(3, HIDDEN, batch_first=True), "head": lambda: nn.Linear(HIDDEN, 2)}
REFUSED = {
    "layer norm": (
        normed,
        GRU | {"norm": lambda: nn.LayerNorm(HIDDEN)},
        r"norm \(LayerNorm\) is no Linear, LSTM or GRU that reads its units",
    ),
    "convolution": (
        lambda m, x: m.head(m.conv(m.cell(x)[0].transpose(1, 2)).mean(2)),
        GRU | {"conv": lambda: nn.Conv1d(HIDDEN, HIDDEN, 3)},
        r"conv \(Conv1d\) is no Linear",
    ),
    "softmax": (
        lambda m, x: m.head(m.cell(x)[0][:, -1].softmax(-1)),
        GRU,
        r"head \(Linear\) is no Linear, LSTM or GRU that reads its units one by one",
    ),
    "half of the units": (lambda m, x: m.part(m.cell(x)[0][:, -1, :3]), GRU | {"part": lambda: nn.Linear(3, 2)}, r"part \(Linear\) is no"),
    "attention over steps": (
        attend,
        GRU | {"look": lambda: nn.Linear(HIDDEN, 1)},
        "does not run|does not compute|do not compute",
    ),
    "a mean over units": (looked_at, GRU, "the units that stay do not compute the same"),
    "the model's output": (lambda m, x: m.cell(x)[0], GRU, "no Linear, LSTM or GRU reads"),
    "a first state": (started, GRU, "first state of its own"),
    "packed sequences": (packed, GRU, "packed sequences"),
    "both directions": (
        read_last,
        {"cell": lambda: nn.GRU(3, HIDDEN, bidirectional=True), "head": lambda: nn.Linear(2 * HIDDEN, 2)},
        "it is bidirectional",
    ),
    "two layers": (read_last, GRU | {"cell": lambda: nn.LSTM(3, HIDDEN, 2)}, "it has 2 layers"),
    "projections": (read_last, {"cell": lambda: nn.LSTM(3, HIDDEN, proj_size=2), "head": lambda: nn.Linear(2, 2)}, "proj_size 2"),
    "a single unit": (read_last, {"cell": lambda: nn.GRU(3, 1), "head": lambda: nn.Linear(1, 2)}, "a single hidden unit"),
    "idle": (lambda m, x: x, GRU, "does not run"),
    "called twice": (lambda m, x: read_last(m, x) + read_last(m, -x), GRU, "called 2 times"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_what_cannot_be_cut_soundly_is_refused_with_the_reason(case: str) -> None:
    run, layers, reason = REFUSED[case]
    torch.manual_seed(7)
    model = model_of(run, **{name: make() for name, make in layers.items()})
    with pytest.raises(InfeasibleRecipe, match=f"^cell: keep 0.5 is not possible: .*({reason})"):
        prune_recurrent(model, {"cell": 0.5}, STEPS)
    assert torch.equal(outputs(prune_recurrent(model, {"cell": 1.0}, STEPS), STEPS), outputs(model, STEPS))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"head": 0.5}, "head: the model has no LSTM or GRU of this name. It has: cell."),
        ({"cell": 0.0}, "cell: keep must be above 0 and at most 1, got 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(keep: dict[str, float], message: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=message):
        prune_recurrent(last_step(nn.LSTM), keep, STEPS)


@EVERY
def test_the_given_model_stays_as_it_is_and_the_cut_one_has_its_modes_and_trains(make: Callable[[Cell], nn.Module], cell: Cell) -> None:
    model = make(cell).train()
    model.cell.bias_ih_l0.requires_grad_(False)
    before, random = fingerprint(model), torch.get_rng_state()
    pruned = prune_recurrent(model, {"cell": 0.5}, STEPS)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in pruned.modules())
    pruned(inputs(4, 5, 3)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in pruned.named_parameters()}
    assert gradients.pop("cell.bias_ih_l0") is None
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_what_is_cut_once_can_be_cut_again() -> None:
    twice = prune_recurrent(prune_recurrent(last_step(nn.LSTM), {"cell": 0.67}, STEPS), {"cell": 0.5}, STEPS)
    assert twice.head.in_features == twice.cell.hidden_size == 2
    assert bool(F.mse_loss(outputs(twice, STEPS), torch.zeros(1, 2)).isfinite())


@pytest.mark.parametrize(("make", "cell"), [(last_step, nn.LSTM), (joined, nn.GRU)])
def test_a_cut_model_exports_and_runs_the_same_in_onnx_runtime(make: Callable[[Cell], nn.Module], cell: Cell, tmp_path: Path) -> None:
    pruned, x = prune_recurrent(make(cell), {"cell": 0.5}, STEPS), inputs(3, 5, 3, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size", UserWarning)
        torch.onnx.export(pruned, (x[:1],), tmp_path / "model.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    (out,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), outputs(pruned, x), atol=1e-4, rtol=1e-4)
