"""The source of a watch: files that grow, and a folder in which files appear. Each line is given once.

A file is known by its inode and by its bytes before the place up to which it was read, and not by its name alone: one
that is renamed, as when logs are rotated, is read on under its new name; one that was truncated or written anew is read
from its start.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from raytrain.errors import ConfigError, counted

JSONL, TEXT = (".jsonl", ".ndjson"), (".txt",)
SUFFIXES = (*JSONL, *TEXT)
UNFINISHED = (".tmp", ".part", ".swp", "~")  # of files that are written and then renamed
PROOF_BYTES = 256
"""At the beginning of a file, and before the place that was reached: both have to be as they were."""
READ_BYTES = 4 << 20
MISSING_S = 30.0
"""A file that is not there for this long is gone."""
MOST_LINE_BYTES = 16 << 20
SETTLED_S = 5.0
"""A last line without its end is taken when it is a whole JSON object, and nothing was added for this long."""


@dataclass(frozen=True)
class Place:
    """How far a file was read."""

    path: str
    inode: int
    offset: int = 0
    """Bytes that were read."""
    row: int = 0
    """Lines that were read."""
    proof: str = ""
    """Hash of the first bytes, and of those before `offset`."""
    is_text: bool = False
    """Whether each line is a text, and not a JSON object."""
    rest: str = ""
    """What the line at `offset` is: open, it was taken before its end had come; skipped, it is too long."""


@dataclass(frozen=True)
class Line:
    """A line of a file."""

    path: str
    row: int
    """From 1."""
    data: bytes
    is_text: bool
    """Whether it is a text, and not a JSON object."""
    refused: str = ""
    """Why it can't be used."""


