"""One command a run."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raytrain.errors import ConfigError, TrainingError
from raytrain.runs import lease as lease_module
from raytrain.runs.lease import LEASE, Lease
from raytrain.storage import Storage


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, fifty times as fast."""
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 0.6)
    monkeypatch.setattr(lease_module, "POLL_S", 0.05)


def write(run: Storage, **fields: Any) -> None:
    body = {"host": "elsewhere", "pid": 7, "token": "theirs", "renewed_at_s": time.time(), **fields}
    run.write_bytes(LEASE, json.dumps(body).encode())


def test_it_is_renewed_and_given_back(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    with Lease(run):
        first = run.read_json(LEASE)["renewed_at_s"]
        deadline_s = time.monotonic() + 20
        while run.read_json(LEASE)["renewed_at_s"] == first:
            assert time.monotonic() < deadline_s
    assert not run.exists(LEASE)


def test_a_run_that_is_being_trained_is_refused(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    said: list[str] = []
    with Lease(run), pytest.raises(ConfigError, match="is being trained by process"), Lease(run, said.append):
        pass
    assert "to see whether it is still alive" in said[0]


def test_one_that_died_elsewhere_is_waited_for_and_succeeded(tmp_path: Path) -> None:
    """As when a pod is started again: the owner can't be asked, but does not renew."""
    run = Storage(str(tmp_path))
    write(run)
    started_at_s = time.monotonic()
    with Lease(run) as lease:
        assert time.monotonic() - started_at_s >= 0.2
        assert run.read_json(LEASE)["pid"] == os.getpid()
        lease.check()


def test_one_that_died_here_is_succeeded_at_once(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    script = "import time; from raytrain.runs.lease import Lease; from raytrain.storage import Storage; "
    script += f"Lease(Storage({str(tmp_path)!r})).__enter__(); print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    owner.kill()
    owner.wait()
    said: list[str] = []
    with Lease(run, said.append):
        assert run.read_json(LEASE)["pid"] == os.getpid()
    assert not said


@pytest.mark.parametrize("behind_s", [0.0, 30.0, 10_000.0])
def test_one_that_lives_is_not_robbed_whatever_its_clock_says(tmp_path: Path, behind_s: float) -> None:
    """Its number and its host's name may be ours, too: containers share them."""
    import socket

    run, is_over = Storage(str(tmp_path)), threading.Event()

    def keep_renewing() -> None:
        while not is_over.wait(0.1):
            write(run, host=socket.gethostname(), pid=os.getpid(), renewed_at_s=time.time() - behind_s)

    write(run, renewed_at_s=time.time() - behind_s)
    owner = threading.Thread(target=keep_renewing)
    owner.start()
    try:
        with pytest.raises(ConfigError, match="is being trained by"), Lease(run):
            pass
    finally:
        is_over.set()
        owner.join()


def test_a_clock_that_is_ahead_does_not_lock_the_run(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    write(run, renewed_at_s=time.time() + 10_000)
    with Lease(run):
        assert run.read_json(LEASE)["pid"] == os.getpid()


def test_one_that_was_frozen_learns_that_it_was_succeeded(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    with Lease(run) as lease:
        write(run)
        deadline_s = time.monotonic() + 20
        with pytest.raises(TrainingError, match="another command has taken"):
            while time.monotonic() < deadline_s:
                lease.check()
                time.sleep(0.02)
    assert run.read_json(LEASE)["token"] == "theirs"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}'])
def test_garbage_is_no_lease(tmp_path: Path, content: bytes) -> None:
    run = Storage(str(tmp_path))
    run.write_bytes(LEASE, content)
    with Lease(run):
        assert run.read_json(LEASE)["pid"] == os.getpid()
