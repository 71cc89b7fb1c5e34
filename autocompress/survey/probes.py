"""Structures deployed untrained, profiled and timed: what the latency model is fitted to. They are kept on disk by machine and target.

A probe is remembered under a digest of the layers and the recipe, so a second study of a model takes none again; and its rows, one a
layer, are remembered by the shape of the layer, so a study of another model learns from them too.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from autocompress.compress.build import freeze_, provisional, settle, shrink
from autocompress.errors import InfeasibleRecipe, InvalidStudy
from autocompress.latency_model import Load, loads_of
from autocompress.measure.latency import glance
from autocompress.recipe import Frozen, Recipe, Scheme
from autocompress.records import LayerInfo, Machine, Target
from autocompress.runs import read_json, to_json, write_text
from autocompress.runtimes.runtime import REST, Array, Deployed, Runtime, deploy

PROBE_SECONDS = 8.0  # no probe is begun that would not end by then, once there are LEAST_PROBES
MOST_SECONDS = 60.0  # and none at all after that
LEAST_PROBES = 10
RANGES = 64  # inputs for the ranges of integer layers: any will do for a time
KEPT_PROBES = 512  # in a file; the oldest leave


class Shape(Frozen):
    """What decides a layer's time beside its widths; ``positions``: outputs of one channel, for one sample."""

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    conv_groups: int
    positions: int
    scheme: Scheme


class Row(Frozen):
    """One layer of a probe: kernels, channels it read and wrote, multiply-adds a sample, milliseconds a batch."""

    shape: Shape
    kernels: int
    inner: float
    outer: float
    macs: float
    ms: float


class Probe(Frozen):
    """``total_ms`` is timed beside the baseline, with the drift of the machine taken out; ``rest_ms`` of it belongs to no layer."""

    model: str
    recipe: str
    rows: tuple[Row, ...]
    rest_ms: float
    total_ms: float


class Table(Frozen):
    """latency-<digest>.json."""

    schema_version: Literal[1] = 1
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, eq=False)
class Site:
    """Where probes are taken: the given model, its layers and calibration inputs (N, ...), the target, the deployed baseline."""

    model: nn.Module
    layers: tuple[LayerInfo, ...]
    runtime: Runtime
    target: Target
    machine: Machine
    calibration: Tensor
    batch: Array
    baseline: Deployed
    baseline_ms: float
    cache: Path | None = None
    seconds: float = PROBE_SECONDS
    say: Callable[[str], None] = field(default=lambda text: None)

    @property
    def model_digest(self) -> str:
        """Of what decides the times of this model here, the batch included: its layers and the shape of its inputs, not its weights."""
        told = [layer.model_dump(mode="json") for layer in self.layers]
        return hashlib.sha256(json.dumps([told, list(self.batch.shape), repr(self.model)]).encode()).hexdigest()[:16]

    @property
    def file(self) -> Path | None:
        """One file for each machine with its versions, runtime, device, number of threads and batch size."""
        if self.cache is None:
            return None
        told = [self.machine.digest, self.target.runtime, self.target.device, self.target.threads, self.target.batch_size]
        return self.cache / f"latency-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}.json"


def probed(
    site: Site, recipes: Sequence[Recipe], advance: Callable[[int], None] = lambda steps: None
) -> tuple[list[tuple[Recipe, Probe]], list[Row]]:
    """The probes of this model, taken now or known from before, and the rows of all that this machine ever took.

    The recipes stand in order of importance; for a slow model the last ones are left out.
    """
    known = read_table(site)
    mine = {probe.recipe: probe for probe in known if probe.model == site.model_digest}
    found: list[tuple[Recipe, Probe]] = []
    fresh: list[Probe] = []
    longest, started = 0.0, time.monotonic()
    for recipe in recipes:
        advance(1)
        key = _structure(recipe)
        spent = time.monotonic() - started
        if key not in mine:
            if spent > MOST_SECONDS or (len(found) >= LEAST_PROBES and spent + longest > site.seconds):
                continue
            try:
                mine[key] = _take(site, recipe, key)
            except InfeasibleRecipe:
                continue  # the trial of such a recipe would end the same way
            fresh.append(mine[key])
            longest = max(longest, time.monotonic() - started - spent)
        found.append((recipe, mine[key]))
    if fresh and site.file is not None:
        write_text(site.file, to_json(Table(probes=(*known, *fresh)[-KEPT_PROBES:])))
    return found, [row for probe in (*known, *fresh) for row in probe.rows]


