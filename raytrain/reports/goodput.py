"""Goodput: classifies a run's worker-seconds by what they were spent on. Computes the contents of goodput.json.

An attempt of W workers that lasts t seconds counts W * t worker-seconds, measured from the end of the previous attempt:
waiting and starting up belong to the attempt that they lead to. Each worker-second is in exactly one class. `other` is
the remainder, so the classes always add up to the total; a large `other` means that this file misses something.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.reports.steps import Attempts

MOST_BINS = 1 << 13
"""Bound on the bins that StepTimes keeps."""
CHANGES = ("begin", "resize", "reclaim", "failure")
CLASSES = {
    "useful": "steps that count",
    "evaluation": "evaluations",
    "redone": "steps that were redone after a crash",
    "data_wait": "waiting for data",
    "checkpoint": "saving, while it blocked the training loop",
    "leave": "shutting a worker group down",
    "detect": "from a worker's failure until it was detected",
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
    """Seconds that one attempt spent in its steps."""

    first_s: float = 0.0
    """Duration of the first step, including its wait for data."""
    useful_s: float = 0.0
    redone_s: float = 0.0
    """In steps that a later attempt has redone or must still redo. Like `useful_s`, without waiting for data."""
    data_wait_s: float = 0.0
    checkpoint_s: float = 0.0
    evaluation_s: float = 0.0


class StepTimes:
    """Sums the seconds of all steps by attempt. Lines are added one by one, so that a run can be accounted for while it
    is training.

    A step counts for the last attempt that did it. When an attempt begins at a step, the time that earlier attempts
    spent on this and all later steps becomes redone time.

    Memory is constant: seconds are summed in bins of consecutive steps, of one step each up to MOST_BINS steps. If an
    attempt begins inside a wider bin, the steps of that bin are assumed to have taken equally long.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        self.attempts: defaultdict[int, StepSeconds] = defaultdict(StepSeconds)
        self._steps, self._bin_steps = Attempts(), 1
        self._bins: dict[tuple[int, int], tuple[float, float]] = {}
        """(bin, attempt) -> seconds of its counting steps, without and with their wait for data."""
        for row in rows:
            self.add(row)

    @property
    def counted_s(self) -> float:
        """Total duration of the steps that count, including their wait for data."""
        return sum(whole_s for _, whole_s in self._bins.values())

    def add(self, row: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        step, attempt = row.get("step"), row.get("attempt", 0)
        if step is None:
            return
        mine, whole_s = self.attempts[attempt], _sum("step_s", [row])
        if self._steps.add(step, attempt):
            mine.first_s = whole_s
            self._take_back(step, attempt)
        wait_s = _sum("data_wait_s", [row])
        mine.data_wait_s += wait_s
        mine.checkpoint_s += _sum("checkpoint_s", [row])
        mine.evaluation_s += _sum("evaluation_s", [row])
        if step >= self._steps.end_of(attempt):
            mine.redone_s += whole_s - wait_s
            return
        mine.useful_s += whole_s - wait_s
        self._put(step // self._bin_steps, attempt, (whole_s - wait_s, whole_s))
        if len(self._bins) > MOST_BINS:
            self._widen()

    def _put(self, place: int, attempt: int, seconds: tuple[float, float]) -> None:
        before = self._bins.get((place, attempt), (0.0, 0.0))
        self._bins[place, attempt] = (before[0] + seconds[0], before[1] + seconds[1])

    def _widen(self) -> None:
        """Double the width of the bins."""
        bins, self._bins = self._bins, {}
        self._bin_steps *= 2
        for (place, attempt), seconds in bins.items():
            self._put(place // 2, attempt, seconds)

    def _take_back(self, first_step: int, attempt: int) -> None:
        """Turn what earlier attempts spent on this and all later steps into redone time."""
        for (place, owner), (seconds, whole_s) in list(self._bins.items()):
            low = max(place * self._bin_steps, self._steps.first[owner])
            end = min(self._steps.last[owner] + 1, self._steps.end_of(owner, before=attempt))
            high = min((place + 1) * self._bin_steps, end)
            if owner >= attempt or high <= max(low, first_step):
                continue
            left = max(0, first_step - low) / (high - low)
            self._bins[place, owner] = (left * seconds, left * whole_s)
            if not left:
                del self._bins[place, owner]
            before = self.attempts[owner]
            before.useful_s -= (1 - left) * seconds
            before.redone_s += (1 - left) * seconds


def goodput(events: Sequence[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Account for a run's worker-seconds.

    Args:
        events: Lines of events.jsonl.
        rows: Lines of metrics.jsonl, including those of redone steps.

    Returns:
        `goodput`, the share of useful steps and evaluations; `worker_seconds`; and `classes`, worker-seconds by name.
        Empty if nothing has been trained.
    """
    return account(events, StepTimes(rows))


def account(events: Iterable[dict[str, Any]], times: StepTimes) -> dict[str, Any]:
    """As `goodput`, from step times that are already summed."""
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
    """Worker-seconds of one attempt by class. `after`: events of the next attempt."""
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
    if spent["other"] < 0:  # the failing step is counted in detect and in a class before it: count it once
        spent["detect"] = max(0.0, spent["detect"] + spent["other"])
        spent["other"] = 0.0
    return {name: workers * seconds for name, seconds in spent.items()}


def _first(events: Iterable[dict[str, Any]], *kinds: str) -> Any:
    """The first event of one of these kinds. A failure that ended the run has no timestamps, since no
    group followed it."""
    fitting = (event for event in events if event.get("kind") in kinds)
    return next((event for event in fitting if kinds != CHANGES or "left_at_s" in event), None)


def _sum(name: str, *lines: Iterable[dict[str, Any]]) -> float:
    return sum(line.get(name) or 0.0 for group in lines for line in group)
