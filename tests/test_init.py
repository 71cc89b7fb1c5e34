"""The public names, and that asking for none of them costs nothing."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import autocompress

HOMES = {
    "autocompress.compare": ("compare",),
    "autocompress.config": ("SearchConfig", "Space"),
    "autocompress.errors": ("AutocompressError", "UserError"),
    "autocompress.job": ("apply", "doctor", "explain", "export", "inspect", "load", "resume", "search", "show", "verify"),
    "autocompress.recipe": ("Distillation", "LayerPlan", "Recipe", "Recovery"),
    "autocompress.records": ("Measurement", "Target", "TrialResult"),
    "autocompress.refine": ("refine",),
    "autocompress.study.ask": ("ask",),
    "autocompress.tasks.task": ("Task",),
}
PUBLIC = sorted(name for names in HOMES.values() for name in names)


def python(code: str) -> str:
    """Run in an interpreter of its own, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names_are_these_and_sorted() -> None:
    assert autocompress.__all__ == PUBLIC
    homes = {name: home for home, names in HOMES.items() for name in names}
    assert homes == autocompress._MODULES
    assert set(PUBLIC) <= set(dir(autocompress))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_leads_to_where_it_is_defined(name: str) -> None:
    home = import_module(autocompress._MODULES[name])
    assert getattr(autocompress, name) is getattr(home, name)
    assert not isinstance(getattr(autocompress, name), ModuleType)


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'optuna', 'onnxruntime', 'matplotlib', 'pydantic', 'rich', 'typer'}"
    assert python(f"import sys, autocompress; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_plain_data_of_the_package_comes_without_torch_and_optuna() -> None:
    code = (
        "import sys; from autocompress import Recipe, SearchConfig, Target; print(sorted({'torch', 'optuna'} & set(sys.modules)))"
    )
    assert python(code) == "[]"


def test_the_package_study_is_not_hidden() -> None:
    code = "import autocompress, autocompress.study; print(type(autocompress.study).__name__, autocompress.study.__name__)"
    assert python(code) == "module autocompress.study"
    assert "study" not in autocompress.__all__


def test_a_room_that_bears_the_name_of_a_public_function_does_not_hide_it() -> None:
    """The import of the module ``autocompress.export`` sets that attribute; ``autocompress.export(...)`` has to stay a call."""
    was = autocompress.__dict__.get("export")
    autocompress.export = ModuleType("autocompress.export")  # what the import system does
    assert autocompress.__dict__.get("export") is was
    room = ModuleType("autocompress.some_room")
    autocompress.some_room = room
    try:
        assert autocompress.some_room is room
    finally:
        del autocompress.some_room


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'serach'; public names: .*\bsearch\b"):
        _ = autocompress.serach
    assert not hasattr(autocompress, "optimize")


def test_the_version_is_that_of_the_metadata() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert autocompress.__version__ == project["project"]["version"]
