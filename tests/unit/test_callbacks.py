"""Callbacks of the user's: in order, beside the steps, bounded, and what happens when one raises. No Ray."""

import dataclasses
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

import raytrain
from raytrain.errors import FailureCode
from raytrain.runs import callbacks as module
from raytrain.runs.callbacks import CallbackRunner, StartInfo
from raytrain.runs.result import RunResult
from raytrain.training.outcome import Failed, Finished, Outcome, RunStatus, Stopped, StopReason

DONE = RunResult(RunStatus.FINISHED, "runs/a", step=9)
STEP = {"epoch": 1, "lr": 0.1, "grad_norm": 1.0, "samples_seen": 8, "tokens_seen": 80, "step_s": 0.1}
STEP |= {"world_size": 2, "attempt": 0}
CHANGE = {"cause": "why", "step": 3, "steps_redone": 1, "world_size_before": 2, "world_size": 1, "seconds": 2.5}


def steps(*numbers: int, loss: float | None = 0.5) -> list[dict[str, Any]]:
    return [{**STEP, "step": number, "loss": loss} for number in numbers]


class Notes(raytrain.Callback):
    """Notes what it is told."""

    def __init__(self, notes: list[Any]):
        self.notes, self.threads = notes, set[str]()

    def _note(self, info: Any) -> None:
        self.notes.append(info)
        self.threads.add(threading.current_thread().name)

    on_start = on_step = on_evaluation = on_checkpoint = on_resize = on_end = _note  # type: ignore[assignment]


@pytest.fixture
def start(tmp_path: Path) -> StartInfo:
    return StartInfo("runs/a", tiny_run(tmp_path, "a"), 9)


def test_each_line_is_told_once_in_order_and_in_one_thread(start: StartInfo) -> None:
    one, two = Notes([]), Notes([])
    runner = CallbackRunner([one, two], print)
    runner.begin(start)
    runner.rows("metrics.jsonl", steps(1) + steps(2, loss=None))
    best = {"metric": "accuracy", "value": 0.75, "step": 2, "is_saved": True}
    line = {"step": 2, "epoch": 1, "split": "validation", "epochs_done": 0.5, "best": best, "time": 1.5}
    runner.rows("evals.jsonl", [{**line, "accuracy": 0.75, "loss": 0.6, "tables": {}}])
    lines = [{"kind": "checkpoint", "step": 2}, {"kind": "failure", **CHANGE}, {"kind": "zero_stage"}]
    runner.rows("events.jsonl", [*lines, {"kind": "failure", "cause": "the end", "code": "hang"}])
    runner.rows("metrics.jsonl", steps(3))
    runner.end(DONE)
    assert one.notes == two.notes and one.threads == {"raytrain-callbacks"}
    kinds = ["StartInfo", "StepInfo", "StepInfo", "EvaluationInfo", "CheckpointInfo", "ResizeInfo", "StepInfo"]
    # NaN is not equal to itself, and of the steps that still wait at the end only the last one is told.
    told = [type(info).__name__ for info in one.notes]
    assert told[-1] == "RunResult" and [name for name in told[:-1] if name != "StepInfo"] == [
        name for name in kinds if name != "StepInfo"
    ]
    evaluation = next(info for info in one.notes if isinstance(info, raytrain.EvaluationInfo))
    assert evaluation.metrics == {"accuracy": 0.75, "loss": 0.6}
    assert (evaluation.epochs, evaluation.best_metric, evaluation.best_value) == (0.5, "accuracy", 0.75)
    change = next(info for info in one.notes if isinstance(info, raytrain.ResizeInfo))
    assert (change.kind, change.world_size_before, change.world_size, change.steps_redone) == ("failure", 2, 1, 1)


def test_a_loss_that_is_not_finite_is_nan(start: StartInfo) -> None:
    notes = Notes([])
    runner = CallbackRunner([notes], print)
    runner.begin(start)
    runner.rows("metrics.jsonl", steps(7, loss=None))
    runner.end(DONE)
    assert math.isnan(notes.notes[1].loss) and notes.notes[1].total_steps == 9


