"""CONTROL: one worker group after the other, each of the size that currently fits, until the run is done.

room    wait until workers.min fit, and report what is missing meanwhile
pool    start processes where there are none yet
group   have Ray Train form a worker group of them; it resumes from the newest state
watch   more capacity, a node with notice, or a stop request: ask the group to save and leave at its next step; for a
        scale-up only once the new processes are warm
next    the group left: start another one. It failed: charge the fault budget, then form a group of the survivors at
        once, which the replacements join when they are warm; if there are too few survivors, wait for room
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from raytrain.elastic.error_files import keep_tracebacks
from raytrain.elastic.failures import WORDS, Failures
from raytrain.elastic.fleet import Fleet, lost_nodes
from raytrain.elastic.group_watch import POLL_S, End, GroupWatch, Leave
from raytrain.elastic.policy import FailureKind
from raytrain.elastic.run_spec import Hooks, RunSpec
from raytrain.elastic.train_run import TrainRun
from raytrain.elastic.worker_group import GroupFailure, WorkerGroup
from raytrain.elastic.worker_processes import WorkerProcess
from raytrain.errors import FailureCode, TakenOverError, first_line
from raytrain.monitoring.run_metrics import WorkerCounts
from raytrain.training.job import Job, Transition, TransitionKind
from raytrain.training.outcome import Failed, Outcome, Stopped, StopReason
from raytrain.training.progress import Progress
from raytrain.training.records import JsonlWriter
from raytrain.training.run_log import EVENTS, recorded_progress

logger = logging.getLogger(__name__)

WITHDRAWN_LEAVE_S = 8.0  # time for a stopped trial to end its group, before its processes are taken
NO_START = "no worker process started on the nodes that had room"


@dataclass(frozen=True)
class NextGroup:
    """A worker group has ended, but the run has not."""

    transition: Transition
    """What led to the next group."""
    survivors: list[WorkerProcess]
    """Processes that can form the group at once; empty: it has to wait for room first."""


class Supervisor:
    """The driver's side of a run's training."""

    def __init__(self, spec: RunSpec, train_run: TrainRun, hooks: Hooks):
        """`train_run`: the run of Ray Train, whose controller may still be starting."""
        self._spec, self._train_run, self._hooks = spec, train_run, hooks
        self._allocation = spec.terms.allocation
        self._failures = Failures(spec.config, spec.run, spec.prepared_root, spec.total_steps)
        self._fleet = Fleet(spec, hooks)
        self._watch = GroupWatch(spec, hooks, train_run, self._fleet, self._failures)
        self._num_groups = self._num_at_work = 0
        self.num_failed = 0
        """Worker groups that have failed, those that lost a reclaimed node aside."""
        self._group: WorkerGroup | None = None

    @property
    def worker_counts(self) -> WorkerCounts:
        """How many workers train now, and how many could."""
        admission = self._fleet.admission
        return WorkerCounts(self._num_at_work, admission.wanted, admission.waiting_s)

    def train(self) -> Outcome:
        """Train to the end, a stop, or a failure that would end another group too."""
        now_s, why = time.time(), "the command was given"
        begin = Transition(TransitionKind.BEGIN, why, 0, self._spec.began_at_s, None, now_s, now_s)
        try:
            return self._conclude(self._train(NextGroup(begin, [])))
        finally:
            self._close()

    def _train(self, next_group: NextGroup) -> Outcome:
        while True:
            transition, survivors = next_group.transition, next_group.survivors
            places = [process.node_id for process in survivors] or self._fleet.admission.wait_for(
                transition.world_size_before
            )
            if not places or self._hooks.is_stop_asked():
                return self._stopped()
            end = self._run_group(places, survivors, replace(transition, started_at_s=time.time()))
            if not isinstance(end, NextGroup):
                return end
            next_group = end
            if next_group.transition.left_by_failure:
                self._pause(self._failures.wait_s)

    def evaluate(self, split: str) -> Outcome:
        """Evaluate the run's best model on a split with one group; if the group fails, that is the outcome."""
        try:
            places = self._fleet.admission.wait_for(0)
            if not places:
                return self._conclude(Stopped())
            if not self._fleet.bring_up(places):
                return self._conclude(Failed(FailureCode.NO_CAPACITY, NO_START))
            group = self._new_group(self._spec.job(None, None, None, split), self._fleet.pool.processes)
            self._watch.watch_evaluation(group)
            if group.outcome is not None:
                return self._conclude(group.outcome)
            keep_tracebacks(self._spec.run, group.failure)
            return self._conclude(Failed(group.failure.code, group.failure.message))
        finally:
            self._close()

    def _conclude(self, outcome: Outcome) -> Outcome:
        """End the Ray Train run while the workers are still there, since it takes in their last reports."""
        self._train_run.conclude(outcome)
        return outcome

    def _close(self) -> None:
        """End everything that belongs to this run, whatever has happened; first save what only memory holds."""
        is_withdrawn = self._allocation.is_withdrawn
        parts: tuple[Callable[[], None], ...] = (
            *((self._train_run.abort, self._let_leave) if is_withdrawn else ()),  # this process may be killed soon
            self._fleet.pool.close,
            self._fleet.admission.close,
            *(() if is_withdrawn else (self._keep_snapshot,)),
            self._fleet.snapshots.close,
            self._allocation.close,
        )
        for part in parts:
            try:
                part()
            except Exception:
                logger.exception("an error while ending the run")

    def _let_leave(self) -> None:
        """Wait until the processes have left their group: those are of use to the next trial, others would be
        killed."""
        if self._group is not None:
            self._group.ask_to_leave()
            self._group.wait(WITHDRAWN_LEAVE_S)
            self._fleet.pool.end(self._group.unfit)

    def _keep_snapshot(self) -> None:
        """Turn the newest snapshot into a checkpoint when no worker is left to save."""
        if self._group is not None:
            with contextlib.suppress(Exception):  # Ray may be gone
                self._fleet.snapshots.saved(self._group.status().saved_step)
        snapshot = self._fleet.snapshots.newest()
        if snapshot is None:
            return
        with contextlib.suppress(TakenOverError):  # another command has resumed from what is in storage
            self._fleet.snapshots.write(snapshot, self._hooks.new_token())
            self._hooks.say(f"the snapshot of step {snapshot.step} has become a checkpoint")

    def _new_group(self, job: Job, processes: list[WorkerProcess]) -> WorkerGroup:
        self._num_groups += 1
        self._group = WorkerGroup(self._num_groups, processes, job, self._train_run, lost_nodes)
        return self._group

    def _run_group(
        self, places: list[str], survivors: list[WorkerProcess], transition: Transition
    ) -> Outcome | NextGroup:
        """Run one group to its end.

        `survivors`: processes that form the group; empty: it is formed from processes at these places.
        """
        fleet = self._fleet
        fleet.scale_up.begin(len(places), is_planned=transition.kind is TransitionKind.RESIZE)
        if not survivors and fleet.bring_up(places) < self._spec.config.workers.min:
            return self._after_failure(GroupFailure(FailureKind.NO_START, FailureCode.NO_CAPACITY, NO_START), None)
        group = self._new_group(self._job(transition), survivors or fleet.pool.processes)
        self._num_at_work = group.world_size
        leave = self._watch.watch(group, transition)
        self._num_at_work = 0
        self._hooks.on_poll()
        self._hooks.on_group_end()
        fleet.snapshots.saved(group.status().saved_step)
        fleet.pool.end(group.unfit)
        return self._after_end(group, leave)

    def _after_end(self, group: WorkerGroup, leave: Leave | None) -> Outcome | NextGroup:
        """A group has ended: the run's outcome, or the next group. `leave`: why it was asked to leave, if it was."""
        leads_to = leave.leads_to if leave is not None else None
        if leave is not None and leads_to is End.CONTROLLER_LOST:
            return Failed(FailureCode.RAY, leave.cause, _progress_of(group.outcome))
        if isinstance(leads_to, Transition) and group.has_not_begun:  # because the controller was gone
            return NextGroup(replace(leads_to, left_at_s=time.time()), [])
        outcome = group.outcome
        if outcome is None:
            return self._after_failure(group.failure, group)
        if isinstance(outcome, Failed):
            self.num_failed, outcome = self.num_failed + 1, self._failures.with_samples(outcome, group)
        self._train_run.end_group(group.number)
        if leads_to is None or not isinstance(outcome, Stopped) or self._hooks.is_stop_asked():
            return outcome
        if not isinstance(leads_to, Transition):
            is_reclaimed = leads_to is End.OWN_NODE_RECLAIMED
            return replace(outcome, reason=StopReason.NODE_RECLAIMED if is_reclaimed else outcome.reason)
        self._fleet.snapshots.keep_only(self._fleet.cluster.staying.intersection(self._fleet.pool.nodes))
        return NextGroup(replace(leads_to, left_at_s=time.time()), [])

    def _after_failure(self, failure: GroupFailure, group: WorkerGroup | None) -> Failed | NextGroup:
        """Charge a failure: the run's end, or the next group. `group`: None if it was not even formed."""
        now_s = time.time()
        keep_tracebacks(self._spec.run, failure)
        found = self._failures.judge(failure, group, self._fleet.cluster.nodes)
        self.num_failed += found.kind is not FailureKind.RECLAIM
        if found.verdict is not None:
            self._record(found.verdict)
            return found.verdict
        cause = f"{WORDS[found.kind]}: {first_line(failure.message)}"
        self._hooks.say(cause)
        survivors = self._fleet.recover(group, found.nodes)
        kind = TransitionKind.RECLAIM if found.kind is FailureKind.RECLAIM else TransitionKind.FAILURE
        reported_at_s = (group.status().step_at_s if group is not None else None) or now_s
        world_size = group.world_size if group is not None else 0
        return NextGroup(
            Transition(kind, cause, world_size, reported_at_s, None, now_s, time.time()),
            survivors,
        )

    def _record(self, failed: Failed) -> None:
        """Write why the run ends; no worker is left to do it. If storage fails, the terminal alone says it."""
        try:
            events = JsonlWriter(self._spec.run, EVENTS)
            events.write({"time": time.time(), "kind": "failure", "cause": failed.message, "code": failed.code})
            events.close()
        except OSError as error:
            logger.warning("the failure can't be written to %s: %s", self._spec.run.path_of(EVENTS), error)

    def _pause(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self._hooks.is_stop_asked():
            self._hooks.on_poll()
            time.sleep(POLL_S)

    def _stopped(self) -> Stopped:
        """The outcome between two groups: all progress is saved, or lost already."""
        return Stopped(recorded_progress(self._spec.run))

    def _job(self, transition: Transition) -> Job:
        snapshot = self._fleet.snapshots.newest()
        return self._spec.job(self._hooks.new_token(), asdict(transition), asdict(snapshot) if snapshot else None)


def _progress_of(outcome: Outcome | None) -> Progress:
    return outcome.progress if outcome is not None else Progress()
