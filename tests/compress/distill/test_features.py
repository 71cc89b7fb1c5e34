"""Hints and attention maps are the published formulas, whatever the widths and sizes, and leave no hook behind."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill import compared
from autocompress.compress.distill.attention import attention_distance, attention_map
from autocompress.compress.distill.features import channels_axis, named_pairs
from autocompress.compress.prune import prune
from autocompress.compress.quantize import quantize
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation, LayerPlan, Recipe
from tests.small_models import Net, conv, fingerprint, inputs, recurrent, residual

X = inputs(4, 1, 8, 8)


def settings(*features: str, hint: float = 0.0, attention: float = 0.0) -> Distillation:
    return Distillation(feature_weight=hint, attention_weight=attention, features=features)


def distance(student: nn.Module, teacher: nn.Module, chosen: Distillation, x: Tensor = X) -> Tensor:
    with torch.random.fork_rng(devices=[]), compared(student, teacher, chosen, x[:2]) as comparison:
        torch.manual_seed(0)
        assert comparison is not None
        comparison.ask(x)
        student(x)
        return comparison.distance()


def convolutions(width: int, stride: int = 1, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(lambda m, x: m.b(F.relu(m.a(x))).mean((2, 3)), a=conv(1, width, stride=stride), b=conv(width, 3)).eval()


# ---- formulas -------------------------------------------------------------------------------------------------------


def test_the_map_is_the_sum_of_squares_over_channels_and_the_distance_that_of_unit_vectors() -> None:
    first, second = inputs(3, 5, 4, 4).double(), inputs(3, 2, 4, 4, seed=1).double()
    expected = 0.0
    for a, b in zip(first, second, strict=True):
        q = [sum(channel.square() for channel in one).flatten() for one in (a, b)]
        q = [one / one.norm() for one in q]
        expected += 0.5 * float((q[0] - q[1]).square().sum()) / 3
    found = attention_distance(attention_map(first), attention_map(second))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_maps_of_a_sequence_have_one_number_a_position_and_equal_maps_a_gradient_of_zero() -> None:
    features = inputs(2, 7, 3).requires_grad_()
    assert attention_map(features, axis=2).shape == (2, 1, 7)
    torch.testing.assert_close(attention_map(features, axis=2)[:, 0], features.square().sum(2))
    attention_distance(attention_map(features, 2), attention_map(features.detach(), 2)).backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_a_hint_is_the_mean_square_between_the_named_modules() -> None:
    student, teacher = convolutions(4), convolutions(4, seed=1)
    outputs = [(model.a(X), model.b(F.relu(model.a(X)))) for model in (student, teacher)]
    expected = sum((a - b).square().mean() for a, b in zip(*outputs, strict=True)) / 2
    torch.testing.assert_close(distance(student, teacher, settings("a", "b", hint=3.0)), 3 * expected)


def test_hints_and_attention_are_added_by_their_weights() -> None:
    student, teacher = convolutions(4), convolutions(4, seed=1)
    hint, attention = (distance(student, teacher, settings("a", "b", **{kind: 1.0})) for kind in ("hint", "attention"))
    expected = sum(attention_distance(attention_map(a), attention_map(b)) for a, b in [
        (student.a(X), teacher.a(X)), (student.b(F.relu(student.a(X))), teacher.b(F.relu(teacher.a(X)))),
    ])  # fmt: skip
    torch.testing.assert_close(attention, expected)
    torch.testing.assert_close(distance(student, teacher, settings("a", "b", hint=0.5, attention=2.0)), 0.5 * hint + 2 * attention)


# ---- widths, sizes, names -------------------------------------------------------------------------------------------


def test_where_widths_differ_a_learned_convolution_fits_them_and_has_a_gradient() -> None:
    student, teacher = convolutions(3), convolutions(5)
    with compared(student, teacher, settings("a", hint=1.0), X[:2]) as comparison:
        assert comparison is not None
        (pair,) = comparison.pairs
        assert isinstance(pair.adapter, nn.Conv2d)
        assert [tuple(one.shape) for one in comparison.parameters()] == [(5, 3, 1, 1), (5,)]
        comparison.ask(X)
        student(X)
        loss = comparison.distance()
        torch.testing.assert_close(loss, F.mse_loss(pair.adapter(student.a(X)), teacher.a(X)))
        loss.backward()
        assert all(one.grad.abs().sum() > 0 for one in [*comparison.parameters(), student.a.weight])
        assert teacher.a.weight.grad is None


def test_where_sizes_differ_the_larger_map_is_averaged_to_the_smaller() -> None:
    student, teacher = convolutions(4, stride=2), convolutions(4, seed=1)
    small, large = student.a(X), teacher.a(X)
    pooled = F.avg_pool2d(large, 2)
    torch.testing.assert_close(distance(student, teacher, settings("a", hint=1.0)), F.mse_loss(small, pooled))
    torch.testing.assert_close(distance(teacher, student, settings("a", hint=1.0)), F.mse_loss(small, pooled))
    expected = attention_distance(attention_map(small), attention_map(pooled))
    torch.testing.assert_close(distance(student, teacher, settings("a", attention=1.0)), expected)


def test_linear_features_of_other_widths_are_fitted_by_a_linear_layer() -> None:
    student, teacher = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    with compared(student, teacher, settings("0", hint=1.0), inputs(2, 6)) as comparison:
        assert comparison is not None
        x, adapter = inputs(8, 6), comparison.pairs[0].adapter
        comparison.ask(x)
        student(x)
        torch.testing.assert_close(comparison.distance(), F.mse_loss(F.linear(student[0](x), adapter.weight, adapter.bias), teacher[0](x)))


def test_outputs_of_an_lstm_are_compared_position_by_position() -> None:
    x, teacher = inputs(4, 5, 3), recurrent()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.lstm.weight_hh_l0.mul_(0.5)
    expected = F.mse_loss(student.lstm(x)[0], teacher.lstm(x)[0])
    torch.testing.assert_close(distance(student, teacher, settings("lstm", hint=1.0), x), expected)
    assert distance(student, teacher, settings("lstm", attention=1.0), x) > 0


@pytest.mark.parametrize(("student", "teacher", "lengthwise", "axis"), [
    ((2, 4), (2, 6), False, 1),
    ((2, 4, 8, 8), (2, 6, 4, 4), False, 1),
    ((2, 8, 8, 4), (2, 8, 8, 6), False, 3),  # channels last, as in Swin
    ((2, 7, 4), (2, 7, 6), False, 2),
    ((2, 4, 7), (2, 6, 7), False, 1),
    ((2, 7, 4), (2, 7, 4), False, 2),
    ((2, 4, 7), (2, 4, 7), True, 1),
    ((2, 7, 4), (2, 9, 6), False, None),
    ((2, 7, 4), (2, 28), False, None),
    ((2,), (2,), False, None),
])  # fmt: skip
def test_the_axis_of_channels_is_the_one_that_differs(
    student: tuple[int, ...], teacher: tuple[int, ...], lengthwise: bool, axis: int | None
) -> None:
    assert channels_axis(torch.zeros(student), torch.zeros(teacher), lengthwise) == axis


def test_names_may_differ_between_student_and_teacher() -> None:
    assert named_pairs(["a", "b = c"]) == [("a", "a"), ("b", "c")]
    student, teacher = convolutions(4), nn.Sequential(conv(1, 4), nn.ReLU())
    torch.testing.assert_close(distance(student, teacher, settings("a=0", hint=1.0)), F.mse_loss(student.a(X), teacher[0](X)))


def test_a_pruned_student_and_one_on_integer_grids_are_compared_with_the_given_model() -> None:
    teacher = residual(8)
    pruned = prune(teacher, {"block1.conv1": 0.5}, X[:1])
    plans = tuple(LayerPlan(name=name, weight_bits=7, activation_bits=8) for name in ("block1.conv1", "block1.conv2", "head"))
    rounded = quantize(teacher, Recipe(layers=plans), [inputs(64, 1, 8, 8)])
    chosen = settings("block1.conv1", "block3", hint=1.0, attention=1.0)
    assert distance(copy.deepcopy(teacher), teacher, chosen) == 0
    for student in (pruned, rounded):
        assert 0 < distance(student, teacher, chosen) < 100


# ---- promises around it ---------------------------------------------------------------------------------------------


def test_hooks_are_removed_and_modes_given_back_whatever_happens() -> None:
    student, teacher = residual(4), residual(4)
    student.train()
    teacher.train()
    teacher.block1.norm1.eval()
    before = fingerprint(student), fingerprint(teacher)
    with compared(student, teacher, settings("block1", hint=1.0), X[:2]) as comparison:
        assert comparison is not None
        with pytest.raises(RuntimeError):
            comparison.ask(X[:, :, :0])
    with pytest.raises(InfeasibleRecipe), compared(student, teacher, settings("block1", "absent", hint=1.0), X[:2]):
        pass
    assert (fingerprint(student), fingerprint(teacher)) == before


def test_what_was_heard_is_forgotten_after_the_step() -> None:
    student, teacher = convolutions(4), convolutions(4, seed=1)
    with compared(student, teacher, settings("a", hint=1.0), X[:2]) as comparison:
        assert comparison is not None
        assert comparison.heard == ({}, {})
        comparison.ask(X)
        student(X)
        assert not comparison.heard[1]["a"].requires_grad
        comparison.distance()
        assert comparison.heard == ({}, {})


def test_without_weights_nothing_is_compared_and_no_teacher_is_needed() -> None:
    for chosen in (None, Distillation()):
        with compared(convolutions(4), None, chosen, X) as comparison:
            assert comparison is None


class Detour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.idle = conv(1, 4), conv(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3))


REFUSED = {
    "an absent module": (convolutions(4), convolutions(4), settings("c", hint=1.0), r"the student has no module 'c'\. It has a, b\."),
    "absent in the teacher": (convolutions(4), nn.Sequential(conv(1, 4)), settings("a", hint=1.0), r"the teacher has no module 'a'.*0"),
    "a module that idles": (Detour(), Detour(), settings("idle", hint=1.0), "idle did not run or gave no tensor"),
    "no teacher": (convolutions(4), None, settings("a", hint=1.0), "nobody teaches"),
    "no positions": (residual(4), residual(4), settings("head", attention=1.0), r"needs positions, got \(2, 10\) of head"),
    "other ranks": (convolutions(4), residual(4), settings("a=head", hint=1.0), r"got \(2, 4, 8, 8\) of a and \(2, 10\) of head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_in_one_line(case: str) -> None:
    student, teacher, chosen, said = REFUSED[case]
    with pytest.raises(InfeasibleRecipe, match=said) as caught, compared(student, teacher, chosen, X[:2]):
        pass
    assert "\n" not in str(caught.value)
