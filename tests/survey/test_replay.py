"""A forward pass that begins in the middle gives what the whole one gives."""

import torch
from torch import nn

from autocompress.survey.replay import Replay
from tests.small_models import Net, inputs, outputs, residual


def test_layers_before_the_change_are_not_computed_and_the_rest_sees_the_change() -> None:
    model, batches = residual(8), [inputs(4, 1, 8, 8, seed=seed) for seed in range(2)]
    replay = Replay(model, batches)
    ran: list[str] = []
    forward = nn.Conv2d._conv_forward
    with torch.no_grad():
        model.get_submodule("block3.conv2").weight.mul_(0.5)
        for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            conv._conv_forward = lambda *args, conv=conv: (ran.append(conv), forward(conv, *args))[1]  # type: ignore[method-assign]
        with replay.before({"block3.conv2"}) as turn_to:
            for index, batch in enumerate(batches):
                turn_to(index)
                got = model(batch)
        names = {module: name for name, module in model.named_modules()}
        assert {names[conv] for conv in ran} == {"block3.conv2", "block3.shortcut.0", "block4.conv1", "block4.conv2"}  # type: ignore[index]
        for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            vars(conv).pop("_conv_forward")
    torch.testing.assert_close(got, outputs(model, batches[1]))
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_runs_twice_is_computed_each_time() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.last(m.twice(m.twice(x))), twice=nn.Linear(4, 4), last=nn.Linear(4, 2)).eval()
    x = inputs(3, 4)
    wanted = outputs(model, x)
    with Replay(model, [x]).before({"last"}) as turn_to, torch.no_grad():
        turn_to(0)
        torch.testing.assert_close(model(x), wanted)


def test_code_that_works_in_place_does_not_spoil_what_is_remembered() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x).relu_()), a=nn.Linear(4, 4), b=nn.Linear(4, 2)).eval()
    x = inputs(3, 4)
    wanted, replay = outputs(model, x), Replay(model, [x])
    for _ in range(2):
        with replay.before({"b"}) as turn_to, torch.no_grad():
            turn_to(0)
            torch.testing.assert_close(model(x), wanted)


def test_where_it_is_not_known_when_the_changed_module_runs_everything_is_computed() -> None:
    model, x = residual(4), inputs(2, 1, 8, 8)
    replay = Replay(model, [x])
    with torch.no_grad():
        model.get_submodule("stem.0").weight.zero_()
        with replay.before({"never called"}) as turn_to:
            turn_to(0)
            torch.testing.assert_close(model(x), outputs(model, x))
