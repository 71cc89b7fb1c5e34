"""Where the proposals came from, and which source earned what."""

from autocompress.report.facts import Facts, number
from autocompress.report.tables import bar, note, section, table

SOURCES = {
    "analytic": "least predicted harm at a speed, by the survey, before any trial",
    "anchor": "the same share and bits in every layer",
    "mutation": "a member of the front with a few choices moved",
    "drift": "a member of the front with many choices one step harder, or milder",
    "crossover": "choices of two good recipes",
    "random": "anywhere in the space",
    "transfer": "the front of the study it was started from",
    "given": "a recipe given by hand",
    "tpe": "Optuna's TPE",
    "nsga2": "Optuna's NSGA-II",
    "nsga3": "Optuna's NSGA-III",
    "gp": "Optuna's Gaussian process",
    "qmc": "Optuna's Sobol sequence",
}


def sources_section(facts: Facts) -> str:
    """Empty where the study's summary is of a time before sources were counted."""
    found = facts.summary.get("sources")
    if not found:
        return ""
    total = max(sum(one["trials"] for one in found.values()), 1)
    rows = []
    for name, one in found.items():
        counts = bar(one["trials"] / total, str(one["trials"])), one["measured"], one["front"]
        rows.append((f"{name}: {SOURCES[name]}" if name in SOURCES else name, *counts, number(one["lost_without"], 3)))
    head = ("source", "trials", "measured", "on the front", "hypervolume lost without")
    said = "The hypervolume lost without a source is that of the trials of all others: what another source found as well costs nothing."
    return section("Who proposed what", table(head, rows, "layers"), note(said))
