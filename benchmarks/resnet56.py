"""Post-training int8 of a pretrained ResNet-56 on CIFAR-10, as deployed: python benchmarks/resnet56.py [--rows REGEX] [--draws N]

Every layer is quantized from 512 training images and without any training, lowered to onnxruntime and scored there on all 10,000 test
images (1 thread, batches of 100). The judged row, fixed below, is the mean over 5 draws of calibration images and may lose 0.25 points
(fp32 93.39 %; on this checkpoint ONNX Runtime's own quantizer loses 0.48 and NNCF 0.01).

The test images select nothing. Rows are compared by `divergence`: the mean KL divergence from the outputs of fp32 to those of the artifact
on 2,000 training images that no draw contains. (The network knows the training images, so their accuracy says nothing; that divergence
does not ask for the classes.) Prints one table and, as its last line, one JSON object {"name", "figures", "met"}. One core: 3 minutes
for the judged row alone (--rows '^$'), 15 to 20 for all.
"""

import argparse
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own path is this folder

from autocompress.compress.quantize import fold_batch_norm, quantize
from autocompress.measure.machine import this_machine
from autocompress.recipe import LayerPlan, Quantization, Recipe
from autocompress.runtimes.onnx_runtime import RUNTIME
from autocompress.runtimes.runtime import Deployed, deploy