def read_table(site: Site) -> tuple[Probe, ...]:
    """What is on disk; a damaged file, or one of another version, is told and made anew."""
    if site.file is None or not site.file.exists():
        return ()
    try:
        return read_json(site.file, Table).probes
    except InvalidStudy as error:
        site.say(f"note: the table of times is not readable and is made anew: {str(error).splitlines()[0]}")
        return ()


def rows_of(recipe: Recipe, layers: Sequence[LayerInfo], times: dict[str, float]) -> Iterable[Row]:
    """A row for every layer that has a time."""
    infos = {layer.name: layer for layer in layers}
    for name, load in loads_of(recipe, layers).items():
        if name in times:
            yield _row(infos[name], load, times[name])


def shape_of(layer: LayerInfo, scheme: Scheme) -> Shape:
    area = layer.kernel[0] * layer.kernel[1]
    a_position = layer.in_channels // layer.conv_groups * layer.out_channels * area if layer.kind in ("conv2d", "linear") else layer.params
    groups = min(layer.conv_groups, 2)  # one, or several: depthwise ones differ in their number only
    positions = layer.macs // max(a_position, 1)
    return Shape(kind=layer.kind, kernel=layer.kernel, stride=layer.stride, conv_groups=groups, positions=positions, scheme=scheme)


def _row(layer: LayerInfo, load: Load, ms: float) -> Row:
    return Row(
        shape=shape_of(layer, load.scheme),
        kernels=load.kernels,
        inner=load.inputs * layer.in_channels,
        outer=load.outputs * layer.out_channels,
        macs=load.macs * layer.macs,
        ms=ms,
    )


def _structure(recipe: Recipe) -> str:
    """Digest of what decides the time of a recipe."""
    plain = provisional(recipe)
    content = {"layers": [plan.model_dump(mode="json") for plan in plain.layers]}
    content["quantization"] = [plain.quantization.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _take(site: Site, recipe: Recipe, key: str) -> Probe:
    """Deploy, profile and time one structure. Raises InfeasibleRecipe."""
    plain = provisional(recipe)
    model = settle(shrink(site.model, plain, site.calibration), plain, site.calibration[:RANGES])
    freeze_(model)
    names = [layer.name for layer in site.layers if layer.kind != "block"]
    with tempfile.TemporaryDirectory() as folder:
        deployed = deploy(site.runtime, model, site.calibration[:1], Path(folder) / "probe", site.target.threads)
        speedup = glance(site.baseline, deployed, site.batch, device=site.target.device)
        times = deployed.profile(site.batch, names)
    total = site.baseline_ms / speedup
    scale = total / max(sum(times.values()), 1e-12)
    rows = tuple(rows_of(recipe, site.layers, {name: spent * scale for name, spent in times.items()}))
    return Probe(model=site.model_digest, recipe=key, rows=rows, rest_ms=total - sum(row.ms for row in rows), total_ms=total)


def baseline_profile(site: Site) -> dict[str, float]:
    """Milliseconds a batch of each layer of the deployed baseline, ``REST`` left out; they and the rest sum to ``baseline_ms``."""
    times = site.baseline.profile(site.batch, [layer.name for layer in site.layers if layer.kind != "block"])
    scale = site.baseline_ms / max(sum(times.values()), 1e-12)
    return {layer.name: times[layer.name] * scale for layer in site.layers if layer.name in times and layer.name != REST}
