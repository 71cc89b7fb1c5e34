"""What this machine can run, and how to get the rest."""

import importlib.util

from autocompress.measure.machine import this_machine
from autocompress.runtimes import RUNTIMES, find_runtime


def doctor() -> list[tuple[str, str, str]]:
    """What this machine can run: (what, ok | missing | note, detail or how to get it)."""
    machine = this_machine()
    rows = [
        ("cpu", "ok", f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets) or 'instruction sets unknown'}"),
        ("training device", "ok", machine.gpu or "CPU; a CUDA build of torch and a GPU make recovery faster"),
    ]
    for name, (_, package, command) in sorted(RUNTIMES.items()):
        if name == "fake":
            continue
        if importlib.util.find_spec(package) is None:
            rows.append((f"runtime {name}", "missing", f"get it with `{command}`"))
            continue
        bits = find_runtime(name).weight_bits(machine)
        real = ", ".join(str(width) for width in bits if not bits[width])
        rows.append((f"runtime {name}", "ok", f"weight bits with real kernels: {real}"))
        rows += [(f"{name}, {width} bits", "note", bits[width]) for width in (7, 8) if bits[width]]
    return rows + [(name, "ok" if version != "absent" else "missing", version) for name, version in machine.versions.items()]
