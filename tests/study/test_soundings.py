"""What the survey is asked to try: each choice alone, and structures worth timing."""

from autocompress.config import load_space
from autocompress.recipe import FLOAT_BITS, LayerPlan
from autocompress.records import LayerInfo
from autocompress.study.soundings import alone, structures
from autocompress.study.space import dimensions

SCHEMES = {"schemes": {"static": (7,)}, "weight_bits": (7, 32)}
LAYERS = (
    LayerInfo(name="a", kind="conv2d", macs=100, params=100, in_channels=16, out_channels=32, kernel=(3, 3), group="a", channel_multiple=8,
              factorizable=True, **SCHEMES),
    LayerInfo(name="b", kind="conv2d", macs=100, params=100, in_channels=32, out_channels=32, kernel=(3, 3), in_group="a",
              factorizable=True, **SCHEMES),
)  # fmt: skip
SPACE = load_space("default")
DIMS = dimensions(SPACE, LAYERS)


def test_every_choice_that_changes_something_is_asked_once_and_changes_nothing_else() -> None:
    found = alone(DIMS, SPACE, LAYERS)
    names = [(tried.kind, tried.name, tried.value) for tried, _ in found]
    assert len(set(names)) == len(names)
    expected = {(dim.name.partition(":")[0], dim.name.partition(":")[2], value) for dim in DIMS for value in dim.choices
                if dim.kind in ("keep", "rank", "weight_bits") and value not in (1.0, FLOAT_BITS)}  # fmt: skip
    assert set(names) == expected
    for tried, recipe in found:
        touched = [plan for plan in recipe.layers if plan != LayerPlan(name=plan.name)]
        assert [plan.name for plan in touched] == [tried.name]
        plan = touched[0]
        changed = {"keep": plan.keep < 1, "rank": plan.rank is not None, "weight_bits": plan.weight_bits < FLOAT_BITS}
        assert [kind for kind, is_so in changed.items() if is_so] == [tried.kind]
        assert tried.harm is None


def test_structures_differ_begin_with_uniform_ones_and_are_the_same_each_time() -> None:
    found = structures(DIMS, SPACE, LAYERS, 12)
    assert len({one.digest for one in found}) == len(found) == 12
    assert [one.digest for one in found] == [one.digest for one in structures(DIMS, SPACE, LAYERS, 12)]
    assert all(plan.keep == 1.0 and plan.weight_bits == 7 for plan in found[0].layers)
    assert {plan.weight_bits for one in found for plan in one.layers} == {7, FLOAT_BITS}
    assert any(plan.rank is not None for one in found for plan in one.layers)
    assert any(one.layers[0].weight_bits != one.layers[1].weight_bits for one in found)


def test_a_small_space_gives_as_many_structures_as_it_has() -> None:
    space = SPACE.model_copy(update={"keep": SPACE.keep.model_copy(update={"choices": (0.5, 1.0)}), "rank": load_space("small").rank})
    bits = space.weight_bits.model_copy(update={"choices": (32,)})
    tiny = space.model_copy(update={"weight_bits": bits, "rank": space.rank.model_copy(update={"choices": (1.0,)})})
    assert len(structures(dimensions(tiny, LAYERS), tiny, LAYERS, 12)) == 2
