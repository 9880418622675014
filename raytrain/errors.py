"""The errors that are meant for people, what each is called by programs, and the few foreign messages that decide.

Programs decide by a `FailureCode` or by an exception's type, never by a message: that is written for people, and may
contain anything, such as the path of a file.
"""

import difflib
from collections.abc import Iterable
from enum import StrEnum

from raytrain.redaction import redact


class FailureCode(StrEnum):
    """What a command, a run or a trial failed of. It is in summary.json and trial.json, and decides the exit code."""

    CONFIG = "config"  # the command or the config is wrong; nothing was started
    DATA = "data"  # the user's data can't be used
    BAD_ROW = "bad_row"  # a row of it can't be used
    UNKNOWN_LABEL = "unknown_label"  # a row has a label that task.labels does not name
    DIVERGED = "diverged"  # the loss is not a number any more, or fp16 overflows at every step
    STORAGE = "storage"  # a file or an object store can't be read or written, or all checkpoints are damaged
    OUT_OF_MEMORY = "out_of_memory"  # of a GPU or of a node
    WORKER_ERROR = "worker_error"  # any other exception in a worker, such as one of the model's code
    WORKER_DIED = "worker_died"  # a worker's process was killed, or crashed
    PEER_LOST = "peer_lost"  # a worker lost another one; only ever the cause when no other is known
    NODE_LOST = "node_lost"  # a node went away, with or without notice
    HANG = "hang"  # nothing was done for workers.stall_timeout_s
    NO_CAPACITY = "no_capacity"  # workers.min did not fit for workers.wait_timeout_s, or did not start
    TAKEN_OVER = "taken_over"  # another command trains the run now; this one has stopped writing to its folder
    RAY = "ray"  # Ray itself failed: its head is gone, say
    STOPPED = "stopped"  # an evaluation that the user has stopped; a training is then saved, and has not failed
    INTERNAL = "internal"  # an exception of raytrain's own outside the workers, or of a user's callback

    @property
    def exit_code(self) -> int:
        """Of the command: 2 when the user's input is wrong and nothing was trained, else 1."""
        return 2 if self in _OF_THE_INPUT else 1


_OF_THE_INPUT = (FailureCode.CONFIG, FailureCode.DATA, FailureCode.BAD_ROW, FailureCode.UNKNOWN_LABEL)


class RaytrainError(Exception):
    """Base of the errors whose message is shown to the user without a traceback."""

    code = FailureCode.INTERNAL

    def __init__(self, message: str, code: FailureCode | None = None):
        """`code`: of what exactly went wrong, where the class does not say it."""
        super().__init__(redact(message))
        if code is not None:
            self.code = code

    @property
    def exit_code(self) -> int:
        """Of the command that ends with this error."""
        return self.code.exit_code


class ConfigError(RaytrainError):
    """The command or the config is wrong; nothing was started. Exit code 2."""

    code = FailureCode.CONFIG


class DataError(RaytrainError):
    """The user's data can't be used; the message names the file and the row. Exit code 2."""

    code = FailureCode.DATA


class CheckpointError(RaytrainError):
    """A checkpoint can't be written or none can be loaded."""

    code = FailureCode.STORAGE


class TrainingError(RaytrainError):
    """The run failed (diverged, overflows at every step, ...); the message says what to try."""


class TakenOverError(RaytrainError):
    """Another command trains the run now, because this process was suspended or cut off for long. It must not write to
    the run's folder any more."""

    code = FailureCode.TAKEN_OVER


class ForeignMessage(StrEnum):
    """Messages of other programs that decide something, since nothing else tells these cases apart. The whole list."""

    NO_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError
    UNCLOSED_QUOTE = "unexpected end of data"  # csv.Error has no code
    NO_MODULE = "No module named raytrain"  # a job's Python ends with 1 then, as after any other error


def says(text: object, message: ForeignMessage) -> bool:
    """Whether an error or a program's output contains one of these messages."""
    return message in str(text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message on a word that is none of the known ones: the nearest of them, or nothing."""
    names = list(known)
    close = difflib.get_close_matches(word, names, 1)
    if not close and len(word) > 1:  # an abbreviation, or a part: acc, f1
        close = [name for name in names if name.startswith(word) or word in name.split("_")]
    return f"; did you mean {close[0]}?" if close else ""


def counted(count: int, noun: str) -> str:
    """Such as 1 row, or 1,200 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def times(count: int) -> str:
    """Such as once, or 3 times."""
    return "once" if count == 1 else f"{count:,} times"


def first_line(text: str) -> str:
    """The first line that says something, without credentials: what a person reads of another program's error."""
    return redact(next((line.strip() for line in text.splitlines() if line.strip()), text))
