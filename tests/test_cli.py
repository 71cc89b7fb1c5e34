"""The command line, over a job that is stubbed: what reaches it, what is shown, with which exit code."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import autocompress
from autocompress.cli import app
from autocompress.config import SearchConfig, Space, parse_budget
from autocompress.errors import Diverged, InfeasibleRecipe, InvalidSpace, InvalidStudy
from autocompress.recipe import Assistant, Recipe
from autocompress.records import Attribution, LayerInfo, Measurement, Target, TrialResult, Undone
from autocompress.verify import Tolerance

COMMANDS = (
    *("search", "resume", "refine", "show", "explain", "inspect", "ask", "compare", "survey"),
    *("export", "verify", "apply", "report", "list", "doctor"),
)
HELP_OF = {command: (command, "--help") for command in COMMANDS}
OPTIONS = {
    "search": "task data weights model option space budget study runtime device batch-size threads max-drop min-speedup constraint "
    "seed runs storage json dry-run sampler stop-when-flat warm-start",
    "resume": "budget runs",
    "refine": "trial budget study json runs",
    "show": "json csv runs",
    "explain": "trial json runs",
    "inspect": "trial threads json runs",
    "ask": "max-drop min-speedup max-size json runs",
    "compare": "json runs",
    "survey": "task data weights model option space runtime batch-size threads out json runs",
    "export": "trial out runs",
    "verify": "task data weights model option speed-tolerance accuracy-tolerance speed json runs",
    "apply": "task data weights model option out runtime device batch-size threads runs",
    "report": "runs",
    "list": "runs",
    "doctor": "",
}


def row(trial: int, speedup: float, drop: float, holdout: bool = True) -> dict[str, Any]:
    interval = {"speedup": speedup, "speedup_low": speedup - 0.2, "speedup_high": speedup + 0.2, "drop": drop}
    held = {"speedup": speedup - 0.05, "speedup_low": speedup - 0.15, "speedup_high": speedup + 0.05, "drop": drop + 0.28}
    sizes = {"trial": trial, "size_bytes": 61_386, "latency_ms": 0.45, "accuracy": 98.61 - drop}
    return interval | sizes | {"holdout": held if holdout else None}


def summary(**changes: Any) -> dict[str, Any]:
    front = [row(3, 2.5, 0.1), row(37, 4.12, 0.56), row(41, 12.34, 11.2)]
    baseline = {"latency_ms": 1.8412, "eager_latency_ms": 4.209, "accuracy": 98.61, "holdout_accuracy": 98.89}
    baseline |= {"size_bytes": 1_174_073, "macs": 20_000_000, "params": 300_000, "metric": "accuracy"}
    content = {"study": "digits-2", "state": "finished", "finished": 50, "budget": 50, "budget_seconds": None, "stopped": None}
    content |= {
        "outcomes": {"measured": 41, "gated": 7, "out_of_memory": 2, "died": 0},
        "target": Target(threads=2).model_dump(mode="json"),
    }
    content |= {"max_drop": 3.0, "min_speedup": 2.0, "baseline": baseline, "front": front, "hypervolume": 1.5}
    return content | {"best": front[1] | {"confirmed": True}, "nearest": front[1], **changes}


UNCONFIRMED = row(37, 4.12, 0.56) | {"confirmed": False}
NOTHING = {"best": None, "nearest": row(41, 1.5, 2.9, holdout=False)}
EMPTY = {"best": None, "nearest": None, "front": [], "outcomes": {}, "finished": 0, "baseline": None, "state": "running"}


class FakeStudy:
    def __init__(self, content: dict[str, Any], words: tuple[str, ...] = ("conv2: 62 % of channels, 8 bit",)) -> None:
        self.summary, self.said = content, words
        self.paths = SimpleNamespace(folder=Path("runs") / content["study"])

    def words(self, trial: int) -> list[str]:
        assert trial == (self.summary["best"] or self.summary["nearest"])["trial"]
        return list(self.said)

    def csv(self) -> str:
        return "trial,outcome\n0,measured\n"


class FakeJob(ModuleType):
    """Stands in for autocompress.job: remembers what it was asked, answers with what the test set."""

    def __init__(self) -> None:
        super().__init__("autocompress.job")
        self.asked: dict[str, Any] = {}
        self.answer: Any = FakeStudy(summary())
        self.kept: Any = FakeStudy(summary(finished=7, state="interrupted"))
        self.begun: str | None = None

    def _answer(self, **asked: Any) -> Any:
        self.asked = asked
        if self.begun:
            asked["progress"].study = self.begun
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def search(self, task: str, **asked: Any) -> Any:
        return self._answer(task=task, **asked)

    dry_run = search

    def resume(self, study: str, **asked: Any) -> Any:
        return self._answer(study=study, **asked)

    def show(self, study: str, runs: Path) -> Any:
        self.asked["shown"] = (study, runs)
        answer = self.kept if isinstance(self.answer, KeyboardInterrupt) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def export(self, study: str, **asked: Any) -> Any:
        return self._answer(study=study, **asked)

    def apply(self, recipe: Path, **asked: Any) -> Any:
        return self._answer(recipe=recipe, **asked)

    def explain(self, study: str, **asked: Any) -> Any:
        return self._answer(study=study, **asked)

    def verify(self, folder: Path, **asked: Any) -> Any:
        return self._answer(folder=folder, **asked)

    def report(self, study: str, runs: Path) -> Any:
        return self._answer(study=study, runs=runs)

    def list_studies(self, runs: Path) -> Any:
        return self._answer(runs=runs)

    def doctor(self) -> Any:
        return self._answer()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    fake = FakeJob()
    monkeypatch.setitem(sys.modules, "autocompress.job", fake)
    monkeypatch.setattr(autocompress, "job", fake, raising=False)
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    return fake


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# --- help


@pytest.mark.parametrize("arguments", [("--help",), *HELP_OF.values()], ids=" ".join)
def test_help_is_plain_fits_eighty_columns_and_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys; from autocompress.cli import main\ntry: main({list(arguments)!r})\nfinally: "
        "print('loaded', sorted({'torch', 'optuna', 'onnxruntime', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded []\n")
    assert "autocompress" in done.stdout
    assert "Example" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 86  # an example is never broken, so that it can be pasted


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_of_the_contract_and_no_others(command: str) -> None:
    shown = re.findall(r"^  (?:-h, )?--([a-z-]+)", call(command, "--help").stdout, re.MULTILINE)
    assert sorted(shown) == sorted([*OPTIONS[command].split(), "help"])


def test_the_commands_are_those_of_the_contract() -> None:
    listed = call("--help").stdout.partition("Commands:")[2]
    assert tuple(re.findall(r"^  (\w+)", listed, re.MULTILINE)) == COMMANDS
    assert "..." not in listed


def test_version_is_printed() -> None:
    assert call("--version").stdout == f"autocompress {autocompress.__version__}\n"


# --- what reaches the job


def test_a_search_without_options_asks_for_the_defaults_of_the_contract(job: FakeJob) -> None:
    call("search")
    assert job.asked.pop("progress").quiet is False
    assert job.asked == {
        "task": "digits",
        "task_options": {},
        "space": "default",
        "budget": "50",
        "study": None,
        "runtime": "auto",
        "device": "auto",
        "batch_size": "1",
        "threads": None,
        "max_drop": 3.0,
        "min_speedup": 2.0,
        "constraints": None,
        "seed": 0,
        "runs": Path("runs"),
        "storage": None,
        "sampler": "auto",
        "stop_when_flat": False,
        "warm_start": None,
        "without": None,
    }


def test_every_option_of_search_reaches_the_job(job: FakeJob) -> None:
    what = "search --task p.m:f --space s.yaml --budget 20m --study n --max-drop 1 --min-speedup 4 --seed 7"
    where = "--runtime eager --device cpu --batch-size 4 --threads 2 --runs elsewhere --storage sqlite:///x.db"
    bounds = ("--constraint", "worst_class_drop <= 5", "--constraint", "size_bytes<=200000")
    own = "--sampler nsga2 --stop-when-flat --warm-start other --without survey --without gate"
    given = "--data folder --weights w.pt --model m:f --option label=a=b --option split-test=yes"
    call(*f"{what} {where} {given} {own}".split(), *bounds)
    job.asked.pop("progress")
    assert job.asked == {
        "task": "p.m:f",
        "task_options": {"data": "folder", "weights": "w.pt", "model": "m:f", "label": "a=b", "split_test": "yes"},
        "space": "s.yaml",
        "budget": "20m",
        "study": "n",
        "runtime": "eager",
        "device": "cpu",
        "batch_size": "4",
        "threads": 2,
        "max_drop": 1.0,
        "min_speedup": 4.0,
        "constraints": ["worst_class_drop <= 5", "size_bytes<=200000"],
        "seed": 7,
        "runs": Path("elsewhere"),
        "storage": "sqlite:///x.db",
        "sampler": "nsga2",
        "stop_when_flat": True,
        "warm_start": "other",
        "without": ["survey", "gate"],
    }


@pytest.mark.parametrize("budget", ["50", "20m", "2h", "90s", "abc", "0"])
def test_the_budget_reaches_the_job_as_it_was_written(budget: str, job: FakeJob) -> None:
    call("search", "--budget", budget)
    assert job.asked["budget"] == budget
    call("resume", "digits", "--budget", budget, "--runs", "r")
    assert {key: job.asked[key] for key in ("study", "budget", "runs")} == {
        "study": "digits",
        "budget": budget,
        "runs": Path("r"),
    }


def test_resume_keeps_the_stored_budget_when_none_is_given(job: FakeJob) -> None:
    call("resume", "digits")
    assert job.asked["budget"] is None


# --- exit codes


@pytest.mark.parametrize("command", [("search",), ("resume", "digits-2")], ids=" ".join)
@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"best": UNCONFIRMED}, 0), (NOTHING, 3), (EMPTY, 3)],
    ids=["found", "unconfirmed", "nearest", "empty"],
)
def test_a_search_ends_with_0_when_it_found_and_3_when_not(
    command: tuple[str, ...], changes: dict[str, Any], code: int, job: FakeJob
) -> None:
    job.answer = FakeStudy(summary(**changes))
    assert call(*command).exit_code == code


def test_show_succeeds_also_when_nothing_was_found(job: FakeJob) -> None:
    job.answer = FakeStudy(summary(**NOTHING))
    assert call("show", "digits-2").exit_code == 0


@pytest.mark.parametrize(
    "command",
    [
        "search",
        "search --dry-run",
        "search --json",
        "resume x",
        "show x",
        "show x --json",
        "export x --out o",
        "explain x",
        "explain x --json",
        "verify d",
        "verify d --json",
        "apply r.yaml --task t --out o",
        "report x",
        "list",
        "doctor",
    ],
)
def test_what_the_user_got_wrong_is_told_in_one_line_with_exit_code_2(command: str, job: FakeJob) -> None:
    job.answer = InvalidSpace("space.yaml: layers[3].keep: [red]unknown key[/red] \x1b[2J")
    result = call(*command.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: space.yaml: layers[3].keep: [red]unknown key[/red] \\x1b[2J\n"


@pytest.mark.parametrize(
    "command",
    [
        "search --batch-size 0",
        "search --batch-size 1,x",
        "search --threads 0",
        "search --max-drop -1",
        "search --seed x",
        "search --bogus",
        "bogus",
        "show",
        "export x",
        "apply r.yaml --out o",
        "explain",
        "ask",
        "ask x --min-speedup fast",
        "verify",
        "verify d --speed-tolerance -1",
        "compare a",
        "show x --json --csv",
    ],
)
def test_a_command_line_that_does_not_read_is_exit_code_2_and_reaches_no_job(command: str, job: FakeJob) -> None:
    result = call(*command.split())
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert job.asked == {}


def test_a_bug_keeps_its_traceback(job: FakeJob) -> None:
    job.answer = ZeroDivisionError("a bug")
    result = call("search")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


# --- interruption


@pytest.mark.parametrize("arguments", [("search",), ("search", "--study", "digits-2"), ("resume", "digits-2")], ids=" ".join)
def test_an_interrupted_study_shows_what_is_kept_and_how_to_go_on(arguments: tuple[str, ...], job: FakeJob) -> None:
    job.answer, job.begun = KeyboardInterrupt(), "digits-2"
    result = call(*arguments)
    assert result.exit_code == 130
    assert job.asked["shown"] == ("digits-2", Path("runs"))
    assert "Pareto front: 3 recipes" in result.stdout
    assert result.stderr == "interrupted: 7 trials finished, kept; go on with: autocompress resume digits-2\n"


def test_the_command_to_go_on_names_the_folder_and_is_quoted_for_the_shell(job: FakeJob) -> None:
    job.answer, job.begun = KeyboardInterrupt(), "digits-2"
    result = call("search", "--runs", "my runs")
    assert result.stderr.endswith("go on with: autocompress resume digits-2 --runs 'my runs'\n")


def test_an_interrupted_search_with_json_still_ends_with_the_object(job: FakeJob) -> None:
    job.answer, job.begun = KeyboardInterrupt(), "digits-2"
    result = call("search", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["finished"] == 7


def test_an_interruption_before_the_baseline_is_told_without_a_table(job: FakeJob) -> None:
    job.answer, job.begun, job.kept = (
        KeyboardInterrupt(),
        "digits-2",
        InvalidStudy("baseline.json: this file of the study is missing"),
    )
    result = call("search")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("nothing to show yet; go on with: autocompress resume digits-2\n")


def test_an_interruption_before_the_study_has_a_name_looks_for_none(job: FakeJob) -> None:
    job.answer = KeyboardInterrupt()
    result = call("search")
    assert result.exit_code == 130
    assert "shown" not in job.asked
    assert "resume" not in result.stderr


def test_an_interrupted_explanation_says_that_what_is_measured_is_kept(job: FakeJob) -> None:
    job.answer = KeyboardInterrupt()
    result = call("explain", "digits")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "what was measured is kept; the same command goes on from there\ninterrupted\n"


@pytest.mark.parametrize("command", ["export x --out o", "verify d", "doctor", "list"])
def test_an_interruption_of_any_other_command_is_130_without_traceback(command: str, job: FakeJob) -> None:
    job.answer = KeyboardInterrupt()
    result = call(*command.split())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
import autocompress, test_cli
job = test_cli.FakeJob()
sys.modules["autocompress.job"] = autocompress.job = job

def work(task, **asked):
    asked["progress"].study = "digits-2"
    print("working", file=sys.stderr, flush=True)
    time.sleep(30)

if {waits}:
    job.search = work
job.show = lambda study, runs: test_cli.FakeStudy(test_cli.summary(finished=7))
from autocompress.cli import main
main(sys.argv[1:])
"""


