"""A sweep's worker processes between trials: one that a trial gives back is lent to the next, which need not start it.

A new process imports for seconds, and does so on cores that the trials compute on.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IDLE_S = 20.0
"""A process that no trial wants for so long is ended: other jobs may use what it holds."""
RETURN_S = 12.0
"""A trial that is over has so long to give its processes back, see Supervisor; what it keeps is ended then."""


@dataclass
class _Process:
    actor: Any
    node_id: str
    trial: str | None
    """Who has it; None: it is idle."""
    end_at_s: float | None = None
    """When it is ended, if nothing changes."""


class IdleWorkers:
    """Owns all of them, so that they outlive the trials. Moments are `time.monotonic` of its own process."""

    def __init__(self, start: Callable[[str, dict[str, float]], Any], end: Callable[[Any], None]):
        """Args:
        start: Starts a process on a node (its id), which holds these resources; returns its handle at once.
        end: Kills one.
        """
        self._start, self._end = start, end
        self._numbers = itertools.count()
        self._processes: dict[int, _Process] = {}

    @property
    def nodes(self) -> list[str]:
        """Ids of their nodes, one entry a process."""
        return [process.node_id for process in self._processes.values()]

    @property
    def idle(self) -> list[str]:
        """Ids of the nodes of those that nobody has, one entry a process."""
        return [process.node_id for process in self._processes.values() if process.trial is None]

    def lend(self, trial: str, node_id: str, resources: dict[str, float]) -> tuple[int, str, Any]:
        """A process's number, node and handle: an idle one of that node, else one of another node, since others may
        have looked for room there at the same moment; else a new one."""
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
        """A trial needs it no more. `is_fit`: it lives, and has nothing to do."""
        process = self._processes.get(number)
        if process is None:
            return
        process.trial, process.end_at_s = None, time.monotonic() + IDLE_S
        if not is_fit:
            self._let_go(number)

    def left(self, trial: str) -> None:
        """A trial is over, in whatever way."""
        for process in self._processes.values():
            if process.trial == trial:
                process.end_at_s = time.monotonic() + RETURN_S

    def tend(self) -> None:
        """End those whose time has come."""
        now_s = time.monotonic()
        for number, process in list(self._processes.items()):
            if process.end_at_s is not None and now_s > process.end_at_s:
                self._let_go(number)

    def forget_lost(self, alive: set[str]) -> None:
        """Idle processes on nodes that are gone, or that have notice, are lent no more. `alive`: ids of the others."""
        for number, process in list(self._processes.items()):
            if process.trial is None and process.node_id not in alive:
                self._let_go(number)

    def close(self) -> None:
        """End all of them."""
        for number in list(self._processes):
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._end(self._processes.pop(number).actor)
