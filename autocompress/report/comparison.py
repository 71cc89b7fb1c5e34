"""The baseline against the chosen recipe, the search against the holdout split, and the front as a table."""

from collections.abc import Iterator

from autocompress.records import Measurement, Usage
from autocompress.report.facts import (
    PERCENT,
    UNKNOWN,
    Facts,
    drop_interval,
    drop_title,
    interval,
    number,
    reference,
    score,
    signed,
    size,
    where,
)
from autocompress.report.quality import worst_class
from autocompress.report.tables import note, section, table

Line = tuple[str, str, str]
METERS = {"utilisation": ("Utilisation", 100.0, " %"), "energy_mj": ("Energy a call", 1.0, " mJ")}  # field -> label, factor, unit


def comparison(facts: Facts) -> str:
    """Before and after, each pair measured together: on the holdout split where that was measured."""
    searched = facts.measured.get(facts.trial)
    point = facts.holdouts.get(facts.trial) or searched
    split = point.split if point else "search"
    name = f"{facts.word}, trial {facts.trial}" if point else "none"
    lines = [*time_lines(facts, point), *batch_lines(point), *size_lines(facts, point), *usage_lines(facts), *quality_lines(facts, point)]
    lines += [
        ("Multiply-adds a sample", f"{facts.baseline.macs / 1e6:.2f} M", millions(point.macs if point else None)),
        ("Parameters", f"{facts.baseline.params:,}", f"{point.params:,}" if point and point.params is not None else UNKNOWN),
    ]
    stands = (
        f"Numbers of the {split} split; times of {where(facts.baseline.target)}, baseline and artifact in alternating blocks. "
        f"Intervals are 95 %. Speedups are against {reference(facts)}; eager PyTorch is a second reference."
    )
    return section("Before and after", table(("", "baseline, fp32", name), lines, "fits"), note(stands), not_metered(facts), splits(facts))


def millions(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count / 1e6:.2f} M"


def sentence(words: str) -> str:
    """With a capital letter in front; the rest as it is."""
    return words[:1].upper() + words[1:]


def time_lines(facts: Facts, point: Measurement | None) -> Iterator[Line]:
    base = facts.baseline
    before = point.baseline_latency_ms if point else base.latency_ms
    yield "Latency, median", number(before, 3, " ms"), number(point.latency_ms if point else None, 3, " ms")
    if point is not None and point.p90_ms is not None:
        yield "Latency, 90 % of the calls within", number(point.baseline_p90_ms, 3, " ms"), number(point.p90_ms, 3, " ms")
    if point is not None and point.p99_ms is not None:
        yield "Latency, 99 % of the calls within", number(point.baseline_p99_ms, 3, " ms"), number(point.p99_ms, 3, " ms")
    yield "Latency in eager PyTorch", number(base.eager_latency_ms, 3, " ms"), UNKNOWN
    unresolved = ", not resolved" if point is not None and not point.resolved else ""
    yield "Speedup", "1x", (interval(point.model_dump()) if point else UNKNOWN) + unresolved
    if point is not None and point.faster is not None:
        yield "Probability that a block of calls is faster", UNKNOWN, number(100 * point.faster, 0, " %")


def batch_lines(point: Measurement | None) -> Iterator[Line]:
    """Each batch size of several; the speedup of the recipe is then their geometric mean, and the worst is named."""
    batches = point.batches if point else ()
    worst = min(batches, key=lambda one: one.speedup, default=None)
    for one in batches:
        which = " (the worst)" if one is worst and len(batches) > 1 else ""
        after = f"{number(one.latency_ms, 3, ' ms')}, {interval(one.model_dump())}"
        yield f"Latency at batch {one.batch_size}{which}", number(one.baseline_latency_ms, 3, " ms"), after


def size_lines(facts: Facts, point: Measurement | None) -> Iterator[Line]:
    before = point.baseline_size_bytes if point else facts.baseline.size_bytes
    yield "Size of the packed weights", size(before), size(point.size_bytes if point else None)
    if point is not None and point.deployed_bytes:
        yield "Size of what the runtime loads", UNKNOWN, size(point.deployed_bytes)


