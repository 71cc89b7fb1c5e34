"""Teacher -> assistant -> student (Mirzadeh et al. 2020): a network of a size between them learns from the teacher and teaches the student,
which learns less from one that is far larger than itself.
"""

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from autocompress.compress.distill.lesson import Lesson
from autocompress.compress.distill.loss import Sample
from autocompress.compress.prune import prune, structure
from autocompress.compress.recover import recover_
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Assistant, Recipe


def make_assistant(
    model: nn.Module, settings: Assistant, recipe: Recipe, example: Tensor, samples: Iterator[Sample], lesson: Lesson
) -> nn.Module:
    """A copy of ``model`` with ``settings.keep`` of the channels of every prune group, taught for ``settings.steps``; in eval mode.

    example (1, ...) is one input. It is trained as ``recipe`` trains the student, on the next ``settings.steps`` samples with their
    teachers' outputs, as in the paper by those alone: what ``recipe`` says of features is about the student's modules. Raises
    InfeasibleRecipe where no layer of the model may lose channels, Diverged where its training does.
    """
    if settings.keep < 1:
        groups = structure(model, example).groups
        if not groups:
            raise InfeasibleRecipe(
                f"distillation.assistant: keep {settings.keep:g}, but no layer may lose channels. Leave the assistant out."
            )
        assistant = prune(model, {member: settings.keep for group in groups for member in group.members}, example)
    else:
        assistant = copy.deepcopy(model)
    return recover_(assistant, _without_features(recipe), samples, lesson, settings.steps).requires_grad_(False)


def _without_features(recipe: Recipe) -> Recipe:
    settings = recipe.distillation
    if settings is not None:
        by_outputs = settings.model_copy(update={"feature_weight": 0.0, "attention_weight": 0.0})
        settings = by_outputs if settings.soft_weight or settings.hard_weight else None
    return recipe.model_copy(update={"distillation": settings})
