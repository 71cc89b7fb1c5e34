"""The house stands: rooms import only from lower floors, heavy libraries stay in their rooms, files and functions stay small.

The sources are read with ``ast``, never imported. The table is that of DESIGN section 1,
with what speaks to a person (`terminal`, `answers`, `progress`, `options`) and `decisions` on floor 3,
`latency_model` and `gate` there too, for they are arithmetic, `artifact` and `speeds` on 4, `rungs` on 8, `compare` on 9,
and what `job` is made of (`saved`, `bench`, `contest`, `explain`, `verify`) beside it.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "autocompress"

FLOORS = {
    "errors": 0,
    "recipe": 1,
    "records": 2,
    **dict.fromkeys(("bounds", "config", "runs", "terminal", "answers", "progress", "options", "decisions", "gate", "latency_model"), 3),
    **dict.fromkeys(("study", "report", "blocks", "artifact", "speeds"), 4),
    "tasks": 5,
    **dict.fromkeys(("compress", "runtimes"), 6),
    "measure": 7,
    **dict.fromkeys(("rungs", "survey"), 8),
    **dict.fromkeys(("evaluate", "export", "compare"), 9),
    **dict.fromkeys(("saved", "bench", "contest", "explain", "verify", "inspection", "surveyed", "doctor", "job", "refine"), 10),
    **dict.fromkeys(("questions", "cli", "__init__", "__main__"), 11),
}
# Five rooms (errors, recipe, records, config, runs) build on each other in turn, and the table has four floors for them:
# config lies under the two that store and tell what was asked, and bounds under it. Named pairs: no other two
# rooms of a floor may see each other.
# terminal is how progress, answers and cli speak; questions are commands of cli; report shows what study makes of the trials (recipes in
# words, hypervolume, dimensions), so that there is one definition of each. Beside job: saved is the half of it that only reads, bench
# what its functions begin with, contest, explain and verify what it asks of the evaluator beside a search. refine
# starts a study from another one, as job starts all of them.
STAIRS = {
    ("config", "bounds"), ("runs", "config"), ("progress", "config"), ("progress", "terminal"), ("answers", "terminal"),
    ("cli", "questions"), ("report", "study"), ("explain", "bench"), ("verify", "bench"), ("inspection", "bench"), ("surveyed", "bench"),
    *(("refine", room) for room in ("bench", "job", "saved")),
    *(("job", room) for room in ("saved", "bench", "contest", "doctor", "explain", "inspection", "surveyed", "verify")),
}  # fmt: skip

TORCH_ROOMS = {
    *("blocks", "tasks", "compress", "runtimes", "measure", "rungs", "survey", "evaluate", "export"),
    *("bench", "verify", "inspection", "surveyed", "doctor", "job", "refine", "cli"),
}
OWNERS = {
    "optuna": {"study"},
    "torch": TORCH_ROOMS,
    "torch_pruning": {"compress"},
    "tensorly": {"compress"},
    "onnx": {"runtimes"},
    "onnxruntime": {"runtimes"},
    "openvino": {"runtimes"},
    "torchao": {"runtimes"},
    "pydantic": {"errors", "recipe", "records", "config", "runs"},
    "yaml": {"errors", "recipe", "records", "config", "runs"},
    "matplotlib": {"report"},
    "sklearn": {"tasks"},
    "transformers": {"tasks"},
    "PIL": {"tasks"},
    "rich": {"terminal", "progress", "cli"},
    "typer": {"cli", "questions", "options"},
}
FACES = {"cli", "questions", "__init__", "__main__"}  # what must load at once, without torch or optuna
LIGHT = 3  # so the faces import only from floors 0 to 3 while they load
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "core", "manager", "engine", "handler"}
MOST_LINES = {"module": 400, "function": 60}
OWN_MODULE = re.compile(r"autocompress(\.\w+)+")


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, where it stands, and whether it runs when the file loads."""

    module: str
    line: int
    in_function: bool
    for_types: bool


def room_of(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def own_room(module: str, package: Path) -> str | None:
    """The room that ``autocompress.x.y`` lies in; a name that the package itself gives is in `__init__`; None for the rest."""
    top, *rest = module.split(".")
    if top != "autocompress":
        return None
    known = [*FLOORS, *(path.name.removesuffix(".py") for path in package.iterdir())]
    return rest[0] if rest and rest[0] in known else "__init__"


def absolute(node: ast.ImportFrom, file: Path, package: Path) -> str:
    """The dotted name that ``from ... import`` starts from, dots resolved."""
    if not node.level:
        return node.module or ""
    folder = ["autocompress", *file.relative_to(package).parts[:-1]]
    return ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, file: Path, package: Path, in_function: bool = False, for_types: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = absolute(node, file, package)
            modules = [f"{start}.{alias.name}" for alias in node.names] if start == "autocompress" else [start]
        yield from (Import(module, node.lineno, in_function, for_types) for module in modules)  # type: ignore[attr-defined]
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, file, package, inside, for_types or is_for_types(node))


