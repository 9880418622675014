"""Reads and writes of the files that PREPARE makes: storage that fails for a moment does not end it."""

import contextlib
import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pyarrow as pa

from raytrain.retries import retrying
from raytrain.storage import Storage

T = TypeVar("T")

_thread = threading.local()


class WrittenFile(NamedTuple):
    """A file that `put` has written."""

    name: str
    """Relative to its folder."""
    num_bytes: int
    sha256: str


@contextlib.contextmanager
def noting_files() -> Iterator[list[WrittenFile]]:
    """The files that this thread writes meanwhile."""
    files = _thread.files = []
    try:
        yield files
    finally:
        _thread.files = None


def put(folder: Storage, name: str, data: bytes | memoryview) -> None:
    """Write a file; readers see all of it or nothing. Raises OSError, which names it, when storage fails for two
    minutes or the disk is full."""
    path = folder.path_of(name)
    try:
        retrying(lambda: folder.commit_bytes(name, data), f"writing {path}")
    except OSError as error:  # pyarrow's does not name the file
        raise OSError(error.errno or errno.EIO, f"{path} can't be written: {error.strerror or error}") from error
    files: list[WrittenFile] | None = getattr(_thread, "files", None)
    if files is not None:
        files.append(WrittenFile(name, len(data), hashlib.sha256(data).hexdigest()))


def get(folder: Storage, name: str) -> bytes:
    """Read a file. Raises OSError when storage fails for two minutes."""
    return retrying(lambda: folder.read_bytes(name), f"reading {folder.path_of(name)}")


def read(folder: Storage, name: str, work: Callable[[pa.NativeFile], T]) -> T:
    """The result of `work` on an open file, from the start again when storage fails. Raises OSError when it does for
    two minutes."""

    def once() -> T:
        with folder.open_input(name) as opened:
            return work(opened)

    return retrying(once, f"reading {folder.path_of(name)}")
