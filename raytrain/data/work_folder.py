"""`<fingerprint>.work/`: what a preparation has done so far, for the next command if this one is interrupted. No Ray.

    begun.json             the id of the records that hold, and the versions of what wrote them
    done/<pass>-*.json     a record for each read task of a pass that is done: its report, its files, their hashes
    train/, index/, ...    what becomes the store
    work/                  what the passes leave for one another

Files are written whole or not at all, and what is written depends on the fingerprint alone. So two commands may work in
one folder, and what one of them has done is what the other one would do. When a store is complete, the folder is
deleted; a command that is late finds the store. What it still writes into the folder has no id that holds.
"""

import base64
import contextlib
import functools
import json
import logging
import os
import re
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from raytrain import __version__
from raytrain.data.parallel import in_threads
from raytrain.data.parts import LABELS, LENGTHS
from raytrain.data.prepared import WHOLE_BYTES
from raytrain.data.storing import WrittenFile, get, put
from raytrain.errors import first_line
from raytrain.retries import retrying
from raytrain.storage import Storage

DONE, BEGUN = "done", "begun.json"
ENDING = ".work"
FOLDER_NAME = re.compile(rf"[0-9a-f]{{20}}{re.escape(ENDING)}")
# The same data may be written as other bytes by another version of these.
DECIDING = ("pyarrow", "numpy", "tokenizers", "transformers")
# The folder of a preparation that nobody has continued for this long is removed by the next preparation in the cache.
STALE_S = 7 * 24 * 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """The records of one pass. Small, and sent to the processes that write them."""

    root: str
    """The folder of the preparation."""
    id: str
    name: str
    """Of the pass."""

    def write(self, ordinal: int, report: dict[str, Any]) -> None:
        """Record that a read task is done. `report`: with its `files`, LENGTHS and LABELS. Raises OSError."""
        index = {name: base64.b64encode(report[name]).decode() for name in (LENGTHS, LABELS)}
        record = json.dumps({"id": self.id, "report": {**report, **index}})
        put(Storage(self.root), f"{DONE}/{self.name}-{ordinal:05d}.json", record.encode())

    def read(self) -> dict[int, dict[str, Any]]:
        """Read task -> report, of those whose files are what was written: their sizes, and if they have no more than
        1 GiB together their hashes. Raises OSError."""
        folder = Storage(self.root)
        names = retrying(lambda: folder.list_names(DONE), f"reading {folder.path_of(DONE)}")
        own = [name for name in names if name.rpartition("-")[0] == self.name and name.endswith(".json")]
        reports = [report for report in in_threads(lambda name: self._parsed(folder, name), own) if report is not None]
        files = [WrittenFile(*file) for report in reports for file in report["files"]]
        places = sorted({file.name.rpartition("/")[0] for file in files})
        sizes = {at: retrying(functools.partial(folder.list_sizes, at), f"reading {at}") for at in places}
        is_small = sum(file.num_bytes for file in files) <= WHOLE_BYTES

        def is_whole(file: WrittenFile) -> bool:
            at, _, name = file.name.rpartition("/")
            if sizes[at].get(name) != file.num_bytes:
                return False
            return not is_small or retrying(lambda: folder.sha256(file.name), f"reading {file.name}") == file.sha256

        whole = {file.name for file, is_good in zip(files, in_threads(is_whole, files), strict=True) if is_good}
        return {one["ordinal"]: one for one in reports if all(name in whole for name, _, _ in one["files"])}

    def _parsed(self, folder: Storage, name: str) -> dict[str, Any] | None:
        """A report; None for a record that does not hold."""
        try:
            record = json.loads(get(folder, f"{DONE}/{name}"))
            report: dict[str, Any] = record["report"]
            index = {name: base64.b64decode(report[name]) for name in (LENGTHS, LABELS)}
            return {**report, **index} if record["id"] == self.id else None
        except (ValueError, KeyError, TypeError):
            return None


def deciding_versions() -> dict[str, str]:
    """Package -> version, of those that decide what is written for the same data."""
    return {"raytrain": __version__, **{package: version(package) for package in DECIDING}}


def begin(folder: Storage) -> str:
    """The id of the records in a preparation's folder: that of an earlier command if it was made by the same versions.
    Raises OSError."""
    versions = deciding_versions()
    begun = {"id": uuid.uuid4().hex, "versions": versions}
    if retrying(lambda: folder.exists(BEGUN), f"reading {folder.path_of(BEGUN)}"):
        with contextlib.suppress(ValueError):
            found = json.loads(get(folder, BEGUN))
            if isinstance(found, dict) and found.get("versions") == versions:
                begun = found
    put(folder, BEGUN, json.dumps(begun).encode())  # again, so that the folder does not look as if nobody needed it
    return str(begun["id"])


def holds(folder: Storage, records_id: str) -> bool:
    """Whether a preparation's folder still is the one that `begin` gave this id; else another command has removed it.
    Raises OSError."""
    try:
        return bool(json.loads(folder.read_bytes(BEGUN))["id"] == records_id)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def remove_stale(cache: Storage, but: Storage) -> None:
    """Remove the folders of preparations that nobody has continued for a week, `but` one. Raises OSError."""
    for name in cache.list_names():
        stamp = cache.stamp(f"{name}/{BEGUN}") if FOLDER_NAME.fullmatch(name) else None
        if stamp is not None and time.time() - stamp[-2] / 1e9 > STALE_S and name != but.place()[1]:
            cache.delete(name)


def remove(folder: Storage) -> None:
    """Remove a preparation's folder, and log when that is not possible."""
    parent, name = folder.place()
    aside = f"{name.removesuffix(ENDING)}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        if folder.local_path() is not None:  # renamed first, since another command may write to it meanwhile
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{parent}/{name}", f"{parent}/{aside}")
            retrying(lambda: Storage(parent).delete(aside), f"removing {folder.path_of()}")
        else:
            retrying(lambda: folder.delete(""), f"removing {folder.path_of()}")
    except OSError as error:  # the store is complete without it
        logger.warning("could not remove %s: %s", folder.path_of(), first_line(str(error)))
