"""Keeps a sweep's worker processes between trials: a process that one trial returns is leased to the next one.

A new process would import for several seconds, on cores that the trials compute on.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IDLE_S = 20.0
"""A process that no trial needs for this long is ended: other jobs may need its resources."""
RETURN_S = 12.0
"""Time for a trial that is over to return its processes, see Supervisor. What it keeps is then ended."""


@dataclass
class _Process:
    actor: Any
    node_id: str
    trial: str | None
    """The trial that leases it. None: it is idle."""
    end_at_s: float | None = None
    """When it is ended, unless something changes before."""


class IdleWorkers:
    """Owns all worker processes, so that they outlive the trials. Times are `time.monotonic` of this process."""

    def __init__(self, start: Callable[[str, dict[str, float]], Any], end: Callable[[Any], None]):
        """Args:
        start: Starts a process on a node (by id) with the given resources. Returns its handle without waiting.
        end: Kills a process.
        """
        self._start, self._end = start, end
        self._numbers = itertools.count()
        self._processes: dict[int, _Process] = {}

    @property
    def nodes(self) -> list[str]:
        """Node id of each process."""
        return [process.node_id for process in self._processes.values()]

    @property
    def idle(self) -> list[str]:
        """Node id of each idle process."""
        return [process.node_id for process in self._processes.values() if process.trial is None]

    def lend(self, trial: str, node_id: str, resources: dict[str, float]) -> tuple[int, str, Any]:
        """Lease a process and return its number, node and handle: an idle one of that node, else an idle one of another
        node, because others may have claimed the capacity there at the same moment; else a new one."""
        idle = [number for number, process in self._processes.items() if process.trial is None]
        if idle:
            number = min(idle, key=lambda number: self._processes[number].node_id != node_id)
            process = self._processes[number]
            process.trial, process.end_at_s = trial, None
        else:
            number = next(self._numbers)
            process = self._processes[number] = _Process(self._start(node_id, resources), node_id, trial)
        return number, process.node_id, process.actor

    def take_back(self, number: int, *, is_fit: bool) -> None:
        """A trial returns a process. `is_fit`: it is alive and idle."""
        process = self._processes.get(number)
        if process is None:
            return
        process.trial, process.end_at_s = None, time.monotonic() + IDLE_S
        if not is_fit:
            self._let_go(number)

    def left(self, trial: str) -> None:
        """A trial is over, in any way."""
        for process in self._processes.values():
            if process.trial == trial:
                process.end_at_s = time.monotonic() + RETURN_S

    def tend(self) -> None:
        """End the processes whose time has come."""
        now_s = time.monotonic()
        for number, process in list(self._processes.items()):
            if process.end_at_s is not None and now_s > process.end_at_s:
                self._let_go(number)

    def forget_lost(self, alive: set[str]) -> None:
        """Stop leasing idle processes on nodes that are gone or being drained. `alive`: ids of all other nodes."""
        for number, process in list(self._processes.items()):
            if process.trial is None and process.node_id not in alive:
                self._let_go(number)

    def close(self) -> None:
        """End all processes."""
        for number in list(self._processes):
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._end(self._processes.pop(number).actor)
