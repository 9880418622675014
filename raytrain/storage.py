"""One small class over `pyarrow.fs`: the same calls for a local folder, NFS, S3, GCS or Azure.

Paths are `str`, never `pathlib.Path`, which would collapse `s3://`. A folder exists when something is in it.
"""

import json
import os
import tempfile
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs


class Storage:
    """A folder, local or behind a URI. Names given to its methods are relative to it, with `/` between parts."""

    def __init__(self, root: str):
        """Raises ValueError when `root` is a URI whose scheme pyarrow does not know."""
        self.root = root.rstrip("/") or "/"
        if "://" in root and "?" in root:
            raise ValueError(f"{root}: options behind a ? are not supported; set them in the environment (AWS_REGION)")
        if "://" in root:
            self._fs, self._base = pafs.FileSystem.from_uri(self.root)
        else:
            self._fs, self._base = pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(self.root))
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        """Rebuilt from its root in another process: file system handles don't travel."""
        return Storage, (self.root if not self._is_local else self._base,)

    def at(self, *parts: str) -> "Storage":
        """The folder `parts` below this one."""
        return Storage("/".join([self.root.rstrip("/"), *parts]))

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        return self._info(name).type != pafs.FileType.NotFound

    def size_bytes(self, name: str) -> int:
        """Size of a file; raises FileNotFoundError."""
        info = self._info(name)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(self.path_of(name))
        return info.size

    def list_names(self, name: str = "") -> list[str]:
        """Names of the direct children, sorted; empty when the folder is missing."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def read_bytes(self, name: str) -> bytes:
        """The whole file; raises FileNotFoundError."""
        with self._fs.open_input_file(self._full(name)) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """The file parsed as JSON; raises FileNotFoundError or json.JSONDecodeError."""
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file, making its folder; on a local disk it is synced before this returns."""
        with self.open_output(name) as file:
            file.write(data)
        if self._is_local:
            _sync(self._full(name))

    def commit_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or none: rename on a file system, one PUT on an object store."""
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
        """Open for random access: `.read_at(nbytes, offset)`, `.size()`."""
        return self._fs.open_input_file(self._full(name))

    def open_output(self, name: str) -> pa.NativeFile:
        """Open for writing from the start, making its folder."""
        full = self._full(name)
        if self._is_local:
            os.makedirs(os.path.dirname(full), exist_ok=True)
        return self._fs.open_output_stream(full)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; missing is fine."""
        kind = self._info(name).type
        if kind == pafs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif kind == pafs.FileType.File:
            self._fs.delete_file(self._full(name))

    def move(self, source: str, target: str) -> None:
        """Rename; what stood at `target` is replaced. A folder is not replaced atomically."""
        if self._info(target).type == pafs.FileType.Directory:
            self.delete(target)
        self._fs.move(self._full(source), self._full(target))

    def copy(self, source: str, target: str) -> None:
        """Copy a folder with all that is in it; what stood at `target` stays, but for files of the same name."""
        if self._is_local:
            os.makedirs(self._full(target), exist_ok=True)
        pafs.copy_files(self._full(source), self._full(target), self._fs, self._fs)

    def path_of(self, name: str = "") -> str:
        """The full path or URI, for messages."""
        root = self._base if self._is_local else self.root
        return f"{root}/{name}" if name else root

    def place(self) -> tuple[str, str]:
        """Path of the folder that this one lies in, and its name."""
        parent, _, name = self.path_of().rstrip("/").rpartition("/")
        return parent, name

    def local_path(self, name: str = "") -> str | None:
        """A path that any program can open, or None on an object store."""
        return self._full(name) if self._is_local else None

    def local_copy(self, name: str) -> str:
        """A folder of files at a path that any program can open: itself, or a copy that was downloaded."""
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
    """Ask the disk to keep what was written; a power cut must not undo a commit."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
