"""Whether source files are still what they were when they were listed: the fingerprint of a store stands for their
contents, so no store is made of files that have changed meanwhile.

A query to a database compares its rows whenever it is read, see `readers.sql`.
"""

from dataclasses import replace

import pyarrow.fs as pafs

from raytrain.config import SourceFormat
from raytrain.data.content import are_small, hash_of
from raytrain.data.examined import etag_of, is_in_object_store
from raytrain.data.parallel import in_threads
from raytrain.data.readers.base import SourceFile, first_line
from raytrain.data.readers.images import folder_of_images
from raytrain.errors import DataError, FailureCode
from raytrain.retries import retrying
from raytrain.storage import filesystem_of


def refuse_changed(splits: dict[str, list[SourceFile]]) -> None:
    """Raises DataError for the first file that has changed or is gone, or can't be looked at. One request a file to an
    object store.

    Args:
        splits: The files of each split, with their content.
    """
    files = [file for of_split in splits.values() for file in of_split if file.format != SourceFormat.SQL]
    is_small = are_small(files)

    def differs(file: SourceFile) -> str:
        try:
            return retrying(lambda: _difference(file, is_small), f"reading {file.path}")
        except (OSError, ValueError) as error:
            raise DataError(f"{file.path} can't be read: {first_line(error)}", FailureCode.STORAGE) from None

    found = [(file, how) for file, how in zip(files, in_threads(differs, files), strict=True) if how]
    if found:
        file, how = found[0]
        others = f" So did {len(found) - 1:,} more." if len(found) > 1 else ""
        raise DataError(
            f"{file.path} changed while it was prepared ({how}).{others} Give the command "
            "again when nothing writes to it"
        )


def _difference(file: SourceFile, is_small: bool) -> str:
    """How a file differs from what was listed; "": it does not. Raises OSError."""
    try:
        now = _now(file)
        if now is None:
            return "it is gone"
        if now.num_bytes != file.num_bytes:
            return f"from {file.num_bytes:,} to {now.num_bytes:,} bytes"
        if now.modified_at != file.modified_at:
            return f"it was written at {now.modified_at}"
        if not is_in_object_store(file) and file.format != SourceFormat.IMAGES:
            now = replace(now, content=hash_of(now, is_small))
    except FileNotFoundError:
        return "it is gone"
    return "its contents are others" if now.content != file.content else ""


def _now(file: SourceFile) -> SourceFile | None:
    """The file as its file system has it now; None: it is gone. An object store is asked for the ETag if it has given
    one, since it may round the time of a file and not that in a list."""
    if file.format == SourceFormat.IMAGES:
        now = folder_of_images(file.path, file.reading)
        return now if now.num_bytes else None
    filesystem, inner = filesystem_of(file.path)
    if is_in_object_store(file) and file.content:
        with filesystem.open_input_file(inner) as opened:
            return replace(file, num_bytes=opened.size(), content=etag_of(opened.metadata() or {}))
    info = filesystem.get_file_info(inner)
    if info.type != pafs.FileType.File:
        return None
    return replace(file, num_bytes=info.size or 0, modified_at=info.mtime.isoformat() if info.mtime else "")
