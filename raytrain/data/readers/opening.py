"""Opens source files. On an object store each request takes a round trip, so few are made."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raytrain.data.readers.base import TABLE_FORMATS, SourceFile, Span
from raytrain.storage import filesystem_of

# Bytes of a text file per request to an object store. Text is decoded in pieces of 8 KiB.
REQUEST_BYTES = 1 << 20
# While a file is examined: its first rows are seldom longer.
HEAD_BYTES = 256 << 10

_thread = threading.local()


class Opening:
    """A source file that one thread examines: however often `open_source` is called, it is opened once."""

    def __init__(self, file: SourceFile):
        self.file = file
        self.metadata: dict[str, bytes] = {}
        """What the object store says about the file; empty until it is opened, and for a local file."""
        self._opened: Any = None
        self._head, self._is_complete = bytearray(), False

    def open(self) -> Any:
        """The file for reading from its start."""
        if self.file.format in TABLE_FORMATS:
            opened = _open(self.file)
            self.metadata = opened.metadata() or {}
            return opened
        if self._opened is None:
            self._opened = _open(self.file)
            self.metadata = self._opened.metadata() or {}
        return io.BufferedReader(_View(self), REQUEST_BYTES)

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` bytes of a text file; empty at its end."""
        while len(self._head) < offset + num_bytes and not self._is_complete:
            piece = self._opened.read(HEAD_BYTES)
            self._head += piece
            self._is_complete = not piece
            if len(self._head) > offset:  # whoever needs more asks again
                break
        return bytes(self._head[offset : offset + num_bytes])

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()


class _View(io.RawIOBase):
    """One reader's position in a file that is opened once."""

    def __init__(self, opening: Opening):
        self._opening, self._offset = opening, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._opening.read_at(self._offset, len(buffer))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


@contextmanager
def opened_once(file: SourceFile) -> Iterator[Opening]:
    """Meanwhile, and in this thread, `open_source` of this file makes one request for all that read its first rows."""
    opening = _thread.opening = Opening(file)
    try:
        yield opening
    finally:
        _thread.opening = None
        opening.close()


def open_source(file: SourceFile) -> Any:
    """The file: one that holds tables for random access, another one for reading from its start. Raises OSError."""
    opening: Opening | None = getattr(_thread, "opening", None)
    if opening is not None and opening.file.path == file.path:
        return opening.open()
    return _open(file)


class _Part(io.RawIOBase):
    """Bytes [start, stop) of a file, all of them."""

    def __init__(self, file: SourceFile, span: Span):
        filesystem, inner = filesystem_of(file.path)
        num_bytes = span.stop - span.start
        stream = filesystem.open_input_file(inner).get_stream(span.start, num_bytes)
        self._stream = pa.BufferedInputStream(stream, min(REQUEST_BYTES, num_bytes))
        self._place, self._stop = span.start, span.stop

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self._next(self._stop - self._place), b""))
        return self._next(size)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _next(self, most_bytes: int) -> bytes:
        """Up to `most_bytes` bytes; none at the end. Raises OSError when the file ends before."""
        data: bytes = self._stream.read(most_bytes)
        self._place += len(data)
        if not data and most_bytes and self._place < self._stop:
            raise OSError(
                f"it ends before byte {self._stop:,}, which it had when it was listed, so it has changed since; give "
                "the command again when nothing writes to it"
            )
        return data


def open_span(file: SourceFile, span: Span) -> Any:
    """The bytes of a part of a text file, for reading from its start. Raises OSError; so does reading when the file
    has become shorter than that."""
    return _Part(file, span)


def _open(file: SourceFile) -> Any:
    filesystem, inner = filesystem_of(file.path)
    if file.format in TABLE_FORMATS or isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem.open_input_file(inner)
    stream: pa.NativeFile = filesystem.open_input_stream(inner, compression=None, buffer_size=REQUEST_BYTES)
    return stream
