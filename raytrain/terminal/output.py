"""Standard output that a run outlives: `raytrain train ... | head` closes it, and a full disk can't take more of it."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console

logger = logging.getLogger(__name__)


class LastingOutput:
    """A stream that is given up when it can't be written any more."""

    def __init__(self, stream: TextIO):
        self._stream, self._is_lost = stream, False

    def write(self, text: str) -> int:
        """Write to the stream, or to nothing once that has failed."""
        if not self._is_lost:
            with self._giving_up():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if not self._is_lost:
            with self._giving_up():
                self._stream.flush()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
            return
        except OSError as error:
            self._is_lost = True
            logger.warning("the output can't be written any more (%s); the run continues without it", error)
        with contextlib.suppress(OSError, ValueError):  # a stream of a test has no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # else Python fails to write what is left when it exits
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """Whether it is a terminal, its encoding and the like are the stream's."""
        return getattr(self._stream, name)


def make_console(stream: Any = None, *, stderr: bool = False) -> Console:
    """A console that prints texts as they are: names and paths of users have brackets, which Rich would take for its
    markup. Where a text has markup of ours, `print` is told so.

    Args:
        stream: None: standard output, or with `stderr` standard error.
    """
    return Console(file=stream, stderr=stderr, highlight=False, markup=False)


def lasting_console() -> Console:
    """A console on standard output whose loss does not end the run."""
    return make_console(None if sys.stdout is None else LastingOutput(sys.stdout))
