"""The fingerprint of this machine: what a measured time depends on; and what other programs did on it meanwhile."""

import os
import platform
import re
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from autocompress.records import Machine

SETS = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "amx_tile",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("autocompress", "torch", "onnxruntime", "numpy", "optuna", "torch-pruning")
STAT = Path("/proc/stat")
DRIVER = Path("/proc/driver/nvidia/version")
GOVERNOR = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
QUIET = 0.1  # share of the cores; the background of an idle machine stays below


def this_machine() -> Machine:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=cores(),
        instruction_sets=tuple(name for name in SETS if name in flags),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        governor=_governor(),
        gpu_driver=_gpu_driver(),
        versions={name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},  # with its build: +cpu, +cu130
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(_allowed())


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def differences(before: Machine, now: Machine) -> list[str]:
    """What changed that times depend on, one readable line each; memory size and kernel release differ from boot to boot."""
    names = ("cpu", "cores", "instruction_sets", "python", "gpu", "governor", "gpu_driver")
    pairs = ((name, getattr(before, name), getattr(now, name)) for name in names)
    changed = [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]
    packages = sorted(set(before.versions) | set(now.versions))
    versions = ((name, before.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in packages)
    return changed + [f"{name}: {old} -> {new}" for name, old, new in versions if old != new]


@dataclass(frozen=True)
class Work:
    """Seconds of all cores that this process may use, and of the process itself, from some moment on."""

    wall: float
    busy: float
    own: float


def work() -> Work | None:
    """What was done up to now; None where there is no /proc/stat that counts. See ``busy_cores``."""
    if not STAT.exists():
        return None
    names = {f"cpu{number}" for number in _allowed()}
    lines = [line.split() for line in STAT.read_text(encoding="utf-8").splitlines()]
    ticks = [[int(value) for value in values[:8]] for name, *values in lines if name in names]
    if not any(map(any, ticks)):
        return None
    busy = sum(sum(values) - sum(values[3:5]) for values in ticks)  # user nice system IDLE IOWAIT irq softirq steal (proc(5))
    own = os.times()
    return Work(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), own.user + own.system)


def busy_cores(before: Work | None, after: Work | None) -> float | None:
    """Cores that others kept busy between two ``work()``, on average: other processes, and other guests of the host (steal).

    None where it is not known, or where less than five ticks of the clock lie between. The counts are in ticks of 10 ms.
    """
    if before is None or after is None or after.wall - before.wall < 0.05:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.wall - before.wall)


def in_words(busy: float | None, threads: int, cores: int) -> str:
    """That the machine was loaded while ``threads`` of its ``cores`` were timed; empty when it was quiet or nobody knows."""
    if busy is None or busy < QUIET * cores:
        return ""
    said = f"other programs kept {busy:.1f} of {cores} core{'s' if cores > 1 else ''} busy meanwhile"
    if busy + threads > cores + QUIET:
        return f"{said}, more than the timing left free: milliseconds are too long, ratios less sure. Measure again on a quiet machine."
    return f"{said}: milliseconds may be longer than on a quiet machine."


def _governor() -> str | None:
    """The frequency governor of the cores that this process may use, "performance" for example; None where the system shows none."""
    paths = [Path(GOVERNOR.format(number)) for number in _allowed()]
    found = {path.read_text(encoding="utf-8").strip() for path in paths if path.exists()}
    return ", ".join(sorted(found)) or None


def _gpu_driver() -> str | None:
    """The version of NVIDIA's kernel driver, as nvidia-smi reads it; None where there is none."""
    if not DRIVER.exists():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text(encoding="utf-8"))
    return found[1] if found else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
