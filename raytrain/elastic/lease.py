"""One command a run: a file in the run's folder that its driver keeps renewing while it lives."""

import json
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
# A driver that has not renewed for so long is taken for dead. Its successor waits for it: the same command given again
# after a crash, also on another machine.
STALE_AFTER_S = 20.0
POLL_S = 0.5
_HELD_HERE: set[str] = set()  # tokens of this process's leases


class Lease:
    """Context in which this process is the one that trains the run.

    Entering waits for a driver that may be dead, and raises ConfigError when it turns out to live.
    """

    def __init__(self, run: Storage, say: Callable[[str], None] = lambda text: None):
        """`say`: tells the user what is waited for."""
        self._run, self._say = run, say
        self._token = secrets.token_hex(8)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="lease")
        self._is_lost = False

    def __enter__(self) -> Self:
        self._wait_for_predecessor()
        self._write()
        _HELD_HERE.add(self._token)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        _HELD_HERE.discard(self._token)
        if self._is_mine():
            self._run.delete(LEASE)

    def check(self) -> None:
        """Raises TrainingError when another command has taken the run over (this one was frozen for a while)."""
        if self._is_lost:
            raise TrainingError(f"another command has taken {self._run.path_of()} over; this one ends")

    def _wait_for_predecessor(self) -> None:
        first = self._read()
        if first is None or _is_dead(first):
            return
        owner = f"process {first.get('pid')} on {first.get('host')}"
        age_s = max(0.0, time.time() - first["renewed_at_s"])
        if age_s < STALE_AFTER_S:
            self._say(f"the run was {owner}'s {age_s:.0f} s ago: waiting to see whether that still lives")
        # By our clock, which may not be the owner's: as long as a driver that lives needs for several renewals.
        deadline_s = time.monotonic() + STALE_AFTER_S - min(age_s, STALE_AFTER_S)
        while time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            now = self._read()
            if now is None:
                return
            if now != first:
                raise ConfigError(
                    f"{self._run.path_of()} is being trained by {owner}: two commands would spoil each other's files. "
                    "Stop that one, or give this run another name"
                )

    def _keep_renewing(self) -> None:
        while not self._is_over.wait(RENEW_EVERY_S):
            try:
                if not self._is_mine():
                    self._is_lost = True
                    return
                self._write()
            except OSError:  # storage that fails for a while; the next renewal may succeed
                continue

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
        body = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token, "renewed_at_s": time.time()}
        self._run.commit_bytes(LEASE, json.dumps(body).encode())


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more; a container that is started again may well
    give its number to another."""
    if lease.get("host") != socket.gethostname() or not isinstance(lease.get("pid"), int):
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return lease["pid"] == os.getpid() and lease.get("token") not in _HELD_HERE
