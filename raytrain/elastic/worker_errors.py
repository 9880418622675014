"""What an exception in a worker means: the cause of the group's failure, or only that another worker is gone.

When one worker fails, the others fail in their next collective. Those secondary errors must not be reported as the
cause. They are recognized by type and, where torch raises a plain RuntimeError, by the code that raised it: torch's
collectives, or DeepSpeed's wait for one. Their text is not used, since it contains paths.
"""

import errno
import sys
import traceback
from dataclasses import dataclass

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayError, RayTaskError

from raytrain.elastic.ray_train_worker import BarrierResetError
from raytrain.errors import FailureCode, ForeignMessage, RaytrainError, first_line, says
from raytrain.redaction import redact

OUT_OF_MEMORY_ADVICE = (
    " Turn on training.gradient_checkpointing or take a higher training.zero_stage with more workers, which do not "
    "change the result, or lower training.micro_batch_size, which changes the dropout masks and needs a new run; "
    "`raytrain plan CONFIG --gpu GPU` says what fits."
)


MOST_OF_A_TRACEBACK = 50_000  # characters; the end has the innermost calls


@dataclass(frozen=True)
class WorkerError:
    """Why a worker left its group without an outcome: an exception, or the end of its process."""

    code: FailureCode
    message: str
    traceback: str = ""
    """As Python prints it; empty where no exception is known."""

    def __post_init__(self) -> None:
        for name in ("message", "traceback"):  # they quote another program
            object.__setattr__(self, name, redact(getattr(self, name)))

    @property
    def is_secondary(self) -> bool:
        """Whether it only means that another worker or a node is gone. The process can be reused."""
        return self.code is FailureCode.PEER_LOST


def error_of(error: Exception) -> WorkerError:
    """An exception as reported to the driver, in a line or two, and with its traceback."""
    code, where = code_of(error), traceback.extract_tb(error.__traceback__)[-1]
    whole = "".join(traceback.format_exception(error))[-MOST_OF_A_TRACEBACK:]
    if _is_torchs_out_of_memory(error):  # torch's own advice, which follows, is about fragmentation
        message = str(error).partition(" If reserved")[0]
        return WorkerError(code, f"{type(error).__name__}: {message}{OUT_OF_MEMORY_ADVICE}", whole)
    return WorkerError(code, f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})", whole)


def code_of(error: BaseException) -> FailureCode:
    """The code of an exception, or of the one that it was explicitly raised from."""
    if isinstance(error, RaytrainError):
        return error.code
    if _is_out_of_memory(error):
        return FailureCode.OUT_OF_MEMORY
    if isinstance(error, OutOfDiskError):
        return FailureCode.STORAGE
    if _is_peer_lost(error):
        return FailureCode.PEER_LOST
    if isinstance(error, OSError):
        return FailureCode.STORAGE
    return code_of(error.__cause__) if error.__cause__ is not None else FailureCode.WORKER_ERROR


def death_of(error: RayError) -> WorkerError:
    """The error for a worker's process that has died, from Ray's exception."""
    from ray.exceptions import ActorUnavailableError

    if isinstance(error, OutOfMemoryError):
        return WorkerError(FailureCode.OUT_OF_MEMORY, first_line(str(error)))
    if isinstance(error, ActorUnavailableError):  # its text is that of Ray's RPC library
        return WorkerError(FailureCode.WORKER_DIED, "its process can't be reached any more")
    return WorkerError(FailureCode.WORKER_DIED, first_line(str(error)) or type(error).__name__)


def _is_torchs_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemoryError | ObjectStoreFullError) or _is_torchs_out_of_memory(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return type(error) is RuntimeError and says(error, ForeignMessage.NO_CPU_MEMORY)


def _is_peer_lost(error: BaseException) -> bool:
    if isinstance(error, BarrierResetError):  # including one returned by the actor: see `RayTaskError`
        return True
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):  # an actor or a node is gone
        return True
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and isinstance(error, distributed.DistError):
        return True
    return type(error) is RuntimeError and _came_up_in_a_collective(error)


def _came_up_in_a_collective(error: RuntimeError) -> bool:
    """Whether the innermost Python code is torch's collectives, or DeepSpeed's call of `wait` on one's handle, which it
    may wrap to show it in a profiler."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    called = [summary.line or "" for summary in traceback.extract_tb(error.__traceback__)]
    while modules and modules[-1] == "deepspeed.utils.nvtx":
        modules.pop()
        called.pop()
    if not modules:
        return False
    return modules[-1].startswith("torch.distributed.") or (
        modules[-1].startswith("deepspeed.") and ".wait" in called[-1]
    )
