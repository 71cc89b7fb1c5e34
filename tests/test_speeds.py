"""What is known of a speed before anything is trained."""

import pytest

from autocompress.recipe import LayerPlan, Quantization, Recipe, Recovery, Student
from autocompress.records import LatencyModel, LayerCost, LayerInfo, Survey, Target
from autocompress.speeds import kind_of, predicted_speed, structure_of

LAYERS = (LayerInfo(name="a", kind="linear", macs=100, params=100, in_channels=10, out_channels=10, group="a"),)
LATENCY = LatencyModel(
    costs=(LayerCost(name="a", scheme="none", terms=(0.0, 0.0, 0.0, 4.0)),),
    correction=(0.0, 1.0, 0.0), baseline_ms=4.0, error=0.1, probes=9, batch_size=8, input_shape=(10,),
)  # fmt: skip
SURVEY = Survey(tried=(), layer_ms={}, latency=LATENCY, samples=1)
AT_8 = Target(batch_sizes=(8,))


def plan(**changes: object) -> Recipe:
    return Recipe(layers=(LayerPlan.model_validate({"name": "a", **changes}),))


def test_a_prediction_has_twice_the_models_error_to_both_sides() -> None:
    speed = predicted_speed(plan(keep=0.5), SURVEY, LAYERS, AT_8)
    assert speed == pytest.approx((2.0, 1.6, 2.4))


def test_nothing_is_predicted_without_a_model_for_a_student_or_at_other_batch_sizes() -> None:
    assert predicted_speed(plan(), None, LAYERS, AT_8) is None
    assert predicted_speed(plan(), SURVEY.model_copy(update={"latency": None}), LAYERS, AT_8) is None
    assert predicted_speed(Recipe(student=Student()), SURVEY, LAYERS, AT_8) is None
    assert predicted_speed(plan(), SURVEY, LAYERS, Target(batch_sizes=(1,))) is None
    assert predicted_speed(plan(), SURVEY, LAYERS, Target(batch_sizes=(1, 8))) is None


def test_a_structure_is_what_a_speed_depends_on() -> None:
    same = (
        Recipe(layers=plan(keep=0.5).layers, recovery=Recovery(steps=7, seed=3), distillation=None),
        plan(keep=0.5, sparsity=0.3),
        plan(keep=0.5, pattern="2:4"),
    )
    other = (plan(keep=0.25), plan(keep=0.5, rank=2), plan(keep=0.5, weight_bits=7, activation_bits=8), Recipe(student=Student()))
    assert {structure_of(one) for one in same} == {structure_of(plan(keep=0.5))}
    assert len({structure_of(one) for one in (plan(keep=0.5), *other)}) == 1 + len(other)


def test_what_a_runtime_may_refuse_is_of_another_kind() -> None:
    quantized = plan(weight_bits=7, activation_bits=8)
    assert kind_of(quantized, LAYERS) == kind_of(plan(keep=0.5, weight_bits=7, activation_bits=8), LAYERS)
    grouped = quantized.model_copy(update={"quantization": Quantization(granularity="group")})
    assert len({kind_of(one, LAYERS) for one in (plan(), quantized, grouped, plan(weight_bits=4))}) == 4
