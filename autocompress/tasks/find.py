"""A task by its name: built in, or ``package.module:factory`` of the user's own; and other things of the user's by such a name."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks import FILES, TASKS
from autocompress.tasks.batches import one_line
from autocompress.tasks.task import Task

NOTHING: Mapping[str, str] = {}


def find_task(name: str, cache: Path, progress: Progress, options: Mapping[str, str] = NOTHING) -> Task:
    """The task called ``name``; ``options`` by the names of its factory's keyword arguments.

    Raises InvalidTask in one line for whatever is wrong with it.
    """
    if name in TASKS:
        make = getattr(importlib.import_module(TASKS[name].partition(":")[0]), TASKS[name].partition(":")[2])
        _check_options(name, make, options)
        built: Task = make(cache, progress, **options)
        return built
    if ":" not in name.strip(":"):
        raise InvalidTask(f"--task: {name!r} is neither a built-in task ({', '.join(TASKS)}) nor of the form package.module:factory")
    task = made("--task", name, options)
    if not isinstance(task, Task):
        factory = name.partition(":")[2]
        raise InvalidTask(f"--task {name}: {factory}() must return an autocompress.Task, it returned {type(task).__name__}")
    return task


def made(option: str, name: str, arguments: Mapping[str, object] = NOTHING, offered: Mapping[str, object] = NOTHING) -> object:
    """What ``package.module:factory`` returns, called with keyword ``arguments``, and those ``offered`` ones that it has a name for.

    Raises InvalidTask in one line for whatever fails.
    """
    module, _, factory = name.partition(":")
    if not module or not factory:
        raise InvalidTask(f"{option}: {name!r} is not of the form package.module:factory")
    make = getattr(_import(option, name, module), factory, None)
    if not callable(make):
        raise InvalidTask(f"{option} {name}: {module} has no function {factory!r}")
    if arguments:
        _check_options(name, make, arguments)
    asked = inspect.signature(make).parameters if offered else {}
    try:
        return make(**arguments, **{key: value for key, value in offered.items() if key in asked})
    except (Exception, SystemExit) as error:  # whatever a user's factory raises
        raise InvalidTask(f"{option} {name}: {factory}() failed: {one_line(error)}") from error


def absolute(options: Mapping[str, str]) -> dict[str, str]:
    """The options with the paths of files made absolute, so that they still mean the same when a study is resumed from elsewhere."""
    return {name: str(Path(value).expanduser().absolute()) if name in FILES else value for name, value in options.items()}


def _check_options(name: str, make: Callable[..., Any], options: Mapping[str, object]) -> None:
    """Raises InvalidTask for an option that is no keyword argument of the factory."""
    known = {key: one.kind for key, one in inspect.signature(make).parameters.items()}
    if inspect.Parameter.VAR_KEYWORD in known.values():
        return
    taken = [key for key, kind in known.items() if kind == inspect.Parameter.KEYWORD_ONLY or name not in TASKS]
    for key in sorted(set(options) - set(taken)):
        has = f"it has {', '.join(taken)}" if taken else "it has none"
        raise InvalidTask(f"task {name}: there is no option {key!r}; {has}")


def _import(option: str, name: str, module: str) -> object:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a task file lies beside the user, not in site-packages
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        is_it = f"{module}.".startswith(f"{missing}.")
        rule = f"there is no module {missing!r}" if is_it else f"{module} imports {missing!r}, which is not installed"
        raise InvalidTask(f"{option} {name}: {rule} (looked in {os.getcwd()} and the Python path)") from None
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise InvalidTask(f"{option} {name}: importing {module} failed: {one_line(error)}") from error