DATA = Path(os.environ.get("AUTOCOMPRESS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CHECKPOINT = DATA / "cifar10_resnet56" / "resnet56-4bfd9763.th"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS, WIDTHS = 9, (16, 32, 64)
IMAGES, UNSEEN, DRAWS, BATCH = 512, 2000, 5, 100
MOST_POINTS = 0.25


class Block(nn.Module):
    """Two convolutions and a shortcut of kind A: every second pixel, new channels zero. x (N, inner, H, W) -> (N, outer, H', W')."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.stride, self.new = (1, 0) if inner == outer else (2, (outer - inner) // 2)
        self.conv1 = nn.Conv2d(inner, outer, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new, self.new))
        return F.relu(out + x)


class ResNet56(nn.Module):
    """He et al. 2015, section 4.2, with the names of the checkpoint. x (N, 3, 32, 32) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        inner, stages = WIDTHS[0], []
        for width in WIDTHS:
            stages.append(nn.Sequential(Block(inner, width), *(Block(width, width) for _ in range(BLOCKS - 1))))
            inner = width
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inner, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return out


@dataclass(frozen=True)
class Row:
    """Settings of one way to quantize; ``inner_bits``: of the weights between the first and last layer, None for the machine's 8 or 7."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    inner_bits: int | None = None


ROWS = (
    Row("minmax"),
    Row("moving average", {"observer": "moving_average"}),
    Row("percentile", {"observer": "percentile"}),
    Row("entropy", {"observer": "entropy"}),
    Row("mse", {"observer": "mse"}),
    Row("mse, mse of weights", {"observer": "mse", "weight_observer": "mse"}),
    Row("minmax, equalize", {"equalize": True}),
    Row("minmax, bias correction", {"bias_correction": True}),
    Row("minmax, equalize, bias correction", {"equalize": True, "bias_correction": True}),
    Row("mse, bias correction", {"observer": "mse", "bias_correction": True}),
    Row("minmax, adaround", {"adaround_steps": 200}),
    Row("4-bit weights", {}, 4),
    Row("4-bit weights, mse of weights", {"weight_observer": "mse"}, 4),
    Row("4-bit weights, bias correction", {"bias_correction": True}, 4),
    Row("4-bit weights, adaround", {"adaround_steps": 200}, 4),
    Row("4-bit weights, adaround, bias correction", {"adaround_steps": 200, "bias_correction": True}, 4),
)
JUDGED = "moving average"  # the least divergence over 5 draws of all rows that need no optimizing (0.067e-3; mse 0.069, minmax 0.096)


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, training images (uint8, NHWC), test images and classes, unseen training images, and what fp32 says of both."""

    model: nn.Module
    train: np.ndarray[Any, Any]
    order: Tensor
    test: Tensor
    classes: Tensor
    unseen: Tensor
    accuracy: float
    probabilities: Tensor

    def draw(self, number: int) -> Tensor:
        """Images of one draw, (IMAGES, 3, 32, 32); no image is in two draws, or among the unseen ones."""
        start = UNSEEN + number * IMAGES
        return standardised(self.train[self.order[start : start + IMAGES].numpy()])


@dataclass(frozen=True)
class Result:
    row: Row
    accuracies: tuple[float, ...]
    divergences: tuple[float, ...]
    seconds: float

    def drop(self, bench: Bench) -> float:
        return bench.accuracy - statistics.mean(self.accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="only the rows in whose name this regular expression is found, and the judged one")
    parser.add_argument("--draws", type=int, default=1, help=f"draws of the rows that are not judged (the judged one has {DRAWS})")
    asked = parser.parse_args()
    missing = [str(path) for path in (CHECKPOINT, DATA / "cifar10" / "load.py") if not path.is_file()]
    if missing:
        print(json.dumps({"name": "resnet56", "figures": {"skipped": f"not there: {', '.join(missing)}"}, "met": None}))
        return
    torch.set_num_threads(1)
    started = time.monotonic()
    bench = prepare()
    say(f"fp32 in onnxruntime: {bench.accuracy:.2f} %")
    results = []
    for row in ROWS:
        if row.name == JUDGED or re.search(asked.rows, row.name):
            results.append(measure(row, bench, DRAWS if row.name == JUDGED else asked.draws))
            say(line(results[-1], bench))
    show(results, bench)
    judged = next(result for result in results if result.row.name == JUDGED)
    figures = {
        "judged": JUDGED,
        "fp32": round(bench.accuracy, 4),
        "drop": round(judged.drop(bench), 4),
        "most": MOST_POINTS,
        "rows": {result.row.name: facts(result, bench) for result in results},
        "seconds": round(time.monotonic() - started),
        "machine": this_machine().cpu,
    }
    print(json.dumps({"name": "resnet56", "figures": figures, "met": judged.drop(bench) <= MOST_POINTS}))


def prepare() -> Bench:
    model = ResNet56().eval()
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    read = loader()
    (test, classes), (train, _) = read("test"), read("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    images, labels = standardised(test), torch.from_numpy(classes).long()
    unseen = standardised(train[order[:UNSEEN].numpy()])
    with tempfile.TemporaryDirectory() as place:
        deployed = deploy(RUNTIME, fold_batch_norm(model, images[:1]), images[:1], Path(place) / "fp32", threads=1)
        found = accuracy(logits(deployed, images), labels)
        probabilities = logits(deployed, unseen).log_softmax(1)
    return Bench(model, train, order, images, labels, unseen, found, probabilities)


def loader() -> Any:
    """``load_cifar10`` of the file beside the images."""
    spec = importlib.util.spec_from_file_location("load", DATA / "cifar10" / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_cifar10


def standardised(images: np.ndarray[Any, Any]) -> Tensor:
    """uint8 (N, 32, 32, 3) -> float (N, 3, 32, 32)"""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]).contiguous()


def recipe_of(row: Row, model: nn.Module) -> Recipe:
    """All layers in int8, with 7-bit weights where the CPU would saturate on 8; ``inner_bits`` between the first and the last."""
    usual = 7 if RUNTIME.weight_bits(this_machine())[8] else 8
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    bits = {name: usual if name in (names[0], names[-1]) else row.inner_bits or usual for name in names}
    plans = tuple(LayerPlan(name=name, weight_bits=width, activation_bits=8) for name, width in bits.items())
    return Recipe(layers=plans, quantization=Quantization.model_validate(row.settings))


def measure(row: Row, bench: Bench, draws: int) -> Result:
    recipe, started = recipe_of(row, bench.model), time.monotonic()
    accuracies, divergences = [], []
    for number in range(draws):
        wrapped = quantize(bench.model, recipe, torch.split(bench.draw(number), 128))
        wrapped.freeze_()
        with tempfile.TemporaryDirectory() as place:
            deployed = deploy(RUNTIME, wrapped, bench.test[:1], Path(place) / "int8", threads=1)
            accuracies.append(accuracy(logits(deployed, bench.test), bench.classes))
            found = logits(deployed, bench.unseen).log_softmax(1)
        divergences.append(F.kl_div(found, bench.probabilities, reduction="batchmean", log_target=True).item())
    return Result(row, tuple(accuracies), tuple(divergences), (time.monotonic() - started) / draws)


def logits(deployed: Deployed, images: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate([deployed.run(part.numpy()) for part in torch.split(images, BATCH)]))


def accuracy(outputs: Tensor, classes: Tensor) -> float:
    """Percent."""
    return (outputs.argmax(1) == classes).double().mean().item() * 100


def facts(result: Result, bench: Bench) -> dict[str, Any]:
    return {
        "drop": round(result.drop(bench), 4),
        "accuracies": [round(value, 4) for value in result.accuracies],
        "divergence": round(statistics.mean(result.divergences), 6),
        "seconds": round(result.seconds, 1),
    }


def line(result: Result, bench: Bench) -> str:
    name = result.row.name + (" (judged)" if result.row.name == JUDGED else "")
    spread = f"{min(result.accuracies):.2f} to {max(result.accuracies):.2f}"
    numbers = f"{result.drop(bench):+.3f} | {statistics.mean(result.accuracies):.3f} | {spread} | {len(result.accuracies)}"
    return f"| {name} | {numbers} | {1000 * statistics.mean(result.divergences):.3f} | {result.seconds:.0f} |"


def show(results: Sequence[Result], bench: Bench) -> None:
    print(f"\nResNet-56, CIFAR-10, onnxruntime on 1 thread; fp32 {bench.accuracy:.2f} %; {IMAGES} calibration images a draw\n")
    print("| row | drop, points | accuracy, % | lowest to highest | draws | divergence, 1e-3 | seconds a draw |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(line(result, bench))
    print()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
