"""Reads and writes of the files that PREPARE makes: storage that fails for a moment does not end it."""

import errno
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from raytrain.retries import retrying
from raytrain.storage import Storage

T = TypeVar("T")


def put(folder: Storage, name: str, data: bytes | memoryview) -> None:
    """Write a file. Raises OSError, which names it, when storage fails for two minutes or the disk is full."""
    path = folder.path_of(name)
    try:
        retrying(lambda: folder.write_bytes(name, data), f"writing {path}")
    except OSError as error:  # pyarrow's does not name the file
        raise OSError(error.errno or errno.EIO, f"{path} can't be written: {error.strerror or error}") from error


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
