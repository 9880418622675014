"""The errors that are meant for people. Everything else that is raised is a bug of ours."""

import difflib
from collections.abc import Iterable


class RaytrainError(Exception):
    """Base of the errors whose message is shown to the user without a traceback."""

    exit_code = 1


class ConfigError(RaytrainError):
    """The command or the config is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class DataError(RaytrainError):
    """The user's data can't be used; the message names the file and the row. Exit code 2."""

    exit_code = 2


class CheckpointError(RaytrainError):
    """A checkpoint can't be written or none can be loaded."""


class TrainingError(RaytrainError):
    """The run can't go on (diverged, overflows for ever); the message says what to try."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message on a word that is none of the known ones: the nearest of them, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def first_line(text: str) -> str:
    """The first line that says something: what a person reads of another program's error."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)
