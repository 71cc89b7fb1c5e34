"""The benchmarks run; what they measure is judged on a quiet machine and kept in runs/README.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_technique_of_the_smoke_run_gives_an_artifact_that_is_measured() -> None:
    """A few rows of benchmarks/techniques.py with two steps of recovery each: about a minute, and the baseline where none is cached."""
    asked = [sys.executable, str(ROOT / "benchmarks" / "techniques.py"), "--smoke"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["name"] == "techniques"
    rows = last["figures"]["digits"]["rows"]
    assert len(rows) >= 7
    assert {name: row["outcome"] for name, row in rows.items()} == dict.fromkeys(rows, "measured")
    assert all(row["agreement"] > 0.9 for row in rows.values())
