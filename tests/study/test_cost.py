"""The search costs little beside a trial: a generous bound here, the figures in benchmarks/search_cost.py."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_forty_trials_of_sixty_layers_cost_less_than_half_a_second_each() -> None:
    asked = [sys.executable, str(ROOT / "benchmarks" / "search_cost.py"), "--layers", "60", "--trials", "40"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["name"] == "search_cost"
    assert last["figures"]["mean_s"] < 0.5
    assert last["figures"]["start_s"] < 5
    assert set(last["figures"]["sources"]) > {"analytic", "anchor"}
