"""A growing file on an object store, which can't append: the whole file is uploaded again from time to time."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from raytrain.checkpoint.retries import retrying
from raytrain.storage import Storage

# A file is uploaded at most this often.
UPLOAD_EVERY_S = 15.0
# ... and less often when an upload takes long: at most a twentieth of the time is spent on it.
UPLOAD_SHARE = 0.05


class GrowingObject:
    """A file that grows in memory and is uploaded in a thread, so that no step waits for storage.

    Failed uploads are retried for two minutes, and then with the next lines; only `sync` and `close` raise them.
    """

    def __init__(self, storage: Storage, name: str):
        """Continues what is there. Raises OSError if storage fails for two minutes."""
        self._storage, self._name = storage, name
        self._content = bytearray(retrying(self._read, f"reading {storage.path_of(name)}"))
        if self._content and not self._content.endswith(b"\n"):
            self._content += b"\n"  # a crash has left the last line incomplete, and readers skip it
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._upload: Future[None] | None = None
        self._num_uploaded = len(self._content)
        self._next_upload_s = time.monotonic() + UPLOAD_EVERY_S

    def append(self, line: bytes) -> None:
        """Add a line, and start an upload if one is due. Raises what the last upload has raised, unless storage has
        failed: TakenOverError."""
        with self._lock:
            self._content += line
        if self._upload is not None and self._upload.done() and not self._failed_to_store():
            self._upload.result()
        if time.monotonic() >= self._next_upload_s:
            self.begin_upload()

    def begin_upload(self) -> None:
        """Upload what there is, in the thread; does nothing while an upload is in progress."""
        if self._upload is None or self._upload.done():
            self._upload = self._thread.submit(self._try)

    def sync(self) -> None:
        """Wait until everything up to now is uploaded. Raises OSError if storage fails for two minutes."""
        self._thread.submit(self._try).result()

    def close(self) -> None:
        """`sync`, then end the thread. If storage fails now, there is one attempt only."""
        self._is_closed.set()
        try:
            self.sync()
        finally:
            self._thread.shutdown()

    def _failed_to_store(self) -> bool:
        return self._upload is not None and isinstance(self._upload.exception(), OSError)

    def _try(self) -> None:
        with self._lock:
            content = bytes(self._content)
        if len(content) == self._num_uploaded:
            return
        started_at_s = time.monotonic()
        work = lambda: self._storage.write_bytes(self._name, content)  # noqa: E731
        try:
            retrying(work, f"uploading {self._storage.path_of(self._name)}", self._is_closed)
            self._num_uploaded = len(content)
        finally:
            ended_at_s = time.monotonic()
            self._next_upload_s = ended_at_s + max(UPLOAD_EVERY_S, (ended_at_s - started_at_s) / UPLOAD_SHARE)

    def _read(self) -> bytes:
        try:
            return self._storage.read_bytes(self._name)
        except FileNotFoundError:
            return b""