class Files:
    """Gives the lines of a source that it has not given yet."""

    def __init__(self, source: str, places: list[dict[str, Any]] | None = None):
        """
        Args:
            source: A folder, or a file; absolute.
            places: What `to_json` gave.

        Raises ConfigError when the source can't be watched.
        """
        self.name, self._is_folder = source, os.path.isdir(source)
        self.notes: list[str] = []
        """What the user should know, which the caller takes."""
        self._told, self._others = set[str](), set[str]()
        self._places: dict[str, Place] = {}
        self._missing: list[tuple[Place, float]] = []
        """(file that is not there, when it was missed first). A listing made during a rename may have neither name."""
        for one in places or []:
            if one["path"] in self._places:
                self._missing.append((Place(**one), time.monotonic()))
            else:
                self._places[one["path"]] = Place(**one)
        self._seen: dict[str, tuple[int, int, int]] = {}  # path -> (inode, size, time of change) of a file as checked
        if not os.path.exists(source):
            raise ConfigError(f"{source}: there is no such folder or file; make it before it is watched")
        if not self._is_folder and not source.endswith(SUFFIXES):
            raise ConfigError(f"{source}: a file that is watched ends in {', '.join(SUFFIXES)}")

    def to_json(self) -> list[dict[str, Any]]:
        """How far each file was read."""
        return [asdict(place) for place in (*self._places.values(), *(place for place, _ in self._missing))]

    def committed(self) -> None:
        """What was read counts from now on. Nothing is to be done: the files are others'."""

    def lines(self, most: int, *, is_last: bool = False) -> list[Line]:
        """Up to `most` new lines, file by file in the order of the names.

        Args:
            is_last: Nothing will be added: a last line without its end is taken at once if it is whole.
        """
        self._look()
        found: list[Line] = []
        for path in sorted(self._places):
            before = -1
            while len(found) < most and self._places[path].offset > before:
                before = self._places[path].offset
                found += self._read(path, most - len(found), is_last=is_last)
        return found

    def _look(self) -> None:
        """Find the files, and those of before under their names of now."""
        folder = self.name if self._is_folder else os.path.dirname(self.name)
        files = {entry.path: entry.stat() for entry in _scan(folder)}
        places: dict[str, Place] = {}
        moved, now_s = self._missing, time.monotonic()
        for place in self._places.values():
            status = files.get(place.path)
            if status is not None and status.st_ino == place.inode and self._is_same(place.path, status, place):
                places[place.path] = place
            else:
                moved.append((place, now_s))
        by_inode = {status.st_ino: path for path, status in files.items() if path not in places}
        self._missing = []
        for place, since_s in moved:
            path = self._new_path(place, files, by_inode.get(place.inode, ""), places)
            if path:
                places[path] = replace(place, path=path, inode=files[path].st_ino)
            elif by_inode.get(place.inode) == place.path or now_s - since_s > MISSING_S:
                self._lost(place, by_inode.get(place.inode) == place.path)
            else:
                self._missing.append((place, since_s))
        others: list[str] = []
        for path, status in files.items():
            self._seen[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
            is_wanted = path.endswith(SUFFIXES) if self._is_folder else path == self.name
            if is_wanted and path not in places:
                places[path] = Place(path, status.st_ino, is_text=path.endswith(TEXT))
            elif self._is_folder and not is_wanted and path not in places and not path.endswith(UNFINISHED):
                others.append(path)
        self._seen = {path: self._seen[path] for path in files}
        self._places = places
        if new := sorted(set(others) - self._others):
            more = f", and {counted(len(new) - 1, 'more file')}" if len(new) > 1 else ""
            self._tell(f"not read, since only {', '.join(SUFFIXES)} are: {new[0]}{more}")
            self._others.update(new)

    def _new_path(self, place: Place, files: dict[str, os.stat_result], renamed: str, taken: Collection[str]) -> str:
        """Where a file is now; "": nowhere.

        Args:
            renamed: The file with its inode.
            taken: Files that are known to be others.
        """
        # A new file of the same name: an editor has saved it. A new file of another name: a log was rotated by copying.
        copies = [path for path in files if path not in self._seen] if place.offset else []
        tried = [path for path in (renamed, place.path, *copies) if path in files and path not in taken]
        return next((path for path in tried if self._is_same(path, files[path], place)), "")

    def _is_same(self, path: str, status: os.stat_result, place: Place) -> bool:
        """Whether a file begins with the bytes that were read."""
        if status.st_size < place.offset:
            return False
        if self._seen.get(path) == (status.st_ino, status.st_size, status.st_mtime_ns):
            return True
        try:
            with open(path, "rb") as file:
                return _proof(file, place.offset) == place.proof or not place.offset
        except OSError:
            return False

    def _tell(self, note: str) -> None:
        """A note that is given once."""
        if note not in self._told:
            self._told.add(note)
            self.notes.append(note)

    def _lost(self, place: Place, is_there: bool) -> None:
        size = self._seen.get(place.path, (0, place.offset, 0))[1]
        left = f"; {counted(size - place.offset, 'byte')} of it were not read" if size > place.offset else ""
        if is_there:
            self.notes.append(f"{place.path} was truncated or written anew, and is read from its start{left}")
        elif left:
            self.notes.append(f"{place.path} is gone{left}")

    def _read(self, path: str, most: int, *, is_last: bool) -> list[Line]:
        """New lines of a file. Its place moves behind them."""
        place = self._places[path]
        inode, size, modified_ns = self._seen[path]
        if size <= place.offset:
            return []
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_ino != inode:
                    return []  # replaced since: the next look finds out
                file.seek(place.offset)
                data = file.read(READ_BYTES)
                while b"\n" not in data and len(data) < MOST_LINE_BYTES and (more := file.read(READ_BYTES)):
                    data += more
                is_settled = not place.is_text and time.time() - modified_ns / 1e9 > SETTLED_S
                place, found = self._cut(place, data, most, is_settled=is_last or is_settled)
                self._places[path] = replace(place, proof=_proof(file, place.offset))
        except OSError as error:
            self._tell(f"{path} can't be read: {error.strerror or error}")
            return []
        return found

    def _cut(self, place: Place, data: bytes, most: int, *, is_settled: bool) -> tuple[Place, list[Line]]:
        """(the place behind the lines, lines) of the bytes at a place."""
        found: list[Line] = []
        while len(found) < most and (end := data.find(b"\n")) >= 0:
            line, data = data[:end], data[end + 1 :]
            is_new = not place.rest
            row = place.row + is_new
            if line.strip() and is_new:
                found.append(Line(place.path, row, line, place.is_text))
            elif line.strip() and place.rest == "open":
                found.append(Line(place.path, row, line, place.is_text, "text was added to a line that was complete"))
            place = replace(place, offset=place.offset + end + 1, row=row, rest="")
        if len(found) >= most or b"\n" in data or not data:
            return place, found
        behind = replace(place, offset=place.offset + len(data), row=place.row + (not place.rest))
        if place.rest == "skipped":
            return replace(behind, rest="skipped"), found
        if len(data) >= MOST_LINE_BYTES:
            reason = f"it is longer than {MOST_LINE_BYTES >> 20} MiB"
            return replace(behind, rest="skipped"), [
                *found,
                Line(place.path, behind.row, data[:PROOF_BYTES], place.is_text, reason),
            ]
        if is_settled and not place.rest and (place.is_text or _is_object(data)):
            return replace(behind, rest="open"), [*found, Line(place.path, behind.row, data, place.is_text)]
        return place, found


def _scan(folder: str) -> Iterator["os.DirEntry[str]"]:
    """The files of a folder, without hidden ones. Raises ConfigError when the folder is gone."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ConfigError(f"{folder} can't be read any more: {error.strerror or error}") from error
    for entry in entries:
        try:
            if not entry.name.startswith(".") and entry.is_file() and entry.stat():
                yield entry
        except FileNotFoundError:  # moved away since
            continue


def _proof(file: Any, offset: int) -> str:
    """Hash of the bytes by which a file is known again."""
    file.seek(0)
    head = file.read(min(PROOF_BYTES, offset))
    file.seek(max(0, offset - PROOF_BYTES))
    return hashlib.sha256(head + file.read(min(PROOF_BYTES, offset))).hexdigest()[:32]


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False
