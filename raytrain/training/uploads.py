"""A growing log on an object store, which can't append: its last file is uploaded again from time to time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.segments import SEGMENT_BYTES, segment_name, segments_of

# A file is uploaded at most this often.
UPLOAD_EVERY_S = 15.0
# ... and less often when an upload takes long: at most a twentieth of the time is spent on it.
UPLOAD_SHARE = 0.05


class GrowingObject:
    """A log that grows in memory and is uploaded in a thread, so that no step waits for storage. A file of it that has
    become large is complete, and another one follows: see segments.

    Failed uploads are retried for two minutes, and then with the next lines; only `sync` and `close` raise them. Lines
    that another process appends, as an evaluation does beside the training, are kept.
    """

    def __init__(self, storage: Storage, name: str, told: Callable[[int, bytes], None] = lambda position, data: None):
        """Continues what is there. `told`: see JsonlWriter. Raises OSError if storage fails for two minutes."""
        self._storage, self._log, self._told = storage, name, told
        self._index, self._before, content = retrying(self._begin, f"reading {storage.path_of(name)}")
        self._content = bytearray(content)  # of the last file
        self._num_stored = len(self._content)  # bytes at its beginning that are in storage
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._upload: Future[None] | None = None
        self._next_upload_s = time.monotonic() + UPLOAD_EVERY_S

    def append(self, line: bytes) -> None:
        """Add a line, and start an upload if one is due. Raises what the last upload has raised, unless storage has
        failed: TakenOverError."""
        with self._lock:
            begin = len(self._content)
            _end_line(self._content)
            self._content += line
            self._told(self._before + begin, bytes(self._content[begin:]))
        if self._upload is not None and self._upload.done() and not self._failed_to_store():
            self._upload.result()
        if time.monotonic() >= self._next_upload_s:
            self.begin_upload()

    def begin_upload(self) -> None:
        """Upload what there is, in the thread; does nothing while an upload is in progress."""
        if self._upload is None or self._upload.done():
            self._upload = self._thread.submit(self._try, self._is_closed)

    def sync(self) -> None:
        """Wait until everything up to now is uploaded, with one attempt after those in progress. Raises OSError."""
        is_last = threading.Event()
        is_last.set()
        self._thread.submit(self._try, is_last).result()

    def close(self) -> None:
        """`sync`, then end the thread."""
        self._is_closed.set()
        try:
            self.sync()
        finally:
            self._thread.shutdown()

    def _failed_to_store(self) -> bool:
        return self._upload is not None and isinstance(self._upload.exception(), OSError)

    def _try(self, is_over: threading.Event) -> None:
        if len(self._content) == self._num_stored:
            return
        started_at_s = time.monotonic()
        try:
            retrying(self._store, f"uploading {self._storage.path_of(self._name)}", is_over)
        finally:
            ended_at_s = time.monotonic()
            self._next_upload_s = ended_at_s + max(UPLOAD_EVERY_S, (ended_at_s - started_at_s) / UPLOAD_SHARE)

    def _store(self) -> None:
        if self._stored_bytes() != self._num_stored:
            self._take_in(self._read(self._name))
        with self._lock:
            content = bytes(self._content)
        self._storage.write_bytes(self._name, content)
        self._num_stored = len(content)
        if len(content) >= SEGMENT_BYTES:
            self._begin_next(len(content))

    def _begin(self) -> tuple[int, int, bytes]:
        """(index of the file that grows, bytes of those before it, its content)."""
        found = segments_of(self._storage, self._log)
        sizes = [size for _, size in found]
        if not found or sizes[-1] >= SEGMENT_BYTES:
            return len(found), sum(sizes), b""
        return len(found) - 1, sum(sizes[:-1]), self._read(found[-1][0])

    def _begin_next(self, num_complete: int) -> None:
        """The file that grows is complete with this many bytes. Raises OSError."""
        found = bytearray(self._read(segment_name(self._log, self._index + 1)))  # by a process beside this one
        num_stored = len(found)
        _end_line(found)
        with self._lock:
            self._content[:num_complete] = found
            self._before += num_complete
            self._index += 1
            self._num_stored = num_stored

    def _take_in(self, found: bytes) -> None:
        """Keep the lines in `found`, which is in storage, that another process has appended to what we have stored."""
        with self._lock:
            if self._content.startswith(found):  # an upload of ours that seemed to have failed, or the file was deleted
                self._num_stored = len(found)
            elif found.startswith(self._content[: self._num_stored]):
                merged = bytearray(found)
                _end_line(merged)
                self._content[: self._num_stored] = merged
                self._num_stored = len(found)

    def _stored_bytes(self) -> int:
        try:
            return self._storage.size_bytes(self._name)
        except FileNotFoundError:
            return 0

    @property
    def _name(self) -> str:
        return segment_name(self._log, self._index)

    def _read(self, name: str) -> bytes:
        try:
            return self._storage.read_bytes(name)
        except FileNotFoundError:
            return b""


def _end_line(content: bytearray) -> None:
    """A crash may have left the last line incomplete; readers skip it."""
    if content and not content.endswith(b"\n"):
        content += b"\n"
