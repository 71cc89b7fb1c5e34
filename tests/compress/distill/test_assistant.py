"""The assistant is the given model, narrower everywhere and taught; the given model stays as it is."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.compress.distill import Lesson, Sample, distillation_loss
from autocompress.compress.distill.assistant import make_assistant
from autocompress.compress.prune import structure
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Assistant, Distillation, Recipe, Recovery
from tests.small_models import fingerprint, inputs, outputs, padded_shortcut, residual

X = inputs(64, 1, 8, 8, seed=99)
LESSON = Lesson(F.cross_entropy)


def samples(teacher: nn.Module, count: int) -> Iterator[Sample]:
    for seed in range(count):
        x = inputs(32, 1, 8, 8, seed=seed)
        said = outputs(teacher, x)
        yield Sample(x, said.argmax(1), said)


def distance(model: nn.Module, teacher: nn.Module) -> float:
    return distillation_loss(outputs(model, X), outputs(teacher, X), 4.0).item()


@pytest.mark.parametrize("keep", [0.5, 1e-6])
def test_every_group_is_cut_to_the_share_and_never_to_nothing(keep: float) -> None:
    teacher = residual(6)
    before = fingerprint(teacher)
    assistant = make_assistant(teacher, Assistant(keep=keep, steps=1), Recipe(), X[:1], samples(teacher, 1), LESSON)
    assert fingerprint(teacher) == before
    full = {group.name: group.width for group in structure(teacher, X[:1]).groups}
    assert {group.name: group.width for group in structure(assistant, X[:1]).groups if group.width > 1} == {
        name: round(keep * width) for name, width in full.items() if round(keep * width) > 1
    }
    assert outputs(assistant, X).shape == (64, 10)
    assert min(parameter.numel() for parameter in assistant.parameters()) >= 1


def test_it_learns_for_its_steps_and_then_stands_still() -> None:
    teacher = residual(6)
    soft = Distillation(soft_weight=1.0, hard_weight=0.0)
    recipe = Recipe(distillation=soft, recovery=Recovery(steps=3, learning_rate=1e-2))
    rest = samples(teacher, 42)
    first = make_assistant(teacher, Assistant(keep=0.5, steps=1), recipe, X[:1], samples(teacher, 1), LESSON)
    later = make_assistant(teacher, Assistant(keep=0.5, steps=40), recipe, X[:1], rest, LESSON)
    assert len(list(rest)) == 2
    assert distance(later, teacher) < 0.1 * distance(first, teacher)
    assert not later.training
    assert not any(parameter.requires_grad for parameter in later.parameters())


def test_it_is_taught_by_outputs_alone_for_features_are_of_the_students_modules() -> None:
    teacher = residual(6)
    settings = Distillation(feature_weight=1.0, features=("of.a.student=block1",))
    made = make_assistant(teacher, Assistant(steps=1), Recipe(distillation=settings), X[:1], samples(teacher, 1), LESSON)
    assert torch.isfinite(outputs(made, X)).all()


def test_at_full_width_it_is_a_copy_that_is_trained_on() -> None:
    teacher = residual(6)
    made = make_assistant(teacher, Assistant(keep=1.0, steps=1), Recipe(), X[:1], samples(teacher, 1), LESSON)
    assert [one.shape for one in made.parameters()] == [one.shape for one in teacher.parameters()]
    assert not torch.equal(made.head.weight, teacher.head.weight)


def test_a_model_that_cannot_be_narrowed_has_no_assistant() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"assistant: keep 0\.7, but no layer may lose channels"):
        make_assistant(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Assistant(), Recipe(), X[:1], iter(()), LESSON)


def test_groups_that_may_not_be_cut_stay_whole() -> None:
    model = padded_shortcut()
    x = inputs(8, 3, 6, 6)
    batch = Sample(x, torch.arange(8) % 4, inputs(8, 4))
    made = make_assistant(model, Assistant(keep=0.5, steps=1), Recipe(), x[:1], iter([batch]), LESSON)
    assert made.stem.out_channels == 4
    assert made.inner.out_channels == 3
