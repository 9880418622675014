"""Goodput: where a run's worker-seconds went, from the lines that it wrote. The contents of goodput.json.

An attempt of W workers that lasts t seconds is W * t worker-seconds, from the end of the attempt before it: waiting and
starting belong to the attempt that they lead to. Every one of them is in one class; what no line accounts for is
`other`, so the classes sum to the whole by construction, and a large `other` is a fault of ours.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

CHANGES = ("begin", "resize", "reclaim", "failure")
CLASSES = {
    "useful": "steps that count",
    "evaluation": "evaluations",
    "redone": "steps that a crash took back",
    "data_wait": "waiting for data",
    "checkpoint": "saving, as far as it blocked the loop",
    "leave": "ending a worker group",
    "detect": "from a worker's failure to the moment it was known",
    "prepare": "starting Ray and preparing data",
    "waiting": "waiting for nodes",
    "regroup": "starting a worker group",
    "load": "loading model and state",
    "first_step": "from the loaded state to the first step",
    "lost": "groups that ended before their first step",
    "other": "anything else",
}


@dataclass
class StepSeconds:
    """Seconds of an attempt's steps."""

    first_s: float = 0.0
    """Its first step, data included."""
    useful_s: float = 0.0
    redone_s: float = 0.0
    """In steps that a later attempt has done again, or has still to do; like `useful_s` without waiting for data."""
    data_wait_s: float = 0.0
    checkpoint_s: float = 0.0
    evaluation_s: float = 0.0


class StepTimes:
    """Seconds of all steps by attempt, told line by line, so that a run that goes on can be accounted for at any time.
    A step counts for the last attempt that did it: what earlier ones spent on it, and on all that follow, becomes
    redone."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        self.attempts: defaultdict[int, StepSeconds] = defaultdict(StepSeconds)
        self._attempt_of, self._seconds_of = array("q"), array("d")  # by step
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        step, attempt = row.get("step"), row.get("attempt", 0)
        if step is None:
            return
        mine, seconds = self.attempts.get(attempt), _sum("step_s", [row]) - _sum("data_wait_s", [row])
        if mine is None:
            mine = self.attempts[attempt]
            mine.first_s = _sum("step_s", [row])
            self._take_back(step, attempt)
        mine.data_wait_s += _sum("data_wait_s", [row])
        mine.checkpoint_s += _sum("checkpoint_s", [row])
        mine.evaluation_s += _sum("evaluation_s", [row])
        missing = step + 1 - len(self._attempt_of)
        if missing > 0:
            self._attempt_of.extend([-1] * missing)
            self._seconds_of.extend([0.0] * missing)
        owner = self._attempt_of[step]
        if attempt < owner:
            mine.redone_s += seconds
            return
        mine.useful_s += seconds
        self._attempt_of[step] = attempt
        self._seconds_of[step] += seconds

    def _take_back(self, first_step: int, attempt: int) -> None:
        """An attempt begins with this step: what earlier ones have done of it and beyond does not count."""
        for step in range(first_step, len(self._attempt_of)):
            owner = self._attempt_of[step]
            if owner == -1 or owner >= attempt:
                continue
            before = self.attempts[owner]
            before.useful_s -= self._seconds_of[step]
            before.redone_s += self._seconds_of[step]
            self._attempt_of[step], self._seconds_of[step] = -1, 0.0


def goodput(events: Sequence[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Account for a run's worker-seconds.

    Args:
        events: Lines of events.jsonl.
        rows: Lines of metrics.jsonl, also those that were redone.

    Returns:
        `goodput`, the share of useful steps and evaluations; `worker_seconds`; and `classes`, worker-seconds by name.
        Empty when nothing has been trained.
    """
    return account(events, StepTimes(rows))


def account(events: Iterable[dict[str, Any]], times: StepTimes) -> dict[str, Any]:
    """The same, of steps that are added up already."""
    classes = dict.fromkeys(CLASSES, 0.0)
    by_attempt = defaultdict(list)
    for event in events:
        by_attempt[event.get("attempt", 0)].append(event)
    for attempt, mine in sorted(by_attempt.items()):
        if any(event.get("kind") == "start" for event in mine):
            after = by_attempt.get(attempt + 1, [])
            for name, seconds in _attempt(mine, after, times.attempts.get(attempt, StepSeconds())).items():
                classes[name] += seconds
    total_s = sum(classes.values())
    if not total_s:
        return {}
    share = (classes["useful"] + classes["evaluation"]) / total_s
    rounded = {name: round(seconds, 3) for name, seconds in classes.items()}
    return {"goodput": round(share, 4), "worker_seconds": round(total_s, 3), "classes": rounded}


def _attempt(events: list[dict[str, Any]], after: list[dict[str, Any]], steps: StepSeconds) -> dict[str, float]:
    """Worker-seconds of one attempt by class. `after`: the events of the next one."""
    start = _first(events, "start")
    change, next_change = _first(events, *CHANGES), _first(after, *CHANGES)
    follows = next_change is not None and next_change.get("kind") != "begin"  # in the same command
    ended_at_s = next_change["left_at_s"] if follows else max(event.get("time", 0.0) for event in events)
    workers = start.get("world_size", 1)
    if change is None:
        return {"lost": workers * max(0.0, ended_at_s - start.get("entered_at_s", ended_at_s))}
    prepare_s = change["detect_s"] if change["kind"] == "begin" else 0.0
    spent = {
        "prepare": prepare_s,
        "waiting": change["wait_s"],
        "regroup": change["regroup_s"],
        "load": change["load_s"],
        "first_step": max(0.0, change["first_step_s"] - steps.first_s),
        "data_wait": steps.data_wait_s,
        "checkpoint": steps.checkpoint_s + _sum("checkpoint_s", events),
        "evaluation": steps.evaluation_s + _sum("evaluation_s", events) + _sum("measure_s", events),
        "leave": _sum("leave_s", events),
        "useful": steps.useful_s,
        "redone": steps.redone_s,
        "detect": next_change["detect_s"] if follows and next_change["kind"] == "failure" else 0.0,
    }
    finish = _first(events, "finish")
    if follows and finish is not None:
        spent["leave"] += max(0.0, ended_at_s - finish["time"])
    spent["other"] = ended_at_s - (change["left_at_s"] - prepare_s) - sum(spent.values())
    if spent["other"] < 0:  # the failing step's time lies in detect and in what came before: count it once
        spent["detect"] = max(0.0, spent["detect"] + spent["other"])
        spent["other"] = 0.0
    return {name: workers * seconds for name, seconds in spent.items()}


def _first(events: Iterable[dict[str, Any]], *kinds: str) -> Any:
    """The first event of one of these kinds. A failure that ended the run led to no group and has no moments."""
    fitting = (event for event in events if event.get("kind") in kinds)
    return next((event for event in fitting if kinds != CHANGES or "left_at_s" in event), None)


def _sum(name: str, *lines: Iterable[dict[str, Any]]) -> float:
    return sum(line.get(name) or 0.0 for group in lines for line in group)
