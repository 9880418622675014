"""The end of a command that trains a run: its result, and the files that tell of it.

How a run has ended must not be lost because storage fails now: what can't be read or written then is told, and the rest
is done all the same.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.reports.goodput import goodput
from raytrain.retries import retrying
from raytrain.runs.observer import Observer
from raytrain.runs.result import SUMMARY, RunResult
from raytrain.storage import Storage
from raytrain.tracking.base import TrackedRun
from raytrain.tracking.trackers import conclude
from raytrain.training.outcome import Finished, Outcome, RunStatus, Stopped, StopReason
from raytrain.training.records import iterate_jsonl
from raytrain.training.run_log import EVENTS, METRICS, recorded_progress

logger = logging.getLogger(__name__)

# Fields of Progress that the summary has too.
COUNTS = ("step", "skipped_steps", "skipped_spikes", "samples_seen", "tokens_seen")
SUMMARIZED = (*COUNTS, "best_metric", "best_value", "best_step")

STOPPED_IN_WORDS = {
    StopReason.REQUESTED: "stopped on request",
    StopReason.NODE_RECLAIMED: "the node of this command is being reclaimed",
    StopReason.PAUSED: "paused at the end of a generation",
    StopReason.CALLBACK: "stopped by a callback",
}


def conclude_run(
    outcome: Outcome, run: Storage, config: RunConfig, started_at_s: float, observer: Observer
) -> RunResult:
    """The result of the command, once it is written to the run's folder with its report.

    `started_at_s`: when the command was given, seconds since the epoch.
    """
    events, account = _account(run, observer)
    kinds = [event["kind"] for event in events if event["time"] >= started_at_s]
    result = _complete(outcome, run, time.time() - started_at_s, kinds)
    if account:
        _write(run, "goodput.json", account, observer)
        result = replace(result, goodput=account["goodput"])
    _write(run, SUMMARY, asdict(result), observer)
    if result.stop_reason is StopReason.PAUSED:  # it is about to be resumed
        return result
    if not result.is_done:
        conclude(TrackedRun(run, config), "failed" if result.status is RunStatus.FAILED else "killed")
    with writing_report(observer.phase):
        from raytrain.reports.html import build_report

        build_report(run)
    return result


def _account(run: Storage, observer: Observer) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(lines of events.jsonl, contents of goodput.json; empty if there is nothing to account for)."""

    def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        events = list(iterate_jsonl(run, EVENTS))
        return events, goodput(events, iterate_jsonl(run, METRICS))

    path = run.path_of()
    try:
        return retrying(read, f"reading the logs of {path}")
    except OSError as error:
        observer.note(f"the logs of {path} can't be read, so the goodput is not known: {error}")
        return [], {}


def _write(run: Storage, name: str, content: dict[str, Any], observer: Observer) -> None:
    """Write a file at the end of the run. A failure of storage, such as a full disk, is told: how the command has ended
    must not be lost."""
    path = run.path_of(name)
    try:
        retrying(lambda: run.commit_bytes(name, json.dumps(content, indent=1).encode()), f"writing {path}")
    except OSError as error:
        observer.note(f"{path} can't be written: {error}")


def _complete(outcome: Outcome, run: Storage, duration_s: float, events: list[str]) -> RunResult:
    """The workers' outcome, completed with what the driver knows."""
    told = outcome.progress
    if not told.step:  # no worker may be left to tell
        with contextlib.suppress(OSError):
            told = recorded_progress(run)
    progress = {name: value for name, value in told.to_dict().items() if name in SUMMARIZED}
    result = RunResult(
        status=outcome.status,
        run_path=run.path_of(),
        **progress,
        duration_s=duration_s,
        failures=outcome.failures,
        resizes=events.count("resize") + events.count("reclaim"),
    )
    if isinstance(outcome, Finished):
        return replace(result, final_metrics=outcome.final_metrics)
    if isinstance(outcome, Stopped):
        why = STOPPED_IN_WORDS[outcome.reason] + (f" ({outcome.detail})" if outcome.detail else "")
        message = f"{why}; to resume it: raytrain resume {run.path_of()}"
        return replace(result, stop_reason=outcome.reason, message=message, exit_code=1)
    code = outcome.code
    return replace(result, failure_code=code, message=outcome.message, exit_code=code.exit_code)


@contextmanager
def writing_report(tell: Callable[[str], None]) -> Iterator[None]:
    """Context in which a failure to draw the report does not make the run fail. `tell`: receives the name of the
    phase."""
    tell("writing the report")
    try:
        yield
    except OSError as error:
        logger.warning("the report could not be written (%s); `raytrain report` writes it again", error)
    except Exception:
        logger.exception("the report could not be written; `raytrain report` writes it again")
