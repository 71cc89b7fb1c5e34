"""The README keeps its promises: its task runs, its commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_your_own_model_takes_at_most_twenty_lines() -> None:
    assert len(code_blocks()[0].splitlines()) <= 22  # the two blank lines before a function are not work


def test_the_task_of_the_readme_is_searched_and_the_python_lines_run(tmp_path: Path) -> None:
    task_code, python_code = code_blocks()
    (tmp_path / "my_model.py").write_text(task_code, encoding="utf-8")
    layers = re.search(r"nn\.Sequential\(.*?\n    \)", task_code, re.DOTALL)
    assert layers is not None
    torch.manual_seed(0)
    model = eval(layers[0], {"nn": torch.nn})
    torch.save(model.state_dict(), tmp_path / "my_model.pt")
    (tmp_path / "tiny.yaml").write_text("keep: {choices: [0.5, 1.0]}\nrecovery: {steps: 2, quantized_steps: 2}\n", encoding="utf-8")
    small = python_code.replace("max_drop=1.0", "max_drop=100, min_speedup=0.01, space='tiny.yaml'").replace("50", "1")
    (tmp_path / "use.py").write_text("from my_model import make\ntask = make()\n" + small, encoding="utf-8")
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifact" / "model.onnx").exists()
    assert "'speedup'" in done.stdout


@pytest.mark.parametrize("name", re.findall(r"`autocompress (\w+)", README))
def test_every_command_of_the_readme_exists(name: str) -> None:
    from autocompress.cli import app

    assert name in {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}


def test_every_file_of_the_tree_exists() -> None:
    tree = README.partition("## The tree")[2].partition("How to add")[0]
    lines = [f"{line} " for line in tree.splitlines() if line.startswith("    ")]
    names = [name for line in lines for name in re.findall(r"[\w.]+(?:\.py|\.toml|/)(?=\s)", line)]
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "autocompress" / name).exists(), name


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_two_lines_of_set_up_are_those_of_the_issue() -> None:
    assert "pip install -e . && autocompress search --budget 50" in README
    assert "pip install -e '.[test]' && pytest" in README
