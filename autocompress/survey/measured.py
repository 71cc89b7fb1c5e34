"""The survey of a study, whole: harms of every choice, times of every layer, and the latency model."""

import time
from collections.abc import Sequence

from autocompress.progress import Progress
from autocompress.recipe import Recipe
from autocompress.records import Survey, Tried
from autocompress.survey.harm import Asked, Judge, harms
from autocompress.survey.latency import FEWEST, fit
from autocompress.survey.probes import Site, baseline_profile, probed


def measured(site: Site, asked: Sequence[Asked], structures: Sequence[Recipe], judge: Judge, progress: Progress) -> Survey:
    """Harms in about harm.HARM_SECONDS at most, times in ``site.seconds``; ``structures`` in order of importance, most telling first."""
    started, notes = time.monotonic(), []
    with progress.stage("harm of every choice", len(asked)) as advance:
        found = harms(site.model, asked, judge, advance=advance)
    untried = sum(one.harm is None for one in found.tried)
    if untried:
        notes.append(f"{untried} of {len(found.tried)} choices were not tried; the first reason: {_first_reason(found.tried)}")
    layer_ms, latency = baseline_profile(site), None
    if not layer_ms:
        notes.append(f"{site.runtime.name} has no profile: times of layers are not known, and none is predicted")
    else:
        with progress.stage("times of structures", len(structures)) as advance:
            taken, rows = probed(site, structures, advance)
            latency = fit(site, taken, rows)
        if latency is None:
            notes.append(f"{len(taken)} structures could be timed, too few to predict times from; {FEWEST} are needed")
    if len(site.target.batch_sizes) > 1:
        notes.append(f"times are those of batch size {site.target.batch_size}, the smallest of {site.target.batches}")
    return Survey(
        tried=found.tried, layer_ms=layer_ms, latency=latency, samples=found.samples, seconds=round(time.monotonic() - started, 3),
        notes=tuple(notes),
    )  # fmt: skip


def _first_reason(tried: Sequence[Tried]) -> str:
    return next(one.reason for one in tried if one.harm is None)
