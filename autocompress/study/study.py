"""The driver: ask, evaluate, write, tell, until the budget is used. Blind to torch: what a trial does is a callable it is given.

``result.json`` is the truth. study.db (or ``--storage``) only mirrors it for optuna-dashboard and catches up after any failure.
"""

import contextlib
import re
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy.exc import SQLAlchemyError

from autocompress.config import Budget, SearchConfig
from autocompress.errors import InvalidStudy, UserError
from autocompress.records import LayerInfo, Survey, TrialResult
from autocompress.runs import RunPaths
from autocompress.study.outlook import check_reachable, is_flat, outlook
from autocompress.study.points import values_of
from autocompress.study.propose import Memory, Proposal, propose
from autocompress.study.question import Question, question_of
from autocompress.study.samplers import check_sampler, quiet, verdict
from autocompress.study.space import Dimension, sampled
from autocompress.study.transfer import start_from

Stopped = Literal["budget", "time", "exhausted", "flat"]
Evaluate = Callable[[Proposal], TrialResult]
Say = Callable[[str], None]

TELL_EVERY = 5  # trials: what the front holds, and what the next trial is expected to add
STORAGE_ERRORS = (OptunaError, SQLAlchemyError, ImportError, OSError, RuntimeError)  # RuntimeError: schema of another Optuna
SQLITE_WAIT_SECONDS = 1.0  # for a lock that another program holds; Optuna itself tries five times


def run(  # noqa: PLR0913
    paths: RunPaths,
    config: SearchConfig,
    layers: Sequence[LayerInfo],
    evaluate: Evaluate,
    *,
    survey: Survey | None = None,
    on_trial: Callable[[TrialResult], None] | None = None,
    say: Say = lambda line: None,
) -> Stopped:
    """Go on with a study until its budget is used, the search is exhausted or (if asked) its front is flat, and say which.

    Finished trials of earlier calls count in a budget of trials; a budget of time is the wall clock of this call, looked at
    before every trial. What ``evaluate`` raises goes through untouched: every earlier trial is on disk by then.
    Raises InvalidSpace where the space does not fit the layers or cannot hold the bounds by the survey, InvalidStudy where the study to
    start from is of an unrelated model, UserError where the user's ``--storage`` or ``--sampler`` cannot be used.
    """
    started = time.monotonic()
    check_sampler(config.sampler)
    memory, results = Memory(), paths.results()
    question = question_of(config, layers, survey, given_points(paths, config, layers, results, say))
    if not results:
        check_reachable(question)
    with contextlib.closing(Mirror(paths, config, question, say)) as mirror:
        mirror.start(results)
        while (reason := used_up(config.budget, len(results), time.monotonic() - started)) is None:
            proposal = propose(question, memory, results, next_number(results))
            if proposal is None:
                return "exhausted"
            if len(results) % TELL_EVERY == 0 and (line := outlook(question, results, proposal)):
                say(line)
            if config.stop_when_flat and is_flat(question, results, proposal):
                return "flat"
            result = run_trial(paths, proposal, evaluate)
            results = sorted([*results, result], key=lambda one: one.number)
            mirror.catch_up(results)
            if on_trial is not None:
                on_trial(result)
    return reason


def given_points(
    paths: RunPaths, config: SearchConfig, layers: Sequence[LayerInfo], results: Sequence[TrialResult], say: Say
) -> tuple[dict[str, int], ...]:
    """The front of the study to start from. One that is gone by the time of a resume costs its points, not the study."""
    if config.warm_start is None:
        return ()
    try:
        return start_from(RunPaths(paths.runs, config.warm_start), config, layers)
    except InvalidStudy as error:
        if not results:
            raise
        say(f"note: going on without the front of {config.warm_start!r}: {error}")
        return ()


def run_trial(paths: RunPaths, proposal: Proposal, evaluate: Evaluate) -> TrialResult:
    """Evaluate one proposal and write what came of it, under the proposal's number."""
    shutil.rmtree(paths.trial(proposal.number).folder, ignore_errors=True)  # what a killed trial left
    result = evaluate(proposal)
    assert result.recipe.digest == proposal.recipe.digest, "evaluate returned the result of another recipe"
    finished_at = result.finished_at or datetime.now(UTC).isoformat(timespec="seconds")
    own = {"number": proposal.number, "source": proposal.source, "params": proposal.params, "finished_at": finished_at}
    result = result.model_copy(update=own)
    paths.write_result(result)
    return result


def next_number(results: Sequence[TrialResult]) -> int:
    """The first number without a result: a trial that was killed is run again under its number."""
    taken = {result.number for result in results}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def used_up(budget: Budget, finished: int, seconds: float) -> Literal["budget", "time"] | None:
    if budget.trials is not None and finished >= budget.trials:
        return "budget"
    if budget.seconds is not None and seconds >= budget.seconds:
        return "time"
    return None