def test_a_slow_callback_delays_nothing_and_misses_steps(start: StartInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    go, told = threading.Event(), []

    class Slow(Notes):
        def on_start(self, info: StartInfo) -> None:
            go.wait(20)

    slow = Slow([])
    runner = CallbackRunner([slow], lambda text: (told.append(text), go.set()))  # type: ignore[arg-type]
    runner.begin(start)
    for number in range(1, 101):
        runner.rows("metrics.jsonl", steps(number))
        runner.rows("events.jsonl", [{"kind": "checkpoint", "step": number}])
    assert len(runner._waiting) <= 21, "memory is bounded"
    runner.end(DONE)
    assert told == ["waiting for Slow.on_start; press Ctrl-C to end without it"]
    assert [info.step for info in slow.notes if isinstance(info, raytrain.CheckpointInfo)] == [*range(91, 101)]
    last = [info for info in slow.notes if isinstance(info, raytrain.StepInfo)]
    assert [(info.step, info.num_missed) for info in last] == [(100, 99)]


class Stops(raytrain.Callback):
    def __init__(self, answer: Any):
        self.answer = answer

    def on_step(self, info: raytrain.StepInfo) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ended(runner: CallbackRunner, start: StartInfo, outcome: Outcome, *, is_other_stop: bool = False) -> Outcome:
    runner.begin(start)
    runner.rows("metrics.jsonl", steps(1))
    runner.close()
    assert runner._thread is not None
    runner._thread.join(20)
    return runner.judge(outcome, is_other_stop=is_other_stop)


def test_a_callback_stops_the_run(start: StartInfo) -> None:
    for answer, detail in ((raytrain.StopTraining("enough"), "Stops.on_step: enough"),):
        runner = CallbackRunner([Stops(answer)], print)
        found = ended(runner, start, Stopped())
        assert runner.is_stop_asked and isinstance(found, Stopped)
        assert (found.reason, found.detail) == (StopReason.CALLBACK, detail)
    runner = CallbackRunner([Stops(None)], print)
    assert ended(runner, start, Stopped()) == Stopped() and not runner.is_stop_asked
    runner = CallbackRunner([Stops(raytrain.StopTraining())], print)
    assert ended(runner, start, Stopped(), is_other_stop=True) == Stopped(), "the user was first"
    runner = CallbackRunner([Stops(raytrain.StopTraining())], print)
    assert ended(runner, start, Finished()) == Finished(), "it was done already"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ValueError("no such color"), "the callback Stops.on_step failed: ValueError: no such color"),
        (3, "the callback Stops.on_step failed: TypeError: it returned 3; return None, or raytrain.StopTraining"),
    ],
)
def test_a_callback_that_raises_ends_the_run_by_name(start: StartInfo, answer: Any, said: str) -> None:
    after, notes = Notes([]), []
    runner = CallbackRunner([Stops(answer), after], notes.append)
    runner.begin(start)
    runner.rows("metrics.jsonl", steps(1))
    with pytest.raises(raytrain.TrainingError, match=said) as caught:
        runner.end(DONE)
    assert caught.value.code is FailureCode.INTERNAL and caught.value.__cause__ is not None
    assert after.notes[-1] == DONE, "the others hear of the end"
    found = runner.judge(Stopped(), is_other_stop=False)
    assert isinstance(found, Failed) and said in found.message


def test_a_callback_does_not_hide_why_the_run_failed(start: StartInfo) -> None:
    class Rounds(raytrain.Callback):
        def on_end(self, result: Any) -> None:
            round(result.best_value)  # of a run without an evaluation

    runner = CallbackRunner([Rounds()], print)
    runner.begin(start)
    failed = dataclasses.replace(DONE, status=RunStatus.FAILED, best_value=None, message="a worker was lost")
    assert runner.judge(Failed(FailureCode.WORKER_ERROR, "a worker was lost"), is_other_stop=False).status == "failed"
    runner.end(failed)  # whoever called run_training tells its message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Notes([]), "callbacks is of type Notes; give a list"),
        ([Stops], r"callbacks\[0\] is the class Stops; give an object of it: Stops\(\)"),
        ([print], r"callbacks\[0\] is of type builtin_function_or_method; give objects whose class is derived from"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_starts(tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(raytrain.ConfigError, match=said):
        raytrain.train(tiny_run(tmp_path, "a"), callbacks=given)
    assert not (tmp_path / "runs").exists()
