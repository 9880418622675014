"""Folders of images: each file is a row, and the sub-folder that it is in is its label."""

import hashlib
import os
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from raytrain.config import SourceFormat
from raytrain.data.readers.base import ROW, BadRow, Chunk, Reading, ReadTask, SourceFile, first_line
from raytrain.models.images import ENDINGS
from raytrain.storage import filesystem_of

COLUMNS = ["image", "label"]
"""An object with the bytes and the path below the folder; the name of the sub-folder, null without one."""
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GROUP = 256
"""Images that are read at once, as a row group of Parquet is."""


def is_image(path: str) -> bool:
    """Whether the ending of a file is that of an image."""
    return os.path.splitext(path.lower())[1] in ENDINGS


def folder_of_images(full: str, reading: Reading) -> SourceFile:
    """A folder of images, or one image, as a source. Its content is a hash of the names, sizes and times of its files.
    Raises OSError.

    Args:
        full: The absolute path, or the URI.
    """
    infos = _images(full)
    digest, modified_at = hashlib.sha256(), ""
    for name, info in infos:
        time = info.mtime.isoformat() if info.mtime else ""
        digest.update(f"{name}\0{info.size}\0{time}\n".encode("utf-8", "surrogatepass"))
        modified_at = max(modified_at, time)
    num_bytes = sum(info.size or 0 for _, info in infos)
    return SourceFile(full, SourceFormat.IMAGES, num_bytes, modified_at, reading, digest.hexdigest())


def image_groups(file: SourceFile) -> list[int]:
    """The number of images in each group. Raises OSError."""
    count = len(_images(file.path))
    return [min(GROUP, count - start) for start in range(0, count, GROUP)]


def read_images(task: ReadTask, columns: Collection[str] | None) -> Iterator[Chunk]:
    """The rows of a read task, in the order of the paths. A file that can't be read is a bad row. Raises OSError when
    the folder can't be listed."""
    with_bytes = columns is None or "image" in columns
    images = _images(task.file.path)
    start, stop = task.row_groups or (0, -(-len(images) // GROUP))
    filesystem = filesystem_of(task.file.path)[0]
    for first in range(start * GROUP, stop * GROUP, GROUP):
        rows, bad = [], []
        for row, (name, info) in enumerate(images[first : first + GROUP], first + 1):
            folder, _, _ = name.partition("/")
            label = folder if "/" in name else None
            try:
                data = _bytes_of(filesystem, info.path) if with_bytes else None
            except OSError as error:
                bad.append(BadRow(task.file.path, row, f"{name} can't be read: {first_line(error)}", data=name))
                continue
            rows.append(({"bytes": data, "path": name}, label, row))
        if rows or bad:
            image, label_of, number = zip(*rows, strict=True) if rows else ((), (), ())
            arrays = [pa.array(image, IMAGE), pa.array(label_of, pa.string()), pa.array(number, pa.int64())]
            yield Chunk(pa.table(arrays, [*COLUMNS, ROW]), bad)


def _bytes_of(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path, compression=None) as opened:
        return bytes(opened.read())


def _images(path: str) -> list[tuple[str, pafs.FileInfo]]:
    """(path below the folder, what its file system says) of each image, sorted by path; one image is alone."""
    filesystem, inner = filesystem_of(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.File:
        return [(os.path.basename(inner), info)]
    inner = inner.rstrip("/")
    found = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True))
    names = [(one.path[len(inner) + 1 :], one) for one in found if one.type == pafs.FileType.File]
    visible = (
        (name, one)
        for name, one in names
        if is_image(name) and not any(part.startswith((".", "_")) for part in name.split("/"))
    )
    return sorted(visible, key=lambda image: image[0])