def usage_lines(facts: Facts) -> Iterator[Line]:
    """Throughput, memory, load time, energy: of a process that only loads the artifact; where it was inspected."""
    found = facts.inspection
    if found is None:
        return
    for one in found.throughput:
        threads = "" if one.threads == facts.baseline.target.threads else f", {one.threads} threads"
        yield f"Throughput at batch {one.batch_size}{threads}", rate(one.baseline_samples_per_s), rate(one.samples_per_s)
    before, after = found.baseline_usage, found.usage
    yield "Load time", number(before.load_ms, 0, " ms"), number(after.load_ms, 0, " ms")
    yield "Memory, peak", size(before.peak_bytes), size(after.peak_bytes)
    yield "Memory, mean", size(before.mean_bytes), size(after.mean_bytes)
    if after.reserved_bytes is not None:
        yield "Memory, reserved", size(before.reserved_bytes), size(after.reserved_bytes)
    for field, (label, factor, unit) in METERS.items():
        if getattr(after, field) is not None:
            yield label, metered(before, field, factor, unit), metered(after, field, factor, unit)


def not_metered(facts: Facts) -> str:
    """Why a row of the usage is not there; too long for a cell."""
    usage = facts.inspection.usage if facts.inspection else None
    missing = {label: usage.reasons.get(field) for field, (label, _, _) in METERS.items() if getattr(usage, field) is None} if usage else {}
    return "".join(note(f"{label}: {reason}.") for label, reason in missing.items() if reason)


def rate(samples_per_s: float) -> str:
    return f"{samples_per_s:,.0f} samples/s"


def metered(usage: Usage, field: str, factor: float, unit: str) -> str:
    value = getattr(usage, field)
    return UNKNOWN if value is None else f"{factor * value:.3g}{unit}"


def quality_lines(facts: Facts, point: Measurement | None) -> Iterator[Line]:
    base, found = facts.baseline, facts.inspection
    before = point.baseline_accuracy if point else base.accuracy
    yield base.metric, score(before, facts.unit), score(point.accuracy if point else None, facts.unit)
    yield sentence(drop_title(base)), "0", drop_interval(point, facts.unit)
    worst = worst_class(facts)
    if worst is not None:
        yield f"Worst class, {worst.name}", score(worst.baseline_score, facts.unit), score(worst.score, facts.unit)
    if found is not None and found.calibration_error is not None:
        yield "Calibration error", number(found.baseline_calibration_error, 2, " %"), number(found.calibration_error, 2, " %")


def splits(facts: Facts) -> str:
    """The number that selected, the number that did not, and the gap between them."""
    search, holdout = facts.measured.get(facts.trial), facts.holdouts.get(facts.trial)
    if search is None or holdout is None:
        return ""
    both = (search, holdout)

    def gap(field: str) -> str:
        return signed(getattr(holdout, field) - getattr(search, field), 2 if facts.unit == PERCENT else 4)

    rows = [
        ("Speedup", interval(search.model_dump()), interval(holdout.model_dump()), signed(holdout.speedup - search.speedup, 2)),
        (sentence(drop_title(facts.baseline)), *(drop_interval(one, facts.unit) for one in both), gap("drop")),
        (facts.baseline.metric, *(score(one.accuracy, facts.unit) for one in both), gap("accuracy")),
        ("Samples", str(search.samples), str(holdout.samples), ""),
    ]
    told = note("The search split selected this recipe, so it flatters it; the holdout split took no part. The gap is holdout less search.")
    return f"<h3>Search and holdout</h3>{table(('', 'search', 'holdout', 'gap'), rows, 'fits')}{told}"


def front_table(facts: Facts) -> str:
    front = facts.summary.get("front") or []
    best = (facts.summary.get("best") or {}).get("trial")
    head = ("trial", "speedup", "drop", "size", "latency", "speedup, holdout", "drop, holdout")
    rows = []
    for row in front:
        holdout = row.get("holdout") or {}
        trial = f"{row['trial']} (best)" if row["trial"] == best else row["trial"]
        drop = drop_interval(facts.measured.get(row["trial"]), facts.unit)
        numbers = (drop, size(row.get("size_bytes")), number(row.get("latency_ms"), 3, " ms"))
        rows.append((trial, interval(row), *numbers, interval(holdout), score(holdout.get("drop"), facts.unit)))
    marked = next((index for index, row in enumerate(front) if row["trial"] == best), -1)
    text = "No measured recipe beats one of these on both speed and drop. Speedups with 95 % intervals are against"
    pairs = "; ".join(f"{one} and {other}" for one, other in facts.summary.get("equals", ()))
    equal = note(f"Equally fast as far as this machine can tell: trials {pairs}.") if pairs else ""
    return section("Pareto front", table(head, rows, marked=marked), note(f"{text} {reference(facts)}."), equal)
