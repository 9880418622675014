"""The task of a supervisor, and the command's hooks in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.allocation import Terms
from raytrain.storage import Storage
from raytrain.training.job import Job
from raytrain.training.log_feed import LogLines


@dataclass(frozen=True)
class RunSpec:
    """The training or evaluation that a command has prepared."""

    config: RunConfig
    run: Storage
    """The run's folder."""
    prepared_root: str
    use_gpu: bool
    total_steps: int = 0
    """Steps of the whole run."""
    began_at_s: float = 0.0
    """When the command was given, seconds since the epoch."""
    terms: Terms = field(default_factory=Terms)
    """Bounds on the workers that the run may have, and the step at which it pauses."""

    @property
    def end_step(self) -> int:
        """The step at which the run ends or pauses."""
        return min(self.total_steps, self.terms.until_step or self.total_steps)

    def job(
        self,
        fencing_token: int | None,
        transition: dict[str, Any] | None,
        snapshot: dict[str, Any] | None,
        evaluate_split: str | None = None,
    ) -> Job:
        """The job for a worker group. The arguments are as in `Job`."""
        return Job(
            config=self.config.model_dump(mode="json", exclude_unset=True),
            run_root=self.run.path_of(),
            prepared_root=self.prepared_root,
            use_gpu=self.use_gpu,
            fencing_token=fencing_token,
            transition=transition,
            snapshot=snapshot,
            evaluate_split=evaluate_split,
            until_step=self.terms.until_step,
        )


@dataclass(frozen=True)
class Hooks:
    """The command's part while its supervisor works."""

    is_stop_asked: Callable[[], bool]
    """Whether the user wants the run to save and end."""
    on_poll: Callable[[], None]
    """Called a few times per second."""
    new_token: Callable[[], int]
    """Returns the fencing token for the next worker group. Raises TakenOverError."""
    say: Callable[[str], None]
    """Shows a message to the user."""
    on_lines: Callable[[Sequence[LogLines]], None]
    """Takes new lines of the run's logs from the worker that writes them."""
    on_group_end: Callable[[], None]
    """Called when a worker group has ended: what it wrote is in storage."""
