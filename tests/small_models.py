"""The smallest models that could break a promise, and one that is really trained. Imported as ``tests.small_models``."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.tasks.digits import DigitsNet, splits

IMAGE = (1, 3, 6, 6)


class Net(nn.Module):
    """A model from its layers and a function of (layers, x): ``Net(lambda m, x: m.a(x), a=nn.Linear(2, 2))``."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inner: int, outer: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with random parameters and statistics, different for every channel; eval mode."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for value in (module.weight, module.running_var):
                value.data = 0.5 + torch.rand(value.shape, generator=random)
            for value in (module.bias, module.running_mean):
                value.data = torch.randn(value.shape, generator=random)
    return model.eval()


def inputs(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def residual(width: int = 6) -> nn.Module:
    """Identity and projection shortcuts, global pooling, a linear head. x (N, 1, 8, 8) -> (N, 10)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return shaken(DigitsNet(width))


def concat() -> nn.Module:
    """Two branches, joined by concatenation and read by one convolution. x (N, 3, 6, 6) -> (N, 4)."""

    def run(m: Net, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(m.norm_a(m.a(x))), F.relu(m.norm_b(m.b(x)))], 1)
        return m.head(F.relu(m.norm_c(m.c(both))).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        norms = {"norm_a": nn.BatchNorm2d(4), "norm_b": nn.BatchNorm2d(6), "norm_c": nn.BatchNorm2d(8)}
        return shaken(Net(run, a=conv(3, 4), b=conv(3, 6), c=conv(10, 8), head=nn.Linear(8, 4), **norms))


def flat() -> nn.Module:
    """Convolution, flatten, linear: every channel is nine inputs of ``middle``. x (N, 3, 6, 6) -> (N, 4)."""

    def run(m: Net, x: Tensor) -> Tensor:
        return m.head(F.relu(m.middle(F.max_pool2d(F.relu(m.norm(m.a(x))), 2).flatten(1))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return shaken(Net(run, a=conv(3, 4), norm=nn.BatchNorm2d(4), middle=nn.Linear(36, 8), head=nn.Linear(8, 4)))


def padded_shortcut() -> nn.Module:
    """Shortcut by striding and zero-padding the channels (option A of He et al. 2015). x (N, 3, 6, 6) -> (N, 4)."""

    def run(m: Net, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        out = m.outer(F.relu(m.inner(x)))
        return m.head(F.relu(out + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Net(run, stem=conv(3, 4), inner=conv(4, 6, stride=2), outer=conv(6, 8), head=nn.Linear(8, 4)).eval()


def depthwise() -> nn.Module:
    """A depthwise convolution between two others. x (N, 3, 6, 6) -> (N, 4)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = {"a": conv(3, 4), "deep": conv(4, 4, groups=4), "b": conv(4, 6), "c": conv(6, 4), "head": nn.Linear(4, 4)}
        return Net(lambda m, x: m.head(F.relu(m.c(F.relu(m.b(m.deep(m.a(x)))))).mean((2, 3))), **layers).eval()


def recurrent() -> nn.Module:
    """LSTM, then two linear layers on the last step. x (N, 5, 3) -> (N, 2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        layers = {"lstm": nn.LSTM(3, 4, batch_first=True), "a": nn.Linear(4, 6), "b": nn.Linear(6, 2)}
        return Net(lambda m, x: m.b(F.relu(m.a(m.lstm(x)[0][:, -1]))), **layers).eval()


def trained_digits(width: int = 12) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A residual CNN trained for three seconds; its calibration inputs; 800 unseen inputs with their classes."""
    (x, y), *unseen = splits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsNet(width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8 * 16)
        for _ in range(8):
            for pick in torch.randperm(len(x)).split(64):
                loss = F.cross_entropy(model(x[pick]), y[pick])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval(), x[:256], torch.cat([part[0] for part in unseen]), torch.cat([part[1] for part in unseen])


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def fingerprint(model: nn.Module) -> object:
    """Everything that a function which promises not to change a model could change."""
    state = [(name, value.clone()) for name, value in model.state_dict().items()]
    modules = [(name, id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    return [(name, value.tolist()) for name, value in state], modules, parameters
