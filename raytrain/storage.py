"""A small class over `pyarrow.fs`: the same calls for a local folder, NFS, S3, GCS or Azure.

Paths are `str`, not `pathlib.Path`, which would collapse `s3://`. A folder exists if there is something in it.
"""

import json
import os
import tempfile
import uuid
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs


def filesystem_of(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    A URI is taken as object stores show it: behind the bucket, a blank is a blank and % a percent sign.

    Raises ValueError for a URI whose scheme pyarrow does not know.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    scheme, _, rest = path.partition("://")
    location, mark, options = rest.partition("?")
    host, slash, name = location.partition("/")
    return pafs.FileSystem.from_uri(f"{scheme}://{host}{slash}{quote(name)}{mark}{options}")


class Storage:
    """A folder, local or behind a URI. Names passed to its methods are relative to it and use `/`."""

    def __init__(self, root: str):
        """Raises ValueError if `root` is a URI whose scheme pyarrow does not know."""
        self.root = root.rstrip("/") or "/"
        if "://" in root and "?" in root:
            raise ValueError(f"{root}: options behind a ? are not supported; set them in the environment (AWS_REGION)")
        self._fs, self._base = filesystem_of(self.root)
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        """Pickles only the root: file system handles can't be pickled."""
        return Storage, (self.root if not self._is_local else self._base,)

    def at(self, *parts: str) -> "Storage":
        """The folder `parts` below this one."""
        return Storage("/".join([self.root.rstrip("/"), *parts]))

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder exists."""
        return self._info(name).type != pafs.FileType.NotFound

    def size_bytes(self, name: str) -> int:
        """Size of a file. Raises FileNotFoundError."""
        info = self._info(name)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(self.path_of(name))
        return info.size

    def list_names(self, name: str = "") -> list[str]:
        """Sorted names of the direct children; empty if the folder does not exist."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def read_bytes(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError."""
        with self._fs.open_input_file(self._full(name)) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """The contents of a JSON file. Raises FileNotFoundError or json.JSONDecodeError."""
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file and create its folder. On a local disk, the file is synced before this returns."""
        with self.open_output(name) as file:
            file.write(data)
        if self._is_local:
            _sync(self._full(name))

    def commit_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that readers see all of it or nothing: a rename on a file system, one PUT on an object
        store."""
        if not self._is_local:
            self.write_bytes(name, data)
            return
        temporary = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.write_bytes(temporary, data)
            os.replace(self._full(temporary), self._full(name))
        except BaseException:
            self.delete(temporary)
            raise
        _sync(os.path.dirname(self._full(name)))

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a file for random access: `.read_at(nbytes, offset)`, `.size()`."""
        return self._fs.open_input_file(self._full(name))

    def open_output(self, name: str) -> pa.NativeFile:
        """Open a file for writing from the start, and create its folder."""
        full = self._full(name)
        if self._is_local:
            os.makedirs(os.path.dirname(full), exist_ok=True)
        return self._fs.open_output_stream(full)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with everything in it. It need not exist."""
        kind = self._info(name).type
        if kind == pafs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif kind == pafs.FileType.File:
            self._fs.delete_file(self._full(name))

    def move(self, source: str, target: str) -> None:
        """Rename, replacing whatever is at `target`. Folders are not replaced atomically."""
        if self._info(target).type == pafs.FileType.Directory:
            self.delete(target)
        self._fs.move(self._full(source), self._full(target))

    def copy(self, source: str, target: str) -> None:
        """Copy a folder with everything in it. At `target`, only files of the same name are replaced."""
        if self._is_local:
            os.makedirs(self._full(target), exist_ok=True)
        pafs.copy_files(self._full(source), self._full(target), self._fs, self._fs)

    def path_of(self, name: str = "") -> str:
        """The full path or URI, for messages."""
        root = self._base if self._is_local else self.root
        return f"{root}/{name}" if name else root

    def place(self) -> tuple[str, str]:
        """(path of the parent folder, name of this folder)."""
        parent, _, name = self.path_of().rstrip("/").rpartition("/")
        return parent, name

    def local_path(self, name: str = "") -> str | None:
        """A path that any program can open. None on an object store."""
        return self._full(name) if self._is_local else None

    def local_copy(self, name: str) -> str:
        """A path of a folder of files that any program can open: the folder itself, or a downloaded copy."""
        if (local := self.local_path(name)) is not None:
            return local
        copy = tempfile.mkdtemp(prefix="raytrain-")
        pafs.copy_files(self._full(name), copy, self._fs, pafs.LocalFileSystem())
        return copy

    def _full(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    def _info(self, name: str) -> pafs.FileInfo:
        return self._fs.get_file_info(self._full(name))


def _sync(path: str) -> None:
    """Flush to disk, so that a power failure can't undo a commit."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
