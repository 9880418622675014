"""The content of source files: a hash of their bytes, an object store's ETag, or a hash of the rows of a query.

It tells apart files that have the same path, size and modification time.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from raytrain.config import SourceFormat
from raytrain.data.examined import is_in_object_store
from raytrain.data.parallel import in_threads
from raytrain.data.readers.base import SourceFile, first_line
from raytrain.data.readers.sql import query_content
from raytrain.errors import DataError, FailureCode
from raytrain.storage import filesystem_of

# Files that are this large together are hashed whole, in a second or less; of larger ones the head and the tail.
WHOLE_BYTES = 256 << 20
END_BYTES = 64 << 10


def with_content(splits: dict[str, list[SourceFile]]) -> dict[str, list[SourceFile]]:
    """The files of each split with their `content`; those in object stores have it already. Raises DataError for a file
    that can't be read."""
    is_small = are_small([file for files in splits.values() for file in files])

    def hashed(file: SourceFile) -> SourceFile:
        if is_in_object_store(file) or file.format == SourceFormat.IMAGES:  # they have it
            return file
        if file.format == SourceFormat.SQL:
            content, num_bytes = query_content(file)
            return replace(file, content=content, num_bytes=num_bytes)
        try:
            return replace(file, content=hash_of(file, is_small))
        except (OSError, ValueError) as error:
            raise DataError(f"{file.path} can't be read: {first_line(error)}", FailureCode.STORAGE) from None

    return {split: in_threads(hashed, files) for split, files in splits.items()}


def are_small(files: Iterable[SourceFile]) -> bool:
    """Whether files are hashed whole."""
    return sum(file.num_bytes for file in files) <= WHOLE_BYTES


def hash_of(file: SourceFile, is_small: bool) -> str:
    """Of a file on a file system: of its bytes, or of its ends. `is_small`: see `are_small`. Raises OSError."""
    digest = hashlib.sha256()
    with open(filesystem_of(file.path)[1], "rb") as opened:
        if is_small or file.num_bytes <= 2 * END_BYTES:
            while block := opened.read(1 << 20):
                digest.update(block)
        else:
            digest.update(opened.read(END_BYTES))
            opened.seek(-END_BYTES, 2)
            digest.update(opened.read(END_BYTES))
    return digest.hexdigest()
