"""`quarantine/` of a prepared store: the rows that can't be used, with their file, row, reason, and the row itself."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.data.bad_rows import Tally
from raytrain.data.prepared import PreparedStore
from raytrain.data.readers.base import BadRow
from raytrain.data.storing import put
from raytrain.storage import Storage

FOLDER, FILE_PREFIX = "quarantine", "rows-"
# A file is written when it has this many characters, so that a source without a usable row does not fill the memory.
FILE_CHARACTERS = 16 << 20


@dataclass
class Quarantine:
    """Writes the rows that one read task can't use, as JSON lines."""

    folder: Storage
    ordinal: int
    """Index of the read task, part of the names of its files."""

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._lines: list[str] = []
        self._num_characters = self._num_files = 0

    def add(self, bad: Sequence[tuple[str, BadRow]]) -> None:
        """Add rows with their splits."""
        for split, one in bad:
            self.tally.add(split, one)
            line = {"split": split, "file": one.path, "row": one.row, "code": one.code, "reason": one.reason}
            self._lines.append(json.dumps({**line, "data": one.data}, default=str))
            self._num_characters += len(self._lines[-1])
        if self._num_characters >= FILE_CHARACTERS:
            self._flush()

    def close(self) -> Tally:
        """Write what is left. Returns how many rows there were, by split and reason."""
        self._flush()
        return self.tally

    def _flush(self) -> None:
        if self._lines:
            name = f"{FOLDER}/{FILE_PREFIX}{self.ordinal:05d}-{self._num_files:04d}.jsonl"
            put(self.folder, name, "".join(f"{line}\n" for line in self._lines).encode())
            self._lines, self._num_characters, self._num_files = [], 0, self._num_files + 1


def quarantined(folder: Storage) -> Iterator[dict[str, Any]]:
    """The rows in the quarantine of a prepared store, a file at a time: split, file, row, code, reason and data. Files
    that another preparation has left there are not of the store."""
    own = f"{PreparedStore(folder.root).manifest.prefix}{FILE_PREFIX}"
    for name in (name for name in folder.list_names(FOLDER) if name.startswith(own)):
        for line in folder.read_bytes(f"{FOLDER}/{name}").decode().splitlines():
            yield json.loads(line)
