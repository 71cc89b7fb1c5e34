"""The fingerprint of this machine: what a measured time depends on."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from autocompress.records import Machine

SETS = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "amx_tile",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("autocompress", "torch", "onnxruntime", "numpy", "optuna", "torch-pruning")


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
        versions={name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},  # with its build: +cpu, +cu130
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def differences(before: Machine, now: Machine) -> list[str]:
    """What changed that times depend on, one readable line each; memory size and kernel release differ from boot to boot."""
    names = ("cpu", "cores", "instruction_sets", "python", "gpu")
    pairs = ((name, getattr(before, name), getattr(now, name)) for name in names)
    changed = [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]
    packages = sorted(set(before.versions) | set(now.versions))
    versions = ((name, before.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in packages)
    return changed + [f"{name}: {old} -> {new}" for name, old, new in versions if old != new]


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
