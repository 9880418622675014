"""One trial, in its own process: an elastic run whose evaluations are reported to Ray Tune.

A trial that an interrupted sweep has already trained first reports its earlier evaluations again, so that scheduler and
searcher know them. It then resumes from its checkpoint, unless it was done.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain.config import Mark, RunConfig
from raytrain.config.fields import marked
from raytrain.config.io import parse_config
from raytrain.elastic.allocation import Terms
from raytrain.errors import RaytrainError
from raytrain.runs.observer import Observer
from raytrain.runs.result import RunResult
from raytrain.runs.run import run_training
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus, StopReason
from raytrain.training.records import BEST_SO_FAR, EPOCHS, read_jsonl
from raytrain.tuning.generation_end import has_paused_at, num_done, value_at, values_of, wait_for_others
from raytrain.tuning.pool.allocate import Claim
from raytrain.tuning.pool.broker import TrialAllocation
from raytrain.tuning.space.space import overrides_of
from raytrain.tuning.trials import TrialFailure

STEP, VALUE, STATUS, GOODPUT, OTHERS, KEPT = "step", "value", "status", "goodput", "others", "kept"
ROUNDING = 1e-5  # floating point: Tune's rungs are 0.1 x 3 = 0.30000000000000004
SETTLED = "is_settled"
"""Marks a report at which the trial must not be stopped: it has passed this rung before, or is at its end anyway."""
FAILURE = "failure.json"


@dataclass(frozen=True)
class TrialPlan:
    """What a trial has to do; plain data, since it is sent to the trial's process."""

    name: str
    """The name of its folder, and its id in the sweep."""
    config: dict[str, Any]
    """The whole run config; without the trial's values if they may change between generations."""
    metric: str
    sign: float
    """1 when a larger metric is better, -1 when a smaller one is."""
    broker: str
    """Name of the actor that allocates workers."""
    others: dict[str, float | None] = field(default_factory=dict)
    """The space's other objectives; their values are reported with each evaluation, unless they are known in
    advance."""
    is_over: bool = False
    """The trial is already over and only reports again."""
    failure: str | None = None
    """Its earlier error, for the log of its process."""
    rung: int = 0
    """Rungs that it had passed earlier."""
    value: float | None = None
    """Its newest earlier value; larger is better."""
    sweep: str = ""
    """The sweep's folder."""
    every_steps: int | None = None
    """Steps per generation; None: the sweep has no generations."""
    values: dict[str, Any] = field(default_factory=dict)
    """The values that it changes in the config in its first generation."""


class TrialFailed(Exception):
    """Tells Tune that the trial has failed; Tune does not show the message."""


def run_trial(plan: TrialPlan) -> None:
    """Train a trial. Returns at its end; when the scheduler stops the trial, Tune ends this process.

    Raises:
        TrialFailed: The error is in the file FAILURE of the trial's folder, unless the plan has it.
    """
    if not plan.config:  # its values do not make a valid config
        raise TrialFailed(plan.failure)
    config = parse_config(plan.config)
    run = Storage(config.storage_path).at(config.name)
    reporter = Reporter(plan)
    reporter.tell_again(read_jsonl(run, "evals.jsonl"))
    if plan.failure is not None:
        raise TrialFailed(plan.failure)
    if plan.is_over:
        return
    failure = None
    try:
        result = (
            _train(plan, config, reporter)
            if plan.every_steps is None
            else _train_by_generations(plan, config, reporter)
        )
        if result.failure_code is not None:
            failure = TrialFailure(result.failure_code, result.message)
    except RaytrainError as error:
        failure = TrialFailure(error.code, str(error))
    if failure is not None:
        run.commit_bytes(FAILURE, json.dumps(asdict(failure)).encode())
        raise TrialFailed(str(failure))
    reporter.end(result)


