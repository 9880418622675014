"""Files of one JSON object per line in the run's folder, written so that a crash loses at most the last line."""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raytrain.redaction import HIDDEN, is_credential, redact
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.segments import pieces_of, segments_of
from raytrain.training.uploads import GrowingObject

COMMANDS = "commands.jsonl"
"""One line for each command that trained the run: see runs.provenance."""
BEST_SO_FAR = "best"
"""Key in an evals.jsonl line of the validation split: metric, value, step and is_saved of the best one so far."""
NOTES = "notes"
"""Key in an evals.jsonl line: sentences about its metrics, if the task has any to say."""
SAMPLES = "samples"
"""Key in an evals.jsonl line: what a language model says to task.sample_prompts, `prompt` and `text` of each."""
EPOCHS = "epochs_done"
"""Key in an evals.jsonl line: passes over the training data up to its step."""

# A file system appends at once; whether this process may still write is looked up at most this often.
CHECK_EVERY_S = 1.0
# Read at once of a file that is read whole.
READ_BYTES = 1 << 20
# The last row of a file is searched for in this many bytes.
TAIL_BYTES = 64 << 10

logger = logging.getLogger(__name__)


class JsonlWriter:
    """Appends lines to a file: at once on a file system, from time to time on an object store.

    No step fails because a line can't be written, on a full disk for example: the line is kept in memory and written
    with the next ones. Only `sync`, which a checkpoint waits for, and `close` raise the OSError.
    """

    def __init__(self, storage: Storage, name: str, told: Callable[[int, bytes], None] = lambda position, data: None):
        """Opens the file for appending; a last line that a crash left incomplete gets a line end, and readers skip it.

        `told`: takes the number of bytes of the file that precede new lines, and the lines. On a file system they are
        in the file by then; on an object store they will be, behind lines that another process has written meanwhile.
        """
        self._storage, self._name, self._told = storage, name, told
        self._object: GrowingObject | None = None
        if storage.local_path(name) is None:
            self._object = GrowingObject(storage, name, told)
            return
        found = retrying(lambda: _found(storage, name), f"opening {storage.path_of(name)}")
        path, self._before = storage.local_path(found[-1][0]), sum(size for _, size in found[:-1])
        assert path is not None
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._file = open(path, "ab", buffering=0)
        self._lock, self._next_check_s, self._has_failed = threading.Lock(), 0.0, False
        self._pending = bytearray(_missing_newline(path))

    def write(self, row: dict[str, Any]) -> None:
        """Append a line. NaN and infinities become null; numpy scalars become numbers. Raises what the storage's guard
        raises, unless that is an OSError."""
        line = json.dumps(_clean(row), allow_nan=False).encode() + b"\n"
        if self._object is not None:
            self._object.append(line)
            return
        with self._lock:
            self._pending += line
            try:
                self._append()
                self._has_failed = False
            except OSError as error:
                if not self._has_failed:
                    path = self._storage.path_of(self._name)
                    logger.warning("%s can't be written (%s); its lines are kept in memory for now", path, error)
                self._has_failed = True

    def _append(self) -> None:
        """Write the pending lines. A full disk may take a part of them: the torn line is written again, on a line of
        its own."""
        if not self._pending:
            return
        if time.monotonic() >= self._next_check_s:
            self._storage.check()
            self._next_check_s = time.monotonic() + CHECK_EVERY_S
        written, total = self._file.write(self._pending), len(self._pending)
        if written != total:
            begin = self._pending.rfind(b"\n", 0, written) + 1  # of the torn line
            self._pending[:begin] = b"\n" if begin < written else b""
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._storage.path_of(self._name))
        self._told(
            self._before + self._file.tell() - total, bytes(self._pending)
        )  # another process may have appended too
        self._pending.clear()

    def begin_upload(self) -> None:
        """On an object store, start to upload what there is, without waiting for it."""
        if self._object is not None:
            self._object.begin_upload()

    def sync(self) -> None:
        """Wait until every line is in storage. Raises OSError if storage fails."""
        if self._object is not None:
            self._object.sync()
            return
        with self._lock:
            self._append()

    def close(self) -> None:
        """`sync`, then close; nothing can be written afterwards."""
        if self._object is not None:
            self._object.close()
            return
        try:
            self.sync()
        finally:
            self._file.close()


def read_jsonl(storage: Storage, name: str) -> list[dict[str, Any]]:
    """The file's rows in order, without lines that are not JSON objects (incomplete). [] when it is missing.

    Not for metrics.jsonl, which may have gigabytes: `iterate_jsonl`. Raises OSError when storage fails for two minutes.
    """
    return retrying(lambda: list(iterate_jsonl(storage, name)), f"reading {storage.path_of(name)}")


def iterate_jsonl(storage: Storage, name: str) -> Iterator[dict[str, Any]]:
    """The same rows, one after the other, with one piece of the file in memory at a time."""
    rest = b""
    for piece in pieces_of(storage, name, READ_BYTES):
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        yield from parse_jsonl(whole + newline)
    yield from parse_jsonl(rest)


def last_row(storage: Storage, name: str) -> dict[str, Any] | None:
    """The file's last complete row, searched from its end; None if there is none. Raises OSError when storage fails for
    two minutes."""
    return retrying(lambda: _last_row(storage, name), f"reading {storage.path_of(name)}")


def _last_row(storage: Storage, name: str) -> dict[str, Any] | None:
    for part, size in reversed(segments_of(storage, name)):
        with storage.open_input(part) as file:
            tail = file.read_at(min(size, TAIL_BYTES), max(0, size - TAIL_BYTES))
        if rows := parse_jsonl(tail):
            return rows[-1]
    return None


def parse_jsonl(data: bytes) -> list[dict[str, Any]]:
    """The rows in the text of a JSONL file; lines that are not JSON objects are skipped."""
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # thousands of brackets, for the latter
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line of evals.jsonl that are numbers, by name."""
    return {name: value for name, value in row.items() if isinstance(value, float) and name not in ("time", EPOCHS)}


def _found(storage: Storage, name: str) -> list[tuple[str, int]]:
    """The files of a log that this process may continue; several, in a copy of a folder of an object store."""
    storage.check()
    return segments_of(storage, name) or [(name, 0)]


def _missing_newline(path: str) -> bytes:
    """The line end that a file lacks."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return b"" if file.read(1) in (b"", b"\n") else b"\n"


def _clean(value: Any) -> Any:
    """The same value in types that JSON supports, without credentials."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {str(key): HIDDEN if is_credential(str(key), item) else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return _clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
