"""What a watch writes, so that one that is killed at any moment continues, with no text counted twice and none missed.

Lines are appended to the files first and synced. Then `watch.json` is replaced in one step: how far each source file
was read, the counts, and the length of each file that was appended to. What is in a file behind its length is of a step
that was cut off; it is removed at the next start, and the step is done again.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

from raytrain.data.readers.text import is_valid
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.storage import Storage

STATE, LOCK, PAGE = "watch.json", "lock", "watch.html"
PREDICTIONS, QUARANTINED, ALERTS = "predictions", "quarantined.jsonl", "alerts.jsonl"
STATE_VERSION = 1
SEGMENT_BYTES = 64 << 20
"""Of a file of predictions. The next one begins when it has more."""


class Journal:
    """The folder of a watch. A context; one process at a time."""

    def __init__(self, out: str):
        """Raises ConfigError when the folder can't be used, or another process uses it."""
        if "://" in out:
            raise ConfigError(f"--out {out}: a watch writes to a local folder")
        self.storage = Storage(out)
        self.folder = self.storage.local_path() or ""
        self._lock: Any = None
        self.state: dict[str, Any] = {}
        """What was committed last; empty at first."""
        self._lengths: dict[str, int] = {}
        self._segment = 0
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise ConfigError(f"--out {out} is a file: give the name of a folder")
        names = self.storage.list_names()
        others = [name for name in names if name != LOCK and not _is_cut_off(name)]
        if others and STATE not in others:
            raise ConfigError(f"--out {self.folder} holds {others[0]}, and is not of a watch: give another name")

    def __enter__(self) -> Self:
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._lock = open(f"{self.folder}/{LOCK}", "a")  # held until the end
        except OSError as error:
            raise ConfigError(f"--out {self.folder} can't be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(
                f"--out {self.folder}: another `raytrain watch` writes there; give another name"
            ) from None
        try:
            self._recover()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _recover(self) -> None:
        """Read the state, and remove what was appended behind it."""
        for name in filter(_is_cut_off, self.storage.list_names()):
            self.storage.delete(name)
        if not self.storage.exists(STATE):
            self.commit({})
            return
        path = self.storage.path_of(STATE)
        try:
            found = self.storage.read_json(STATE)
            version, self._lengths, self._segment = found["version"], found["lengths"], found["segment"]
            self.state = found["state"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}): restore it, or give another --out") from None
        if version > STATE_VERSION:
            raise ConfigError(f"{path} is of a newer raytrain (version {version}): install that one")
        for name in self.storage.list_names(PREDICTIONS):
            if f"{PREDICTIONS}/{name}" > self._segment_name():  # begun, and not committed
                self.storage.delete(f"{PREDICTIONS}/{name}")
        for name in {QUARANTINED, ALERTS, self._segment_name(), *self._lengths}:
            length, full = self._lengths.get(name, 0), f"{self.folder}/{name}"
            size = os.path.getsize(full) if os.path.exists(full) else 0
            if size < length:
                raise ConfigError(
                    f"{full} has {size:,} bytes, and {length:,} were written: restore it, or give another --out"
                )
            if size > length:
                os.truncate(full, length)

    def predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append predictions."""
        name = self._segment_name()
        if self._lengths.get(name, 0) >= SEGMENT_BYTES:
            del self._lengths[name]  # it is complete, and may be moved away
            self._segment += 1
        self.append(self._segment_name(), rows)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to a file. They count once `commit` has returned."""
        encoded, path = "".join(map(_line, rows)).encode(), f"{self.folder}/{name}"
        if not encoded:
            return
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._lengths[name] = self._lengths.get(name, 0) + len(encoded)

    def commit(self, state: dict[str, Any]) -> None:
        """Make what was appended, and the state, count."""
        whole = {"version": STATE_VERSION, "segment": self._segment, "lengths": self._lengths, "state": state}
        try:
            self.storage.commit_bytes(STATE, json.dumps(whole).encode())
        except OSError as error:
            raise _cannot_write(self.storage.path_of(STATE), error) from error
        self.state = state

    def write_page(self, text: str) -> None:
        """Replace the page. Raises TrainingError."""
        try:
            self.storage.commit_bytes(PAGE, text.encode(errors="replace"))
        except OSError as error:
            raise _cannot_write(self.storage.path_of(PAGE), error) from error

    def _segment_name(self) -> str:
        return f"{PREDICTIONS}/{self._segment:05d}.jsonl"


def _is_cut_off(name: str) -> bool:
    """Whether a file is of a step that was cut off."""
    return name.startswith((f"{STATE}.", f"{PAGE}.")) and name.endswith(".tmp")


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON. Bytes that are not UTF-8 are escaped, so that the file is."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return f"{text if is_valid(text) else json.dumps(row, default=str)}\n"


def _cannot_write(path: str, error: OSError) -> TrainingError:
    return TrainingError(
        f"{path} can't be written: {error.strerror or error}. The same command continues where it was",
        FailureCode.STORAGE,
    )