def _train(plan: TrialPlan, config: RunConfig, reporter: "Reporter", until_step: int | None = None) -> RunResult:
    """Train with the pool's workers, up to a step or to the end."""
    claim = Claim(plan.name, config.workers.min, config.workers.max, plan.rung, plan.value)
    allocation = TrialAllocation(plan.broker, claim, lambda: reporter.is_stopped)
    may_change = tuple(marked(Mark.MID_RUN)) if until_step is not None else ()
    try:
        terms = Terms(allocation, until_step, may_change, sweep=Storage(plan.sweep).place()[1])
        return run_training(config, reporter, terms=terms)
    finally:
        allocation.close()


def _train_by_generations(plan: TrialPlan, config: RunConfig, reporter: "Reporter") -> RunResult:
    """Train one generation after the other; between them other trials may use the workers, and values and model may
    change."""
    assert plan.every_steps is not None
    sweep, run = Storage(plan.sweep), Storage(config.storage_path).at(config.name)
    while True:
        generation = num_done(sweep)
        until_step = (generation + 1) * plan.every_steps
        if not has_paused_at(run, until_step):
            now = parse_config(plan.config, overrides_of(values_of(sweep, plan.name) or plan.values))
            result = _train(plan, now, reporter, until_step)
            if result.status is not RunStatus.STOPPED or result.step < until_step:
                return result
        value = value_at(run, until_step, plan.metric, plan.sign)
        if not wait_for_others(plan.broker, plan.name, generation, value):
            return RunResult(RunStatus.STOPPED, run.path_of(), until_step, stop_reason=StopReason.REQUESTED)


class Reporter(Observer):
    """Reports evaluations of the validation split to Tune, each step once and in order."""

    def __init__(self, plan: TrialPlan):
        self._plan = plan
        self._last_step, self._last_value = 0, math.nan
        self._others: dict[str, float] = {}
        self._is_kept = False
        self._epochs = 0.0
        self._total_steps = math.inf
        self.is_stopped = False
        """Whether the scheduler has stopped the trial: Tune signals this by a SystemExit, which ends the run."""

    def begin(self, total_steps: int) -> None:
        """Training is about to start."""
        self._total_steps = total_steps

    def tell_again(self, rows: list[dict[str, Any]]) -> None:
        """Report the evaluations of an earlier command again. No scheduler may judge the trial by their order."""
        self._pass_on(rows, is_settled=True)

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """New lines of the run's files."""
        if name == "evals.jsonl":
            self._pass_on(rows, is_settled=False)

    def _pass_on(self, rows: list[dict[str, Any]], *, is_settled: bool) -> None:
        for row in rows:
            value = row.get(self._plan.metric)
            if row["split"] != "validation" or row["step"] <= self._last_step or value is None:  # None: not finite
                continue
            self._last_step, self._last_value = row["step"], self._plan.sign * value
            self._epochs = row.get(EPOCHS, 0.0) * (1 + ROUNDING)
            others = {name: row.get(name) if known is None else known for name, known in self._plan.others.items()}
            self._others = {name: other for name, other in others.items() if other is not None}
            best = row.get(BEST_SO_FAR) or {}
            self._is_kept = best.get("metric") == self._plan.metric and best.get("step") == row["step"]
            self._report("running", is_settled=is_settled or self._last_step >= self._total_steps)

    def end(self, result: RunResult) -> None:
        """Report the end of the run, with the last value, since Tune takes a trial's last report as its result."""
        self._last_step = max(result.step, self._last_step)
        self._report(result.status, is_settled=True, goodput=result.goodput)

    def _report(self, status: str, *, is_settled: bool, goodput: float | None = None) -> None:
        from ray import tune

        if self.is_stopped:  # Tune raises only once; a second report would wait indefinitely
            raise SystemExit
        report: dict[str, Any] = {STEP: self._last_step, VALUE: self._last_value, STATUS: status, SETTLED: is_settled}
        report |= {OTHERS: self._others, KEPT: self._is_kept, EPOCHS: self._epochs}
        try:
            tune.report({**report, GOODPUT: goodput})
        except SystemExit:
            self.is_stopped = True
            raise
