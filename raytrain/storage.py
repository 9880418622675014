"""A small class over `pyarrow.fs`: the same calls for a local folder, NFS, S3, GCS or Azure.

Paths are `str`, not `pathlib.Path`, which would collapse `s3://`. A folder exists if there is something in it.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

# On an object store each read is a request, which takes as long as some MiB.
HASH_CHUNK_BYTES = 32 << 20

_thread = threading.local()


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
    kept: dict[str, pafs.FileSystem] | None = getattr(_thread, "filesystems", None)
    bucket = f"{scheme}://{host}{mark}{options}"
    if kept is not None and name and bucket in kept:
        return kept[bucket], f"{host}/{name}"
    filesystem, inner = pafs.FileSystem.from_uri(f"{scheme}://{host}{slash}{quote(name)}{mark}{options}")
    if kept is not None and inner == f"{host}/{name}":  # a bucket, and not a server, as hdfs:// has it
        kept[bucket] = filesystem
    return filesystem, inner


def keep_connections() -> None:
    """From now on this thread uses its connection to a bucket again. It takes milliseconds to make one, and many
    threads would wait for each other in a shared one. For threads that end with their task."""
    _thread.filesystems = {}


class Storage:
    """A folder, local or behind a URI. Names passed to its methods are relative to it and use `/`."""

    def __init__(self, root: str):
        """Raises ValueError if `root` is a URI whose scheme pyarrow does not know."""
        self.root = root.rstrip("/") or "/"
        if "://" in root and "?" in root:
            raise ValueError(f"{root}: options behind a ? are not supported; set them in the environment (AWS_REGION)")
        self._fs, self._base = filesystem_of(self.root)
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)
        self.check: Callable[[], None] = _allow

    def guarded(self, check: Callable[[], None]) -> "Storage":
        """The same folder, with `check` called before each change in it or below it; an exception keeps the change from
        being made. The guard is not pickled: it belongs to this process."""
        guarded = Storage(self.root)
        guarded.check = check
        return guarded

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        """Pickles only the root: file system handles can't be pickled."""
        return Storage, (self.root if not self._is_local else self._base,)

    def at(self, *parts: str) -> "Storage":
        """The folder `parts` below this one."""
        folder = Storage("/".join([self.root.rstrip("/"), *parts]))
        folder.check = self.check
        return folder

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder exists."""
        return self._info(name).type != pafs.FileType.NotFound

    def size_bytes(self, name: str) -> int:
        """Size of a file. Raises FileNotFoundError."""
        info = self._info(name)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(self.path_of(name))
        return info.size

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Differs once a file has been changed or replaced, even by one with the same contents; None if there is no
        file. Renaming the folder that it is in does not change it."""
        if self._is_local:
            try:
                status = os.stat(self._full(name))
            except FileNotFoundError:
                return None
            return status.st_ino, status.st_mtime_ns, status.st_size
        info = self._info(name)
        return (info.mtime_ns or 0, info.size) if info.type == pafs.FileType.File else None

    def list_names(self, name: str = "") -> list[str]:
        """Sorted names of the direct children; empty if the folder does not exist."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def list_sizes(self, name: str) -> dict[str, int]:
        """Size in bytes of each file among the direct children; empty if the folder does not exist."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True)
        infos = self._fs.get_file_info(selector)
        return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}

    def read_bytes(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError."""
        with self._fs.open_input_file(self._full(name)) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        """Hash of a file's contents, in lower-case hex, read a piece at a time. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        with self.open_input(name) as file:
            while piece := file.read(HASH_CHUNK_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """The contents of a JSON file. Raises FileNotFoundError or json.JSONDecodeError."""
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file and create its folder. On a local disk, the file is synced before this returns."""
        with self.open_output(name) as file:
            file.write(data)
        if self._is_local:
            _sync(self._full(name))

    def commit_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file so that readers see all of it or nothing: a rename on a file system, one PUT on an object
        store."""
        if not self._is_local:
            self.write_bytes(name, data)
            return
        temporary = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.write_bytes(temporary, data)
            self.check()  # writing may have taken long
            os.replace(self._full(temporary), self._full(name))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._full(temporary))
            raise
        _sync(os.path.dirname(self._full(name)))

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a file for random access: `.read_at(nbytes, offset)`, `.size()`."""
        return self._fs.open_input_file(self._full(name))

    def open_output(self, name: str) -> pa.NativeFile:
        """Open a file for writing from the start, and create its folder."""
        self.check()
        full = self._full(name)
        if self._is_local:
            os.makedirs(os.path.dirname(full), exist_ok=True)
        return self._fs.open_output_stream(full)

    def create(self, name: str, data: bytes) -> str | None:
        """Create a file that nobody else has created, and its folder. Of several processes, at most one succeeds.

        On a file system the file is opened exclusively, so a reader may see it empty for a moment. Object stores have
        no common call for this: each process writes an object of its own, `<name>-<random>`, then lists the folder, and
        gives up if it finds another one. With a strongly consistent listing (S3, GCS, Azure), the later writer sees the
        earlier one; if both see each other, both give up.

        Returns:
            The name of the file; None when another process has created it, or is about to. Readers take every file
            whose name begins with `name` for it.

        Raises OSError if storage fails; then the file is not there, unless storage could not delete it either.
        """
        self.check()
        if self._is_local:
            return name if _create(self._full(name), data) else None
        own = f"{name}-{uuid.uuid4().hex[:12]}"
        folder, _, prefix = name.rpartition("/")
        try:
            self.write_bytes(own, data)
            found = [name for name in self.list_names(folder) if name.startswith(prefix)]
        except BaseException:  # it may have been written all the same, and would keep everybody out
            with contextlib.suppress(OSError):
                self.delete(own)
            raise
        if found == [own.rpartition("/")[2]]:
            return own
        self.delete(own)
        return None

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with everything in it. It need not exist."""
        self.check()
        kind = self._info(name).type
        if kind == pafs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif kind == pafs.FileType.File:
            self._fs.delete_file(self._full(name))

    def move(self, source: str, target: str) -> None:
        """Rename, replacing whatever is at `target`. Folders are not replaced atomically."""
        self.check()
        if self._info(target).type == pafs.FileType.Directory:
            self.delete(target)
        self._fs.move(self._full(source), self._full(target))

    def copy(self, source: str, target: str) -> None:
        """Copy a folder with everything in it. At `target`, only files of the same name are replaced."""
        self.check()
        if self._is_local:
            os.makedirs(self._full(target), exist_ok=True)
        pafs.copy_files(self._full(source), self._full(target), self._fs, self._fs)

    def link(self, name: str, folder: "Storage", new_name: str) -> None:
        """Give a file a name in another folder too, without reading it: a hard link where the file system has them,
        else a copy, which an object store makes itself. A file of that name is replaced. Raises FileNotFoundError."""
        folder.check()
        source, target = self._full(name), folder._full(new_name)
        if not self._is_local:
            self._fs.copy_file(source, target)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # to copy a file onto another name of itself would empty it
            os.unlink(target)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # the file system has no hard links
            self._fs.copy_file(source, target)
            _sync(target)

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


def _allow() -> None:
    """The check of a folder that is not guarded."""


def _create(path: str, data: bytes) -> bool:
    """Create a file with O_EXCL, which is atomic on NFS too. Returns False if it exists."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:  # an empty file, on a full disk, would be taken for another process's
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return True


def _sync(path: str) -> None:
    """Flush to disk, so that a power failure can't undo a commit."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
