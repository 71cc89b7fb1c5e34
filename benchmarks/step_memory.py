"""Peak memory of a recovery step against a plain one with the same model, optimizer and teacher: python benchmarks/step_memory.py

Counted are the bytes of tensors that torch's allocator has handed out and not got back, event by event (torch.profiler): exact, and the
same in every run. The peak resident size of a process is neither: most of the 500 MB of a fresh one is libraries, oneDNN's caches and what
malloc keeps, so that a step of twice the memory would still pass. The models themselves and the teacher's weights lie outside the
window of both, which makes the ratio stricter, not kinder.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own path is this folder

from autocompress.blocks import FakeQuantized
from autocompress.compress.build import settle
from autocompress.compress.distill import Lesson, Sample, Teacher, taught
from autocompress.compress.recover import recover_
from autocompress.progress import Progress
from autocompress.recipe import Distillation, LayerPlan, Quantization, Recipe, Recovery
from autocompress.tasks.digits import digits
from autocompress.tasks.task import Task, calibration, stream
from benchmarks.fashion import CACHE, fashion, is_present

MOST = 1.3  # times a plain step
STEPS = 4  # the first ones also make gradients and moments
TAUGHT = Distillation()


def main() -> None:
    task = (fashion if is_present() else digits)(CACHE, Progress())
    found = measured(task)
    show(found)
    print(json.dumps({"name": "step_memory", "figures": found, "met": all(one["met"] for one in found.values())}))


def measured(task: Task) -> dict[str, dict[str, Any]]:
    """By kind of step: its peak, that of a plain loop, their ratio and whether it is small enough."""
    recovery = Recovery(steps=STEPS, quantized_steps=STEPS)
    layers = tuple(
        LayerPlan(name=name, weight_bits=8, activation_bits=8)
        for name, module in task.model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    alone = Recipe(distillation=None, recovery=recovery)
    distilled = Recipe(distillation=TAUGHT, recovery=recovery)
    on_grid = distilled.model_copy(update={"layers": layers})
    learned = on_grid.model_copy(update={"quantization": Quantization(learned_step=True)})
    return {
        "no teacher": compared(task, alone),
        "distilled": compared(task, distilled),
        "distilled, 8-bit fake-quantized": compared(task, on_grid),
        "distilled, learned steps (LSQ)": compared(task, learned),
    }


def compared(task: Task, recipe: Recipe) -> dict[str, Any]:
    lesson = Lesson(task.loss, teacher=task.model)
    work = settle(task.model, recipe, calibration(task)) if recipe.is_quantized else copy.deepcopy(task.model)
    assert isinstance(work, FakeQuantized) == recipe.is_quantized
    other = copy.deepcopy(task.model)
    recovering = peak_bytes(lambda: recover_(work, recipe, samples(task, recipe), lesson))
    plain = peak_bytes(lambda: train_plainly_(other, samples(task, recipe), recipe.distillation))
    ratio = recovering / plain
    return {"mib": round(recovering / 2**20, 2), "plain_mib": round(plain / 2**20, 2), "ratio": round(ratio, 3), "met": ratio <= MOST}


def samples(task: Task, recipe: Recipe) -> Iterator[Sample]:
    """Made when they are asked for, the teacher's forward pass included: the dearest way, and the same for both."""
    return taught(stream(task, STEPS, seed=0), [Teacher(task.model)], recipe.distillation, 0, torch.device("cpu"))


def train_plainly_(model: nn.Module, source: Iterator[Sample], settings: Distillation | None) -> None:
    """What anyone would write: AdamW on the task's loss and, with a teacher, the divergence from its logits."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()
    for inputs, targets, teacher, _ in source:
        loss = plain_loss(model(inputs), targets, teacher, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def plain_loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None, settings: Distillation | None) -> Tensor:
    hard = F.cross_entropy(outputs, targets)
    if teacher is None or settings is None:
        return hard
    heat = settings.temperature
    soft = F.kl_div((outputs / heat).log_softmax(1), (teacher / heat).softmax(1), reduction="batchmean") * heat**2
    return settings.hard_weight * hard + settings.soft_weight * soft


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors alive at once among those made inside."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    recorded = profile.profiler.kineto_results
    assert recorded is not None
    events = sorted((event.start_ns(), event.nbytes()) for event in recorded.events() if event.name() == "[memory]")
    alive = most = 0
    for _, change in events:
        alive += change
        most = max(most, alive)
    assert most > 0, "the profiler recorded no allocation"
    return most


def show(found: dict[str, dict[str, Any]]) -> None:
    print("\npeak memory of a recovery step over that of a plain one, same model, optimizer and teacher")
    for name, one in found.items():
        verdict = "met" if one["met"] else "MISSED"
        print(f"{name:48} {one['mib']:7.1f} of {one['plain_mib']:7.1f} MiB {one['ratio']:6.2f}x, at most {MOST:g}x: {verdict}")


if __name__ == "__main__":
    main()
