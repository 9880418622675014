"""At most one command trains a run: its driver holds a lease, a file that it renews while it lives.

See `raytrain.checkpoint.fence` for the files, and for what keeps a driver that has lost the lease from writing.
"""

import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from raytrain.checkpoint.fence import Fence, holders, lease_name, newest_token, taken_over
from raytrain.errors import ConfigError, TakenOverError
from raytrain.retries import retrying
from raytrain.storage import Storage

T = TypeVar("T")

RENEW_EVERY_S = 5.0
# A driver that has not renewed its lease for this long is considered dead. Its successor waits that long: usually the
# same command, given again after a crash, possibly on another machine.
STALE_AFTER_S = 20.0
RENEWALS_TO_SEE = 2.5
POLL_S = 0.5

logger = logging.getLogger(__name__)


class LeaseRecord(BaseModel, frozen=True):
    """The holder of a lease, as the lease's file has it."""

    host: str = ""
    pid: int = 0
    machine: str | None = None
    """The scope of `pid`, see `_machine`."""
    started: str | None = None
    """When the process started, in the kernel's ticks."""
    owner: str = ""
    released: bool = False
    """Whether the holder has ended in an orderly way."""
    renewed_at_s: float = 0.0
    """By the holder's clock, seconds since the epoch."""


class Lease:
    """Context manager that makes this process the only one that trains the run.

    Entering waits while the previous driver may still be alive, and raises ConfigError if it is. A driver that cannot
    renew its lease, because storage fails, continues: should it have a successor by the time storage answers again,
    its next write is refused.
    """

    def __init__(self, run: Storage, say: Callable[[str], None] = lambda text: None, owner: str | None = None):
        """Args:
        say: Tells the user what is being waited for.
        owner: Processes with the same name take the lease from each other without waiting. None: a name of its own.
        """
        self._run, self._say = run, say
        self._owner = owner or secrets.token_hex(8)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="lease")
        self._lock = threading.Lock()
        self._is_lost = False
        self._name = ""
        self.token = 0
        """The fencing token: it grows with each worker group of the run, whichever command has started it."""

    def __enter__(self) -> Self:
        while True:
            if self._claim(self._wait_for_predecessor() + 1):
                break
            time.sleep(random.uniform(0.2, 1.0) * POLL_S)  # another command has begun in this moment
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        try:
            if self._is_mine():
                self._write(is_released=True)
        except OSError as error:  # how the command has ended must not be lost
            logger.warning("the lease of %s could not be released: %s", self._run.path_of(), error)

    def check(self) -> None:
        """Raises TakenOverError when another command is known to have taken over the run."""
        if self._is_lost:
            raise TakenOverError(taken_over(self._run))

    def check_now(self) -> None:
        """Like `check`, after a look into storage. Raises OSError when it can't be read."""
        self.check()
        Fence(self._run, self.token).check()

    def advance(self) -> int:
        """Take the token for the next worker group, which fences off the previous ones. Raises TakenOverError."""
        with self._lock:
            while True:
                self._retrying(self.check_now)
                if self._claim(self.token + 1):
                    return self.token
                time.sleep(random.uniform(0.2, 1.0) * POLL_S)

    def _claim(self, token: int) -> bool:
        """Become the holder of a token, unless another process does, or holds a later one."""
        record = self._record()
        name = self._retrying(lambda: self._run.create(lease_name(token), record)) or self._created(token, record)
        if name is None:
            return False
        try:
            is_newest = self._retrying(lambda: newest_token(self._run)) == token
        except OSError:  # nobody holds it: it would be taken for another process's
            with contextlib.suppress(OSError):
                self._run.delete(name)
            raise
        if not is_newest:
            self._run.delete(name)
            return False
        before, self._name, self.token = self._name, name, token
        if before:
            with contextlib.suppress(OSError):  # it no longer counts
                self._run.delete(before)
        return True

    def _created(self, token: int, record: bytes) -> str | None:
        """The name of a token's file if this process has created it: storage may do what it is asked and then fail to
        answer, and the next attempt finds the file there. No two processes have the same record."""
        newest, names = self._retrying(lambda: holders(self._run))
        if newest != token or len(names) != 1:
            return None
        return names[0] if self._retrying(lambda: self._bytes_of(names[0])) == record else None

    def _retrying(self, work: Callable[[], T]) -> T:
        """Raises OSError when storage fails for two minutes."""
        return retrying(work, f"taking the lease of {self._run.path_of()}")

    def _wait_for_predecessor(self) -> int:
        """Returns the newest token, whose holder is gone. Only the next one may be claimed: a process that comes to
        the same conclusion at the same time wants it too."""
        token, first = self._holders()
        alive = [record for record in first.values() if self._may_be_alive(record)]
        if not alive:
            return token
        owner = f"process {alive[0].pid} on {alive[0].host}" if alive[0].host else "another command"
        age_s = max(0.0, time.time() - alive[0].renewed_at_s)
        # Measured by our clock, which may differ from the owner's: long enough to see a live driver renew its lease.
        patience_s = max(STALE_AFTER_S - age_s, RENEWALS_TO_SEE * RENEW_EVERY_S)
        self._say(f"this run was last trained by {owner}: waiting {patience_s:.0f} s to see whether it is still alive")
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            token, now = self._holders()
            if not any(self._may_be_alive(record) for record in now.values()):
                return token
            if now != first:
                raise ConfigError(
                    f"{self._run.path_of()} is being trained by {owner}: two commands would damage each other's files. "
                    "Stop that one, or give this run another name"
                )
        return token

    def _holders(self) -> tuple[int, dict[str, LeaseRecord]]:
        """The newest token and the records of its holders, by name. Raises OSError when storage fails for two
        minutes."""

        def read() -> tuple[int, dict[str, LeaseRecord]]:
            token, names = holders(self._run)
            return token, {name: self._read(name) for name in names}

        return self._retrying(read)

    def _may_be_alive(self, record: LeaseRecord) -> bool:
        return not (record.released or record.owner == self._owner or _is_dead(record))

    def _keep_renewing(self) -> None:
        has_failed = False
        while not self._is_over.wait(RENEW_EVERY_S):
            try:
                with self._lock:
                    if not self._is_mine():
                        self._is_lost = True
                        return
                    self._write()
                has_failed = False
            except Exception as error:  # a temporary storage failure; the next renewal may succeed
                if not has_failed:
                    logger.warning("the lease of %s could not be renewed: %s", self._run.path_of(), error)
                has_failed = True

    def _is_mine(self) -> bool:
        return not self._is_lost and newest_token(self._run) == self.token

    def _read(self, name: str) -> LeaseRecord:
        """A holder's record; one without a name when it is unreadable, for example not written yet, or gone."""
        try:
            return LeaseRecord.model_validate_json(self._bytes_of(name) or b"")
        except ValidationError:
            return LeaseRecord()

    def _bytes_of(self, name: str) -> bytes | None:
        """None when the file is gone, which must not be retried: whoever has lost the race for a token deletes its own
        file."""
        try:
            return self._run.read_bytes(name)
        except FileNotFoundError:
            return None

    def _write(self, *, is_released: bool = False) -> None:
        self._run.commit_bytes(self._name, self._record(is_released=is_released))

    def _record(self, *, is_released: bool = False) -> bytes:
        record = LeaseRecord(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            started=_start_of(os.getpid()),
            owner=self._owner,
            released=is_released,
            renewed_at_s=time.time(),
        )
        return record.model_dump_json().encode()


def _is_dead(lease: LeaseRecord) -> bool:
    """Whether the owner was certainly a process of this machine and container that no longer exists."""
    machine = _machine()
    return machine is not None and lease.machine == machine and _start_of(lease.pid) != lease.started


def _machine() -> str | None:
    """The scope in which process ids are unique: this boot of the machine, and the container. None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: Any) -> str | None:
    """When a process started, in the kernel's ticks; None when there is no such process."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError):
        return None
