"""At most one command trains a run: a file in the run's folder that its driver renews while it lives."""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from raytrain.errors import ConfigError, TrainingError
from raytrain.storage import Storage

LEASE = "lease.json"
RENEW_EVERY_S = 5.0
# A driver that has not renewed its lease for this long is considered dead. Its successor waits that long: usually the
# same command, given again after a crash, possibly on another machine.
STALE_AFTER_S = 20.0
RENEWALS_TO_SEE = 2.5
POLL_S = 0.5

logger = logging.getLogger(__name__)


class Lease:
    """Context manager that makes this process the only one that trains the run.

    Entering waits while the previous driver may still be alive, and raises ConfigError if it is.
    """

    def __init__(self, run: Storage, say: Callable[[str], None] = lambda text: None):
        """`say`: tells the user what is being waited for."""
        self._run, self._say = run, say
        self._token = secrets.token_hex(8)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="lease")
        self._is_lost = False

    def __enter__(self) -> Self:
        self._wait_for_predecessor()
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if self._is_mine():
            self._run.delete(LEASE)

    def check(self) -> None:
        """Raises TrainingError when another command has taken over the run, because this process was suspended."""
        if self._is_lost:
            raise TrainingError(f"another command has taken over {self._run.path_of()}; this one ends")

    def _wait_for_predecessor(self) -> None:
        first = self._read()
        if first is None or _is_dead(first):
            return
        owner = f"process {first.get('pid')} on {first.get('host')}"
        age_s = max(0.0, time.time() - first["renewed_at_s"])
        # Measured by our clock, which may differ from the owner's: long enough to see a live driver renew its lease.
        patience_s = max(STALE_AFTER_S - age_s, RENEWALS_TO_SEE * RENEW_EVERY_S)
        self._say(f"this run was last trained by {owner}: waiting {patience_s:.0f} s to see whether it is still alive")
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            if not self._run.exists(LEASE):
                return
            if self._read() != first:
                raise ConfigError(
                    f"{self._run.path_of()} is being trained by {owner}: two commands would damage each other's files. "
                    "Stop that one, or give this run another name"
                )

    def _keep_renewing(self) -> None:
        while not self._is_over.wait(RENEW_EVERY_S):
            try:
                if not self._is_mine():
                    self._is_lost = True
                    return
                self._write()
            except Exception as error:  # a temporary storage failure; the next renewal may succeed
                logger.warning("the lease of %s could not be renewed: %s", self._run.path_of(), error)

    def _is_mine(self) -> bool:
        found = self._read()
        return found is None or found.get("token") == self._token

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._run.read_bytes(LEASE))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("renewed_at_s"), float) else None

    def _write(self) -> None:
        body = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _start_of(os.getpid()),
            "token": self._token,
            "renewed_at_s": time.time(),
        }
        self._run.commit_bytes(LEASE, json.dumps(body).encode())


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the owner was certainly a process of this machine and container that no longer exists."""
    machine = _machine()
    return machine is not None and lease.get("machine") == machine and _start_of(lease.get("pid")) != lease["started"]


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
