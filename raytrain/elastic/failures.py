"""Determines why a worker group failed, and whether the run may start another one."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raytrain.config import RunConfig
from raytrain.elastic.bad_step import samples_of, step_in_work
from raytrain.elastic.policy import Failure, FailureKind, FaultBudget
from raytrain.elastic.worker_group import GroupFailure, WorkerGroup
from raytrain.errors import FailureCode, RaytrainError
from raytrain.ray_core.nodes import NodeView, look
from raytrain.storage import Storage
from raytrain.training.driver_link import GroupStatus
from raytrain.training.outcome import Failed

# When a node is lost, its raylet ends this much later than its workers' processes.
NODE_FOLLOWS_S = 1.0
LOOK_AGAIN_S = (1.0, 3.0, 10.0)

WORDS = {
    FailureKind.RECLAIM: "a node was reclaimed",
    FailureKind.NODE_LOST: "a node was lost",
    FailureKind.CRASH: "a worker's process died",
    FailureKind.ERROR: "a worker failed",
    FailureKind.HANG: "the workers hang",
    FailureKind.NO_START: "the workers did not start",
}


# Kinds that follow from the nodes' state; for the others, the group's failure has the code.
CODES = {FailureKind.RECLAIM: FailureCode.NODE_LOST, FailureKind.NODE_LOST: FailureCode.NODE_LOST}


@dataclass(frozen=True)
class Judgement:
    """The kind of a failure, and its consequences."""

    kind: FailureKind
    verdict: Failed | None
    """Why the run has to give up; None: it may continue."""
    nodes: list[NodeView]
    """The nodes as they are now."""


class Failures:
    """The failures of one run."""

    def __init__(self, config: RunConfig, run: Storage, prepared_root: str, total_steps: int):
        self._config, self._run, self._prepared_root = config, run, prepared_root
        self._total_steps = total_steps
        self._budget = FaultBudget(config.workers.max_failures)
        self._crashed: set[str] = set()  # ids of the nodes on which processes died in what looked like crashes
        self._crashed_s, self._looks_s = 0.0, [*LOOK_AGAIN_S]

    @property
    def wait_s(self) -> float:
        """Seconds to wait before the next group starts."""
        return self._budget.wait_s

    def judge(self, failure: GroupFailure, group: WorkerGroup | None, before: Sequence[NodeView]) -> Judgement:
        """Charge a failure to the fault budget.

        Args:
            group: The failed group; None if it was not even formed.
            before: The nodes as they were last seen.
        """
        kind, nodes = _kind_of(failure, group, before)
        verdict = self._charge(kind, failure, group)
        if verdict is not None and kind is FailureKind.CRASH:
            time.sleep(NODE_FOLLOWS_S)
            if (second := _kind_of(failure, group, before))[0] is not kind:
                self._budget.take_back()
                kind, nodes = second
                verdict = self._charge(kind, failure, group)
        self._crashed = set(group.nodes_of_dead) if group is not None and kind is FailureKind.CRASH else set()
        self._crashed_s, self._looks_s = time.monotonic(), [*LOOK_AGAIN_S]
        return Judgement(kind, verdict, nodes)

    def with_samples(self, failed: Failed, group: WorkerGroup) -> Failed:
        """The outcome of a group; where the run diverged, with the samples of its last step, since one row can do that.
        No other group will come to that step and name them."""
        if failed.code is not FailureCode.DIVERGED:
            return failed
        with contextlib.suppress(OSError, RaytrainError):  # why the run ends must not be lost
            told = samples_of(group.status().step, self._config, self._prepared_root)
            return replace(failed, message=failed.message + told)
        return failed

    def reconsider(self) -> None:
        """Called at intervals. If a worker's process died because its node was going down, that was not a crash."""
        if not self._crashed or time.monotonic() < self._crashed_s + self._looks_s[0]:
            return
        del self._looks_s[0]
        if self._crashed - {node.node_id for node in look(probe=True)}:
            self._budget.take_back()
            self._crashed = set()
        if not self._looks_s:
            self._crashed = set()

    def _charge(self, kind: FailureKind, failure: GroupFailure, group: WorkerGroup | None) -> Failed | None:
        status = group.status() if group is not None else GroupStatus()
        code = CODES.get(kind, failure.code)
        why = self._budget.charge(
            Failure(kind, step_in_work(self._run, status), failure.message, code), time.monotonic()
        )
        bad_step, given_up_for = self._budget.bad_step, self._budget.given_up_for
        if why is None or given_up_for is None:
            return None
        if bad_step is not None and bad_step <= self._total_steps and kind is not FailureKind.HANG:
            with contextlib.suppress(OSError, RaytrainError):  # why the run ends must not be lost
                why += samples_of(bad_step, self._config, self._prepared_root)
        return Failed(given_up_for.code, why)


def _kind_of(
    failure: GroupFailure, group: WorkerGroup | None, before: Sequence[NodeView]
) -> tuple[FailureKind, list[NodeView]]:
    """The kind of the failure, taking into account whether a node had notice or is gone; and the nodes as they are
    now."""
    ours, now = set(group.nodes if group is not None else ()), look(probe=True)
    if any(node.is_draining and node.node_id in ours for node in (*before, *now)):
        return FailureKind.RECLAIM, now
    if ours - {node.node_id for node in now}:
        return FailureKind.NODE_LOST, now
    return failure.kind, now
