"""Records when a worker group reaches its first step, and how long each phase before it took."""

from raytrain.training.driver_link import DriverLink
from raytrain.training.job import Job, Transition
from raytrain.training.run_log import RunLog


class Arrival:
    """Reports the steps to the driver, and with the first one records how long it took to get there."""

    def __init__(
        self, job: Job, log: RunLog, link: DriverLink, restored_step: int, steps_before: int, entered_at_s: float
    ):
        """`loaded_at_s`: when model and state were loaded. `steps_before`: steps that earlier attempts had done."""
        self._log, self._link, self._entered_at_s = log, link, entered_at_s
        self._transition = Transition(**job.transition) if job.transition else None
        self._loaded_at_s = link.now()
        self._detail = {"step": restored_step, "steps_redone": max(0, steps_before - restored_step)}
        link.stepped(restored_step)

    def stepped(self, step: int, world_size: int) -> None:
        """A step was done."""
        transition, self._transition = self._transition, None
        if transition is not None:
            phases = transition.phases(self._entered_at_s, self._loaded_at_s, self._link.now())
            self._log.event(
                transition.kind,
                cause=transition.cause,
                world_size_before=transition.world_size_before,
                world_size=world_size,
                **self._detail,
                seconds=round(sum(phases.values()), 3),
                **phases,
                left_at_s=transition.left_at_s,
                started_at_s=transition.started_at_s,
            )
        self._link.stepped(step)
