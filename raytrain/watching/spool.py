"""What clients have sent to a watch, on disk before they are answered: `received/00000000.jsonl` and so on.

The watch reads these files as it reads any others, so that a row counts once however often the process is killed. Files
that were read to their end are removed, but for the newest ones, which know the ids of rows that came lately.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.errors import ConfigError

FOLDER = "received"
SEGMENT_BYTES = 64 << 20
KEPT_SEGMENTS = 4
"""Files that stay when they were read, for their ids."""
MOST_IDS = 250_000
"""Ids that are known, the newest."""
MOST_WAITING_BYTES = 1 << 30
"""Of rows that were not read yet."""


class SpoolFullError(Exception):
    """Too much waits to be read."""


@dataclass(frozen=True)
class Kept:
    """A row as it is kept."""

    line: bytes
    id: str = ""
    """"": it has none."""


class Spool:
    """Appends rows, several requests at once. Used by the server's threads and the watch."""

    def __init__(self, folder: str):
        """
        Args:
            folder: Absolute. It is made where it is not there; a row that was cut off in it, which nobody was told of,
                is removed.

        Raises ConfigError when it can't be written.
        """
        self.folder = folder
        self.lock = threading.Lock()
        """Held while rows are written: who reads under it finds whole rows only, which no failure takes back."""
        self._ids: dict[bytes, None] = {}
        self._sizes: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        try:
            os.makedirs(folder, exist_ok=True)
            for name in sorted(os.listdir(folder)):
                self._recover(f"{folder}/{name}")
        except OSError as error:
            raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from error

    def _recover(self, path: str) -> None:
        with open(path, "r+b") as file:
            end = 0
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    self._know(_id_of(line))
            file.truncate(end)
            os.fsync(file.fileno())
        self._sizes[path] = end

    @property
    def num_waiting_bytes(self) -> int:
        """Of rows that were not read, or not counted, yet."""
        return sum(self._sizes.values()) - sum(self._offsets.get(path, 0) for path in self._sizes)

    def add(self, requests: Sequence[Sequence[Kept]]) -> list[int]:
        """Keep the rows of several requests, all at once. They are on the disk when this returns.

        Returns how many of each request are new: the others have an id that came before.

        Raises SpoolFullError, or OSError; then none of them is kept.
        """
        with self.lock:
            lines, digests, counts = list[bytes](), dict[bytes, None](), list[int]()
            for rows in requests:
                before = len(lines)
                for row in rows:
                    digest = _digest(row.id) if row.id else b""
                    if digest and (digest in self._ids or digest in digests):
                        continue
                    lines.append(row.line)
                    if digest:
                        digests[digest] = None
                counts.append(len(lines) - before)
            if lines:
                self._append(b"".join(lines))
            for digest in digests:
                self._know(digest)
            return counts

    def counted(self, offsets: Mapping[str, int]) -> None:
        """Note how far each file was read, which is committed, and remove files that nobody needs any more."""
        with self.lock:
            self._offsets = dict(offsets)
            paths = sorted(self._sizes)
            for path in paths[:-KEPT_SEGMENTS]:
                if self._offsets.get(path, 0) < self._sizes[path]:
                    break
                os.unlink(path)
                del self._sizes[path]

    def _append(self, data: bytes) -> None:
        if self.num_waiting_bytes + len(data) > MOST_WAITING_BYTES:
            raise SpoolFullError
        path = max(self._sizes, default=f"{self.folder}/{0:08d}.jsonl")
        if self._sizes.get(path, 0) >= SEGMENT_BYTES:
            path = f"{self.folder}/{int(os.path.basename(path).removesuffix('.jsonl')) + 1:08d}.jsonl"
        size, is_new = self._sizes.get(path, 0), path not in self._sizes
        with open(path, "ab", buffering=0) as file:
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
                if is_new:
                    _sync_folder(self.folder)
            except OSError:
                file.truncate(size)
                raise
        self._sizes[path] = size + len(data)

    def _know(self, digest: bytes | None) -> None:
        if digest is None:
            return
        self._ids.pop(digest, None)
        self._ids[digest] = None
        if len(self._ids) > MOST_IDS:
            del self._ids[next(iter(self._ids))]


def text_of_id(value: Any) -> str | None:
    """An id as a text; None: it can't be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and 0 < len(value) <= 200 else None


def _id_of(line: bytes) -> bytes | None:
    """The digest of the id of a kept row; None: it has none."""
    if b'"id"' not in line:
        return None
    text = text_of_id(json.loads(line).get("id"))
    return _digest(text) if text else None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
