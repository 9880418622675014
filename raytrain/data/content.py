"""The content of source files: a hash of their bytes, or an object store's ETag.

It tells apart files that have the same path, size and modification time.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.fs as pafs

from raytrain.data.readers.base import SourceFile, first_line
from raytrain.errors import DataError, FailureCode
from raytrain.storage import filesystem_of

# Files that are this large together are hashed whole, in a second or less; of larger ones the head and the tail.
WHOLE_BYTES = 256 << 20
END_BYTES = 64 << 10
THREADS = 32  # of requests to an object store


def with_content(splits: dict[str, list[SourceFile]]) -> dict[str, list[SourceFile]]:
    """The files of each split with their `content`. Raises DataError for a file that can't be read."""
    is_small = sum(file.num_bytes for files in splits.values() for file in files) <= WHOLE_BYTES
    with ThreadPoolExecutor(THREADS) as threads:
        return {
            split: list(threads.map(lambda file: replace(file, content=_content_of(file, is_small)), files))
            for split, files in splits.items()
        }


def _content_of(file: SourceFile, is_small: bool) -> str:
    try:
        return _hash_or_etag(file, is_small)
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path} can't be read: {first_line(error)}", FailureCode.STORAGE) from None


def _hash_or_etag(file: SourceFile, is_small: bool) -> str:
    filesystem, inner = filesystem_of(file.path)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _etag(filesystem, inner)
    digest = hashlib.sha256()
    with open(inner, "rb") as opened:
        if is_small or file.num_bytes <= 2 * END_BYTES:
            while block := opened.read(1 << 20):
                digest.update(block)
        else:
            digest.update(opened.read(END_BYTES))
            opened.seek(-END_BYTES, 2)
            digest.update(opened.read(END_BYTES))
    return digest.hexdigest()


def _etag(filesystem: pafs.FileSystem, path: str) -> str:
    """What the object store calls the content; "" where it says nothing."""
    with filesystem.open_input_stream(path, compression=None) as stream:
        told: dict[str, bytes] = stream.metadata() or {}
    return next((value.decode() for name, value in told.items() if name.lower() == "etag"), "")