def dynamic_imports(tree: ast.AST, room: str, package: Path) -> Iterator[Import]:
    """Own modules named in strings: name -> module tables may do that, and still reach only down or into their own room."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and OWN_MODULE.fullmatch(str(node.value))]
    for text in texts if room not in FACES else []:
        if own_room(str(text.value), package) != room:
            yield Import(str(text.value), text.lineno, in_function=False, for_types=False)


def floor_faults(room: str, found: Import, package: Path) -> Iterator[str]:
    other = own_room(found.module, package)
    if other is None or other == room:
        if other == room and found.in_function and room not in FACES:
            yield "an own import hides inside a function; move it to the top of the file"
        return
    if other not in FLOORS:
        yield f"the room `{other}` is on no floor; give it one in FLOORS and in DESIGN section 1"
    elif FLOORS[other] >= FLOORS[room] and (room, other) not in STAIRS:
        side = "beside" if FLOORS[other] == FLOORS[room] else "above"
        yield f"imports `{other}` (floor {FLOORS[other]}), which lies {side} `{room}` (floor {FLOORS[room]})"
    if found.in_function and room not in FACES:
        yield f"imports `{other}` inside a function; only cli.py and the lazy names of __init__.py may"
    is_light = FLOORS.get(other, 99) <= LIGHT or other in FACES  # a face loads nothing heavy either
    if room in FACES and not found.in_function and not found.for_types and not is_light:
        yield f"imports `{other}` while it loads, which brings torch or optuna into --help; import it inside the command"


def library_faults(room: str, found: Import) -> Iterator[str]:
    library = found.module.split(".")[0]
    owners = OWNERS.get(library)
    if owners is not None and room not in owners:
        yield f"imports {library}, which belongs to {', '.join(sorted(owners))}"
    elif room in FACES and library in ("torch", "optuna") and not found.in_function and not found.for_types:
        yield f"imports {library} while it loads; --help must not"


def size_faults(tree: ast.AST, text: str) -> Iterator[tuple[int, str]]:
    lines = text.count("\n")
    if lines > MOST_LINES["module"]:
        yield 1, f"{lines} lines; a module has at most {MOST_LINES['module']}: split it by what it does"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_LINES["function"]:
                yield node.lineno, f"{node.name} has {length} lines; a function has at most {MOST_LINES['function']}"


def name_faults(file: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    words = {word for part in (*file.parent.parts[-1:], file.stem) for word in part.lower().split("_")}
    classes = {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for word in sorted(words & FORBIDDEN_NAMES):
        yield 1, f"`{word}` says nothing as the name of a file; name what it does"
    for name, line in classes.items():
        for word in sorted({part.lower() for part in re.findall(r"[A-Z][a-z0-9]*|[a-z0-9]+", name)} & FORBIDDEN_NAMES):
            yield line, f"`{word}` says nothing in the name of class {name}"


def faults(package: Path) -> list[str]:
    """Every breach of the rules under a package, as ``file:line: what``."""
    told = []
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        tree, room, place = ast.parse(text, str(file)), room_of(file, package), file.relative_to(package.parent)
        if room not in FLOORS:
            told.append(f"{place}:1: the room `{room}` is on no floor; give it one in FLOORS and in DESIGN section 1")
            continue
        for found in (*imports(tree, file, package), *dynamic_imports(tree, room, package)):
            breaches = (*floor_faults(room, found, package), *library_faults(room, found))
            told += [f"{place}:{found.line}: {fault}" for fault in breaches]
        told += [f"{place}:{line}: {fault}" for line, fault in (*size_faults(tree, text), *name_faults(file, tree))]
    return told


def test_the_package_keeps_its_floors_libraries_sizes_and_names() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) >= 6, f"no sources under {PACKAGE}"
    found = faults(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_config_does_not_look_back_up_the_stairs_and_every_stair_is_walked() -> None:
    walked = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        walked |= {(room_of(file, PACKAGE), own_room(found.module, PACKAGE)) for found in imports(tree, file, PACKAGE)}
    assert walked >= STAIRS
    assert not {(low, high) for high, low in STAIRS} & walked


BREACHES = {
    "upwards": ("recipe.py", "from autocompress.records import Target\n", "lies above `recipe`"),
    "sideways": ("compress/prune.py", "from autocompress.runtimes.eager import x\n", "lies beside `compress`"),
    "sideways, whole room": ("evaluate.py", "from autocompress import export\n", "lies beside `evaluate`"),
    "sideways on floor 3": ("config.py", "import autocompress.runs\n", "lies beside `config`"),
    "relative": ("blocks.py", "from .tasks import digits\n", "lies above `blocks`"),
    "relative, up a folder": ("compress/prune.py", "from ..survey import x\n", "lies above `compress`"),
    "for types only": (
        "study/space.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from autocompress.evaluate import x\n",
        "lies above `study`",
    ),
    "public names from inside": ("tasks/digits.py", "from autocompress import search\n", "`__init__` (floor 11)"),
    "hidden in a function": ("job.py", "def f():\n    from autocompress.study import x\n", "inside a function"),
    "hidden in a method": ("job.py", "class A:\n    def f(self):\n        import autocompress.recipe\n", "inside a function"),
    "hidden, own room": ("study/space.py", "def f():\n    from autocompress.study.propose import x\n", "hides inside a function"),
    "by a string": ("study/space.py", "TABLE = {'x': 'autocompress.evaluate'}\n", "lies above `study`"),
    "optuna in job": ("job.py", "import optuna.samplers\n", "imports optuna, which belongs to study"),
    "torch in study, in a function": ("study/space.py", "def f():\n    import torch\n", "imports torch"),
    "torch in config": ("config.py", "from torch import nn\n", "imports torch"),
    "torch while the cli loads": ("cli.py", "import torch\n", "--help must not"),
    "job while the cli loads": ("cli.py", "from autocompress.job import search\n", "import it inside the command"),
    "pydantic in study": ("study/space.py", "import pydantic\n", "imports pydantic"),
    "yaml in export": ("export.py", "import yaml\n", "imports yaml"),
    "onnx in measure": ("measure/size.py", "import onnx\n", "imports onnx, which belongs to runtimes"),
    "torch-pruning in survey": ("survey.py", "import torch_pruning as tp\n", "imports torch_pruning"),
    "matplotlib in job": ("job.py", "from matplotlib.figure import Figure\n", "imports matplotlib"),
    "sklearn in measure": ("measure/size.py", "import sklearn.datasets\n", "imports sklearn"),
    "rich in report": ("report.py", "import rich\n", "imports rich"),
    "a new room": ("magic.py", "", "the room `magic` is on no floor"),
    "a long module": ("job.py", "x = 1\n" * 401, "401 lines"),
    "a long function": ("job.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    "a file that says nothing": ("study/utils.py", "", "`utils` says nothing"),
    "a class that says nothing": ("job.py", "class TrialManager:\n    pass\n", "`manager` says nothing in the name of class"),
}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda name: name.replace(" ", "-"))
def test_the_checker_catches_a_breach(tmp_path: Path, breach: str) -> None:
    name, source, expected = BREACHES[breach]
    file = tmp_path / "autocompress" / name
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    found = faults(tmp_path / "autocompress")
    assert len(found) == 1, found
    assert found[0].startswith(f"autocompress/{name}:")
    assert expected in found[0]


SOUND = {
    "cli.py": "import typer\nimport autocompress.errors\ndef f():\n    import torch\n    from autocompress.job import x\n",
    "__init__.py": "MODULES = {'search': 'autocompress.job'}\n",
    "job.py": "from autocompress.study.study import x\nfrom autocompress import evaluate, report\nimport torch\n",
    "runtimes/__init__.py": "RUNTIMES = {'eager': 'autocompress.runtimes.eager'}\n",
    "runtimes/eager.py": "import onnxruntime\nfrom autocompress.runtimes.x import y\nfrom .x import y\nfrom .. import blocks\n",
    "study/space.py": "import optuna\ndef f():\n    import numpy\n",
    "runs.py": "import yaml\nfrom autocompress.config import x\n",
    "database.py": "",
}


def test_the_checker_lets_a_sound_house_stand(tmp_path: Path) -> None:
    for name, source in SOUND.items():
        file = tmp_path / "autocompress" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    assert faults(tmp_path / "autocompress") == ["autocompress/database.py:1: " + FLOORLESS]


FLOORLESS = "the room `database` is on no floor; give it one in FLOORS and in DESIGN section 1"