class Mirror:
    """The finished trials of one study in an Optuna storage, for optuna-dashboard. It may lag: result.json is the truth."""

    def __init__(self, paths: RunPaths, config: SearchConfig, question: Question, say: Say) -> None:
        self._is_ours = config.storage is None
        self._url = config.storage or f"sqlite:///{paths.database.resolve()}"
        self._name, self._question, self._say = config.study, question, say
        self._storage: RDBStorage | None = None
        self._study: optuna.Study | None = None
        self._numbers: set[int] = set()

    def start(self, results: Sequence[TrialResult]) -> None:
        """Catch up with earlier trials. Raises UserError where a storage that the user named cannot be used, before any trial."""
        if self._is_ours:
            self.catch_up(results)
            return
        try:
            self._add_missing(results)
        except STORAGE_ERRORS as error:
            self.close()
            raise UserError(
                f"--storage: {without_password(self._url)} cannot be used: {reason_of(error, self._url)}. "
                "Give a database URL like sqlite:///study.db that exists and may be written, or leave --storage out."
            ) from None

    def catch_up(self, results: Sequence[TrialResult]) -> None:
        """Add every trial that the storage lacks. A failure is told and ends here: the next trial tries again."""
        if not results:
            return
        try:
            self._add_missing(results)
        except STORAGE_ERRORS as error:
            self.close()
            reason = reason_of(error, self._url)
            self._say(f"{without_password(self._url)} is behind ({reason}); no trial is lost, the next one catches up.")

    def close(self) -> None:
        """Give the connections back; the next catch_up opens them again."""
        storage, self._storage, self._study = self._storage, None, None
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()

    def _add_missing(self, results: Sequence[TrialResult]) -> None:
        study = self._study or self._open(results)
        for result in results:
            if result.number not in self._numbers:
                study.add_trial(shown(self._question, result))
                self._numbers.add(result.number)

    def _open(self, results: Sequence[TrialResult]) -> optuna.Study:
        """Open or create the study; one of ours that holds other trials than the run folder is made anew, a user's is refused."""
        self._storage = open_storage(self._url)
        study = open_study(self._storage, self._name, self._question)
        known = {(result.number, result.recipe.digest) for result in results}
        held = {(trial.user_attrs.get("number"), trial.user_attrs.get("digest")) for trial in study.get_trials(deepcopy=False)}
        if not held <= known:
            if not self._is_ours:
                self.close()
                raise UserError(
                    f"--storage: {without_password(self._url)} already holds a study {self._name!r} with other trials than "
                    "this one. Choose another --study or --storage."
                )
            optuna.delete_study(study_name=self._name, storage=self._storage)
            study, held = open_study(self._storage, self._name, self._question), set()
        self._study, self._numbers = study, {number for number, _ in held if number is not None}
        return study


def open_storage(url: str) -> RDBStorage:
    """Raises one of STORAGE_ERRORS; gives the connection back then."""
    options: dict[str, Any] = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=options)


def open_study(storage: RDBStorage, name: str, question: Question) -> optuna.Study:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # set_metric_names: the dashboard's axes are nameless without it
        study = optuna.create_study(storage=storage, study_name=name, directions=question.directions, load_if_exists=True)
        study.set_metric_names(list(question.objectives))
    return study


def shown(question: Question, result: TrialResult) -> FrozenTrial:
    """A finished trial as the dashboard shows it: values instead of indices, with what they mean as user attributes."""
    state, values, constraints = verdict(question, result)
    dims = sampled(question.dimensions)
    params = values_of(result.params, dims) if all(dim.name in result.params for dim in dims) else {}
    params = {dim.name: params[dim.name] if dim.is_numeric else str(params[dim.name]) for dim in dims if params}
    attributes = {"number": result.number, "digest": result.recipe.digest, "outcome": result.outcome, "source": result.source}
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={dim.name: axis(dim) for dim in dims if params},
        user_attrs=attributes,
        constraints=constraints,
    )


def axis(dim: Dimension) -> BaseDistribution:
    """The range of a dimension's values, so that plots get a numeric axis; names stay names."""
    if not dim.is_numeric:
        return CategoricalDistribution([str(choice) for choice in dim.choices])
    low, high = dim.choices[0], dim.choices[-1]
    if all(isinstance(choice, int) for choice in dim.choices):
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dim.name == "learning_rate")


def without_password(url: str) -> str:
    hidden = re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"(?i)(passw(?:or)?d=)[^&]*", r"\1***", hidden)


def reason_of(error: BaseException, url: str) -> str:
    """The innermost cause in one line, with no password of the URL in it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    for secret in re.findall(r"://[^:/@]*:([^/]*)@", url) + re.findall(r"(?i)passw(?:or)?d=([^&]*)", url):
        line = line.replace(secret, "***") if secret else line
    return without_password(line).rstrip(".")
