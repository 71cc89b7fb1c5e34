"""The data that a developer's machine may have beside the checkout: ../shared/data, or where AUTOCOMPRESS_DATA says."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("AUTOCOMPRESS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def real(name: str) -> Path:
    """Skips where it is not there; tests/conftest.py lists that skip, by `test_the_real_`."""
    if not (FOLDER / name).exists():
        pytest.skip(f"no {name} in {FOLDER}; AUTOCOMPRESS_DATA names another folder")
    return FOLDER / name