def program(*arguments: str, waits: bool) -> list[str]:
    code = PROGRAM.format(tests=str(Path(__file__).parent), waits=waits)
    return [sys.executable, "-c", code, *arguments]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_sigterm_is_treated_like_ctrl_c(sent: signal.Signals, code: int) -> None:
    with subprocess.Popen(program("search", waits=True), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "working\n"
        running.send_signal(sent)
        out, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert "Pareto front" in out
    assert err == "interrupted: 7 trials finished, kept; go on with: autocompress resume digits-2\n"


@pytest.mark.parametrize("arguments", [("show", "digits-2"), ("show", "digits-2", "--json"), ("show", "digits-2", "--csv")], ids=" ".join)
def test_a_reader_that_went_away_is_no_traceback(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has seen enough, but with no race
    try:
        done = subprocess.run(program(*arguments, waits=False), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_that_the_output_cannot_encode_is_escaped() -> None:
    code = program("show", "digits-2", waits=False)
    code[2] = code[2].replace("test_cli.summary(finished=7))", "test_cli.summary(stopped='se\\u00f1al \\u4e2d'))")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(code, capture_output=True, text=True, check=True, env=ascii_only)
    assert r"se\xf1al \u4e2d" in done.stdout


# --- what is shown


def shown_by(job: FakeJob, **changes: Any) -> str:
    """What `show` prints of the summary with these changes; never wider than 80."""
    job.answer = FakeStudy(summary(**changes))
    result = call("show", "digits-2")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80
    return result.stdout


def cells(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_show_starts_with_study_target_bounds_and_the_baseline_with_both_references(job: FakeJob) -> None:
    assert shown_by(job).splitlines()[:5] == [
        "study     digits-2: finished, 50 of 50 trials",
        "target    onnxruntime on cpu, batch 1, 2 threads",
        "bounds    drop at most 3 points, speed at least 2x",
        "baseline  accuracy 98.61 % (holdout 98.89 %), 1.17 MB",
        "          1.84 ms in onnxruntime, 4.21 ms in eager PyTorch",
    ]


def test_the_front_has_every_number_with_its_interval_and_marks_the_best(job: FakeJob) -> None:
    lines = cells(shown_by(job))
    assert ["3", "2.50x (2.30-2.70)", "0.10", "61.4 kB", "2.45x (2.35-2.55)", "0.38"] in lines
    assert ["37 *", "4.12x (3.92-4.32)", "0.56", "61.4 kB", "4.07x (3.97-4.17)", "0.84"] in lines
    assert ["41", "12.34x (12.14-12.54)", "11.20", "61.4 kB", "12.29x (12.19-12.39)", "11.48"] in lines


def test_the_speeds_name_their_reference_and_batch_size(job: FakeJob) -> None:
    text = shown_by(job)
    assert "against the same model in fp32 in\nonnxruntime on cpu, batch 1, 2 threads." in text
    target = Target(runtime="eager", batch_size=32, threads=1)
    assert "in fp32 in\neager on cpu, batch 32, 1 thread." in shown_by(job, target=str(target))


BATCHES: list[dict[str, Any]] = [
    {"batch_size": 1, "speedup": 6.0, "speedup_low": 5.9, "speedup_high": 6.1},
    {"batch_size": 8, "speedup": 2.829, "speedup_low": 2.7, "speedup_high": 2.9},
]


def test_over_several_batch_sizes_the_worst_is_named_in_the_front_and_each_beside_the_best(job: FakeJob) -> None:
    several = [one | {"batches": BATCHES, "worst": BATCHES[1]} for one in summary()["front"]]
    target = Target(batch_sizes=(8, 1), threads=2).model_dump(mode="json")
    text = shown_by(job, front=several, best=several[1] | {"confirmed": True}, target=target)
    assert "target    onnxruntime on cpu, batch 1 and 8, 2 threads\n" in text
    assert "1.84 ms in onnxruntime, 4.21 ms in eager PyTorch at batch 1\n" in text
    assert ["37 *", "4.12x (3.92-4.32)", "2.83x at 8", "0.56", "61.4 kB", "4.07x (3.97-4.17)", "0.84"] in cells(text)
    assert "geometric mean over the batch sizes; worst: the lowest of them" in text
    assert "by batch  6.00x (5.90-6.10) at batch 1\n          2.83x (2.70-2.90) at batch 8, the worst\n" in text
    nothing = shown_by(job, best=None, nearest=several[2], front=several, target=target)
    assert "by batch  6.00x (5.90-6.10) at batch 1\n" in nothing


def test_over_one_batch_size_nothing_is_said_of_a_worst(job: FakeJob) -> None:
    text = shown_by(job)
    assert "worst" not in text
    assert "by batch" not in text


def test_a_front_without_holdout_shows_that_it_is_missing(job: FakeJob) -> None:
    front = [row(3, 2.5, -0.004, holdout=False)]
    text = shown_by(job, front=front, best=front[0] | {"confirmed": None})
    assert ["3 *", "2.50x (2.30-2.70)", "0.00", "61.4 kB", "-", "-"] in cells(text)
    assert "Pareto front: 1 recipe that" in text
    assert "holdout   not measured yet" in text


def test_the_best_recipe_is_told_in_words_with_its_holdout_numbers(job: FakeJob) -> None:
    text = shown_by(job)
    assert "best *    trial 37: 4.12x (3.92-4.32), drop 0.56 points, 61.4 kB\n          conv2: 62 % of channels, 8 bit\n" in text
    assert "holdout   4.07x (3.97-4.17), drop 0.84 points: confirmed\n" in text
    assert "NOT CONFIRMED" not in text


def test_a_best_that_holdout_contradicts_is_told_loudly(job: FakeJob) -> None:
    text = shown_by(job, best=UNCONFIRMED)
    assert "NOT CONFIRMED on holdout" in text
    assert ": confirmed" not in text


def test_the_constraints_are_among_the_bounds_and_who_misses_them_is_said(job: FakeJob) -> None:
    missed = "worst_class_drop <= 5 (7.5)"
    front = [row(3, 2.5, 0.1) | {"failed": []}, row(37, 4.12, 0.56) | {"failed": ["speedup >= 9 (4.12)", missed]}]
    asked: dict[str, Any] = {"constraints": ["worst_class_drop <= 5"], "front": front}
    text = shown_by(job, **asked, best=None, nearest=front[1])
    assert "bounds    drop at most 3 points, speed at least 2x, worst_class_drop <= 5\n" in text
    assert f"trial 37 misses {missed}\n" in text
    assert "NO RECIPE MEETS ALL BOUNDS" in text
    assert f"          missed: speedup >= 9 (4.12)\n          missed: {missed}\n" in text
    held = UNCONFIRMED["holdout"] | {"failed": [missed]}
    assert f"          missed: {missed}\n" in shown_by(job, **asked, best=UNCONFIRMED | {"holdout": held})


def test_a_metric_that_is_no_percentage_is_shown_in_its_unit(job: FakeJob) -> None:
    metric = {"metric": "perplexity", "metric_unit": "", "higher_is_better": False}
    text = shown_by(job, baseline=summary()["baseline"] | metric)
    assert "perplexity 98.61 (holdout 98.89)" in text
    assert "Drop: by how much perplexity rose." in text
    assert "bounds    drop at most 3, speed at least 2x\n" in text
    assert ", drop 0.56, 61.4 kB" in text
    assert "point" not in text
    assert "%" not in text.replace("95 %", "").replace("62 % of channels", "")


def test_where_nothing_met_the_bounds_the_nearest_is_shown_and_marked(job: FakeJob) -> None:
    text = shown_by(job, **NOTHING)
    assert "NO RECIPE MEETS BOTH BOUNDS\nnearest   trial 41: 1.50x (1.30-1.70), drop 2.90 points, 61.4 kB\n" in text
    assert "best *" not in text
    assert "export digits-2 --trial 41 --out DIR" in text


def test_a_study_without_any_trial_can_be_shown(job: FakeJob) -> None:
    text = shown_by(job, **EMPTY)
    assert "baseline  not measured yet" in text
    assert "nearest   none: no trial was measured" in text
    assert "autocompress resume digits-2" in text


def test_outcomes_files_and_next_commands_are_shown(job: FakeJob) -> None:
    assert shown_by(job).endswith(
        "outcomes  41 measured, 7 gated, 2 out of memory\n"
        "files     runs/digits-2\n"
        "next      autocompress export digits-2 --out DIR\n"
        "          autocompress report digits-2\n"
    )


def test_a_budget_of_time_and_why_the_search_ended_are_shown(job: FakeJob) -> None:
    text = shown_by(job, budget=None, budget_seconds=1200.0, finished=33, stopped="twenty duplicate proposals in a row")
    assert text.startswith("study     digits-2: finished, 33 trials, budget 20 minutes\n          twenty duplicate proposals in a row\n")


def test_a_search_shows_what_show_shows_on_stdout(job: FakeJob) -> None:
    assert call("search").stdout == call("resume", "digits-2").stdout == shown_by(job)


def test_a_narrow_terminal_loses_no_digit(job: FakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = call("show", "digits-2").stdout
    for number in ("12.34x", "(12.14-12.54)", "11.20", "61.4", "12.29x", "(12.19-12.39)", "11.48"):
        assert number in text


def test_names_of_the_user_are_neither_markup_nor_controls(job: FakeJob) -> None:
    layer = "[red]conv[/] :heart: \x1b[2J\r\n\u202e"
    job.answer = FakeStudy(summary(study="[bold]x", stopped=layer), words=(f"{layer}: 8 bit",))
    text = call("show", "digits-2").stdout
    assert text.startswith("study     [bold]x: finished")
    assert text.count(r"[red]conv[/] :heart: \x1b[2J\r\n\u202e") == 2


# --- json and csv


def test_show_json_is_the_summary_and_nothing_else(job: FakeJob) -> None:
    result = call("show", "digits-2", "--json")
    assert json.loads(result.stdout) == summary()
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


@pytest.mark.parametrize("changes", [{}, NOTHING, EMPTY], ids=["found", "nearest", "empty"])
def test_search_json_is_the_last_line_and_the_tables_go_to_stderr(changes: dict[str, Any], job: FakeJob) -> None:
    job.answer = FakeStudy(summary(**changes))
    result = call("search", "--json")
    assert json.loads(result.stdout) == summary(**changes)
    assert result.stdout.count("\n") == 1
    assert "study     digits-2" in result.stderr


def test_a_number_that_json_does_not_know_is_a_bug_and_never_printed(job: FakeJob) -> None:
    job.answer = FakeStudy(summary(hypervolume=float("nan")))
    result = call("show", "digits-2", "--json")
    assert isinstance(result.exception, ValueError)
    assert result.stdout == ""


def test_show_csv_is_the_csv_and_nothing_else(job: FakeJob) -> None:
    assert call("show", "digits-2", "--csv").stdout == "trial,outcome\n0,measured\n"


# --- the other commands


def plan(size: int) -> SimpleNamespace:
    target = Target(threads=2)
    config = SearchConfig(study="digits", task="digits", space=Space(), budget=parse_budget("20m"), target=target)
    layers = (
        LayerInfo(
            name="stem",
            kind="conv2d",
            macs=1_500_000,
            params=432,
            in_channels=3,
            out_channels=16,
            group="g0",
            weight_bits=(7, 32),
        ),
        LayerInfo(name="[head]", kind="linear", macs=640, params=650, in_channels=64, out_channels=10, keep_reason="width of the output"),
    )
    dimensions = [("keep.stem", (0.5, 1.0)), ("weight_bits.stem", (7, 32))]
    return SimpleNamespace(layers=layers, dimensions=dimensions, size=size, seconds_estimate=245.0, config=config)


def test_a_dry_run_shows_layers_size_of_the_space_and_time(job: FakeJob) -> None:
    job.answer = plan(4)
    result = call("search", "--dry-run")
    assert result.exit_code == 0
    lines = cells(result.stdout)
    assert ["stem", "conv2d", "3->16", "1.50", "yes", "no", "7,32"] in lines
    assert ["[head]: width of the output"] in lines
    assert ["keep.stem", "0.5, 1"] in lines
    assert ["budget", "20 minutes of wall clock"] in lines
    assert ["space", "2 dimensions, 4 combinations"] in lines
    assert ["time", "about 4 min 05 s, estimated"] in lines


def test_a_dry_run_of_a_space_beyond_any_float_is_shown(job: FakeJob) -> None:
    job.answer = plan(7**5000)
    assert "about 10^4225 combinations" in call("search", "--dry-run").stdout


def test_a_dry_run_names_the_blocks_that_may_be_left_out_and_lists_no_other_module(job: FakeJob) -> None:
    facts = {"kind": "block", "macs": 0, "params": 0, "in_channels": 0, "out_channels": 0}
    block = LayerInfo(name="block2", droppable=True, **facts)
    module = LayerInfo(name="shell", drop_reason="nothing can pass it unchanged", **facts)
    job.answer = plan(4)
    job.answer.layers += (block, module)
    shown = call("search", "--dry-run").stdout
    assert ["blocks", "may be left out whole: block2"] in cells(shown)
    assert "shell" not in shown


def test_choices_that_are_part_of_a_recipe_are_written_as_json(job: FakeJob) -> None:
    job.answer = plan(4)
    job.answer.dimensions = [("distillation.assistant", (None, Assistant(keep=0.5, steps=20)))]
    content = json.loads(call("search", "--dry-run", "--json").stdout)
    nothing, assistant = content["dimensions"]["distillation.assistant"]
    assert nothing is None
    assert (assistant["keep"], assistant["steps"]) == (0.5, 20)


def test_a_dry_run_with_json_ends_with_the_plan(job: FakeJob) -> None:
    job.answer = plan(4)
    content = json.loads(call("search", "--dry-run", "--json").stdout)
    assert content["size"] == 4
    assert content["dimensions"] == {"keep.stem": [0.5, 1.0], "weight_bits.stem": [7, 32]}
    assert [layer["name"] for layer in content["layers"]] == ["stem", "[head]"]
    assert (content["seconds_estimate"], content["config"]["study"]) == (245.0, "digits")


@pytest.mark.parametrize("trial", ["best", "fastest", "smallest", "knee", "17"])
def test_export_passes_the_trial_on_and_lists_what_it_wrote(trial: str, job: FakeJob, tmp_path: Path) -> None:
    for name in ("model.onnx", "README.md"):
        (tmp_path / name).touch()
    job.answer = tmp_path
    result = call("export", "digits", "--trial", trial, "--out", str(tmp_path), "--runs", "r")
    assert job.asked == {"study": "digits", "trial": trial, "out": tmp_path, "runs": Path("r")}
    assert result.stdout == f"written   {tmp_path}: README.md, model.onnx\n"


def result_of(measurement: Measurement | None, outcome: Any = "measured", message: str = "") -> TrialResult:
    return TrialResult(recipe=Recipe(), target=Target(threads=2), outcome=outcome, measurement=measurement, message=message)


MEASURED = Measurement(
    split="search",
    latency_ms=0.45,
    baseline_latency_ms=1.84,
    speedup=4.09,
    speedup_low=3.9,
    speedup_high=4.31,
    resolved=True,
    blocks=40,
    accuracy=98.05,
    baseline_accuracy=98.61,
    drop=0.56,
    samples=360,
    size_bytes=61_386,
    baseline_size_bytes=1_174_073,
    agreement=0.9972,
    max_difference=0.31,
    machine="m",
)


def exported(out: Path, **baseline: Any) -> Path:
    """What job.apply leaves there for people."""
    out.mkdir()
    (out / "measured.json").write_text(json.dumps({"baseline": baseline}), encoding="utf-8")
    return out


def test_apply_replays_a_recipe_and_shows_what_was_measured(job: FakeJob, tmp_path: Path) -> None:
    job.answer, out = result_of(MEASURED), exported(tmp_path / "o", metric="accuracy", metric_unit="%")
    result = call("apply", "r.yaml", "--task", "digits", "--out", str(out), "--batch-size", "4", "--threads", "2", "--data", "d")
    job.asked.pop("progress")
    assert job.asked == {
        "recipe": Path("r.yaml"),
        "task": "digits",
        "task_options": {"data": "d"},
        "out": out,
        "runtime": "auto",
        "device": "auto",
        "batch_size": "4",
        "threads": 2,
        "runs": Path("runs"),
    }
    assert result.exit_code == 0
    assert (
        "speed     4.09x (3.90-4.31) against the same model in fp32 in\n          onnxruntime on cpu, batch 1, 2 threads\n" in result.stdout
    )
    assert "accuracy  98.05 %, was 98.61 %\n          drop 0.56 points on 360 samples of the search split\n" in result.stdout
    assert "size      61.4 kB, was 1.17 MB" in result.stdout
    assert "on 99.72 % of the samples" in result.stdout


def test_apply_over_several_batch_sizes_shows_each_and_the_worst(job: FakeJob, tmp_path: Path) -> None:
    timings = [one | {"latency_ms": 0.3, "baseline_latency_ms": 1.8, "resolved": True} for one in BATCHES]
    measured = Measurement.model_validate(MEASURED.model_dump() | {"batches": timings})
    job.answer = result_of(measured).model_copy(update={"target": Target(batch_sizes=(1, 8))})
    out = exported(tmp_path / "o")
    result = call("apply", "r.yaml", "--task", "digits", "--out", str(out), "--batch-size", "8,1")
    assert job.asked["batch_size"] == "8,1"
    assert "onnxruntime on cpu, batch 1 and 8, 1 thread\nby batch  6.00x (5.90-6.10) at batch 1\n" in result.stdout
    assert "          2.83x (2.70-2.90) at batch 8, the worst\n" in result.stdout
    assert "latency   0.45 ms, was 1.84 ms at batch 1\n" in result.stdout
def test_apply_names_a_metric_that_is_no_percentage(job: FakeJob, tmp_path: Path) -> None:
    job.answer = result_of(MEASURED.model_copy(update={"accuracy": 12.3456, "baseline_accuracy": 12.0, "drop": 0.3456}))
    out = exported(tmp_path / "o", metric="perplexity", metric_unit="", higher_is_better=False)
    shown = call("apply", "r.yaml", "--task", "digits", "--out", str(out)).stdout
    assert "metric    12.35, was 12\n          drop 0.346 on 360 samples" in shown
    out = exported(tmp_path / "p", metric="loss", metric_unit="nats", higher_is_better=False)
    assert "loss      12.35 nats, was 12 nats\n          drop 0.346 nats on" in call(
        "apply", "r.yaml", "--task", "digits", "--out", str(out)
    ).stdout


@pytest.mark.parametrize(
    "answer",
    [InfeasibleRecipe("conv1: rank 9"), Diverged("conv1: rank 9"), result_of(None, "infeasible", "conv1: rank 9")],
    ids=["infeasible", "diverged", "outcome"],
)
def test_apply_of_a_recipe_that_cannot_be_measured_is_one_line_that_names_it(answer: Any, job: FakeJob) -> None:
    job.answer = answer
    result = call("apply", "r.yaml", "--task", "digits", "--out", "o")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: r.yaml: ")
    assert result.stderr.endswith("conv1: rank 9\n")
    assert result.stderr.count("\n") == 1


UNDONE = {"layers": ("a", "b", "c"), "speedup": 3.0, "drop": 0.25, "bought_ms": 0.021, "cost_points": 0.31, "bought": True}
USELESS = {"layers": (), "speedup": 4.1, "drop": 0.5, "bought_ms": -0.001, "cost_points": 0.06, "bought": False}


def attribution(**changes: Any) -> Attribution:
    kept = Undone(decision="20 % of [channels]", bought_bytes=51_200, **UNDONE)
    gone = Undone(decision="quantization: equalize yes", bought_bytes=-300, **USELESS)
    plain = {"trial": 37, "decisions": (kept, gone), "simpler": Recipe(), "simpler_measurement": MEASURED}
    return Attribution(**(plain | changes))


def test_an_explanation_has_a_line_a_decision_and_offers_the_simpler_recipe(job: FakeJob) -> None:
    job.answer = attribution(notes=("order: could not be undone (infeasible: x)",))
    result = call("explain", "digits", "--trial", "37", "--runs", "r")
    assert job.asked.pop("progress").quiet is False
    assert job.asked == {"study": "digits", "trial": "37", "runs": Path("r")}
    shown = " ".join(result.stdout.split())
    assert "0.25 +0.021 +0.31 +51.2 kB yes" in shown
    assert "0.50 -0.001 +0.06 -300 B no" in shown
    assert "a to c (3 layers): 20 % of" in shown
    assert "[channels]" in shown
    assert "simpler 4.09x (3.90-4.31), drop 0.56 points, 61.4 kB without quantization: equalize yes" in shown
    assert f"recipe r/digits/undone/{Recipe().digest}/recipe.yaml" in shown
    assert "note order: could not be undone" in shown
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_where_every_decision_bought_something_no_simpler_recipe_is_offered(job: FakeJob) -> None:
    job.answer = attribution(decisions=attribution().decisions[:1], simpler=None, simpler_measurement=None)
    assert "simpler   none: every decision bought something\n" in call("explain", "digits").stdout


def test_an_explanation_with_json_ends_with_the_record(job: FakeJob) -> None:
    job.answer = attribution()
    assert Attribution.model_validate_json(call("explain", "digits", "--json").stdout) == attribution()


@dataclass(frozen=True)
class FakeVerdict:
    checks: tuple[dict[str, Any], ...]
    holds: bool
    target: Target
    folder: Path = Path("shipped")
    task: str = "digits"


@pytest.mark.parametrize(("held", "code", "words"), [(True, 0, "verified"), (None, 0, "not judged"), (False, 4, "DOES NOT HOLD")])
def test_a_verdict_is_shown_and_told_by_the_exit_code(held: bool | None, code: int, words: str, job: FakeJob) -> None:
    check = {"name": "speedup", "claimed": 4.0, "found": 3.1, "held": held, "words": "cpu: Z80 -> 8086"}
    job.answer = FakeVerdict((check,), held is not False, Target(threads=2))
    tolerances = ("--speed-tolerance", "20", "--accuracy-tolerance", "1", "--speed")
    result = call("verify", "shipped", *tolerances, "--task", "t", "--runs", "r", "--data", "d")
    assert result.exit_code == code
    assert words in result.stdout
    assert "cpu: Z80 -> 8086" in " ".join(result.stdout.split())
    job.asked.pop("progress")
    expected = {"folder": Path("shipped"), "task": "t", "task_options": {"data": "d"}, "runs": Path("r")}
    assert job.asked == expected | {"tolerance": Tolerance(20.0, 1.0, True)}
    told = call("verify", "shipped", "--json")
    assert told.exit_code == code
    assert json.loads(told.stdout)["holds"] is (held is not False)


def test_report_prints_where_the_files_lie(job: FakeJob) -> None:
    job.answer = (Path("runs/x/report.html"), Path("runs/x/figures"), Path("runs/x/trials.csv"))
    assert call("report", "x").stdout == "written   runs/x/report.html\nwritten   runs/x/figures\nwritten   runs/x/trials.csv\n"


def test_list_shows_a_line_a_study(job: FakeJob) -> None:
    first = {
        "study": "digits",
        "state": "finished",
        "finished": 50,
        "budget": 50,
        "best_speedup": 4.12,
        "best_drop": 0.56,
        "task": "digits",
    }
    timed = {
        "study": "own",
        "state": "interrupted",
        "finished": 3,
        "budget": None,
        "best_speedup": None,
        "best_drop": None,
        "task": "[a].b:c",
    }
    job.answer = [first, timed]
    lines = cells(call("list").stdout)
    assert ["digits", "finished", "50 of 50", "4.12x", "0.56", "digits"] in lines
    assert ["own", "interrupted", "3", "-", "-", "[a].b:c"] in lines


def test_list_of_an_empty_folder_says_how_to_start(job: FakeJob) -> None:
    job.answer = []
    assert call("list", "--runs", "my runs").stdout == (
        "No studies in my runs. Start one with: autocompress search --budget 50 --runs 'my runs'\n"
    )


def test_doctor_shows_what_is_there_and_how_to_get_the_rest(job: FakeJob) -> None:
    job.answer = [("onnxruntime", "ok", "1.31"), ("openvino", "missing", "pip install 'autocompress[openvino]'")]
    lines = cells(call("doctor").stdout)
    assert ["onnxruntime", "ok", "1.31"] in lines
    assert ["openvino", "missing", "pip install 'autocompress[openvino]'"] in lines
