"""The life of a server over real sockets, with replicas in this process: updates, its end, and what it leaves.

tests/ray/test_serve.py has real replicas.
"""

import asyncio
import concurrent.futures
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from saved_models import model_config, save_best

from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.inference.predictor import Predictor
from raytrain.ray_core.connect import RaySession
from raytrain.serving import server as server_module
from raytrain.serving.deployment import _last_line, check_packages
from raytrain.serving.limits import Limits, Replicas
from raytrain.serving.replica import Answer, How, ReplicaSpec, Row, answer_rows
from raytrain.serving.served import check_model
from raytrain.serving.server import HINT, ServeObserver, ServeRequest, _Server, serve_model
from raytrain.serving.sockets import bound
from raytrain.serving.token import Token
from raytrain.serving.update import ask_for_update, socket_path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models that say the same with other labels."""
    torch.set_num_threads(1)
    found = []
    for labels in (["negative", "positive"], ["bad", "good"]):
        folder = tmp_path_factory.mktemp(labels[0])
        found.append(save_best(model_config(folder, {"kind": "sequence_classification"}), {"labels": labels}, folder))
    return found


class Here:
    """Replicas in this process, as `Application` has them on Ray Serve."""

    started: list["Here"] = []
    fails = False

    def __init__(self, spec: ReplicaSpec, initial: int):
        self._predictor, self.initial, self.is_stopped = Predictor.load(spec.card, (), "cpu"), initial, False

    @classmethod
    def start(cls, spec: ReplicaSpec, replicas: Replicas, initial: int, port: int) -> "Here":
        cls.started.append(cls(spec, initial))
        return cls.started[-1]

    def wait(self, wait_s: float | None, gives_up: threading.Event) -> None:
        if Here.fails:
            raise TrainingError("the replicas can't be started: no memory", FailureCode.WORKER_ERROR)

    def num_running(self) -> int:
        return self.initial

    async def answer(self, rows: list[Row], how: How) -> list[Answer]:
        assert not self.is_stopped, "nothing is asked of replicas that were ended"
        await asyncio.sleep(0.02)
        return answer_rows(self._predictor, rows, how)

    async def speak(self, asked: Any) -> AsyncGenerator[Any]:
        raise AssertionError("a classifier generates nothing")
        yield

    def stop(self) -> None:
        self.is_stopped = True


class Up(ServeObserver):
    def __init__(self) -> None:
        self.urls: list[str] = []
        self.is_up = threading.Event()

    def serving(self, url: str, about: dict[str, Any], token: Token | None) -> None:
        self.urls.append(url)
        self.is_up.set()


@pytest.fixture
def running(models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(URL, port, event that ends it, its future)."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(server_module, "Application", Here)
    monkeypatch.setattr(server_module, "WATCH_S", 0.1)
    monkeypatch.setattr(Here, "started", [])
    sockets = bound("127.0.0.1", 0, HINT)
    port = sockets[0].getsockname()[1]
    request = ServeRequest(port=port, replicas=Replicas(1, 2), limits=Limits(timeout_s=20))
    ends, up = threading.Event(), Up()
    server = _Server(request, RaySession(2, 0, True, False), up, port)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future = thread.submit(asyncio.run, server.run(check_model(models[0], ()), sockets, None, ends))
        assert up.is_up.wait(60) or future.result(0)
        yield up.urls[0], port, ends, future
        ends.set()
        future.result(30)
    sockets[0].close()
    assert not socket_path(port).exists()


def test_an_update_loses_no_request_and_answers_each_with_one_model(running: Any, models: list[str]) -> None:
    url, port, _, _ = running
    codes: Counter[Any] = Counter()
    labels: list[set[str]] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not is_over.is_set():
                answer = client.post("/predict", json={"texts": ["a good film"] * 100})
                codes[answer.status_code, answer.headers["x-model-hash"]] += 1
                labels.append({row["predicted_label"] for row in answer.json()["predictions"]})

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask) for _ in range(8)]
        time.sleep(0.3)
        about = ask_for_update(port, models[1], ())
        time.sleep(0.3)
        is_over.set()
        assert not [one.exception() for one in asking if one.exception()]
    assert {status for status, _ in codes} == {200} and len(codes) == 2, codes
    assert all(len(each) == 1 for each in labels), "a request is answered by one model"
    assert httpx.get(f"{url}/model").json()["hash"] == about["hash"] == check_model(models[1], ()).hash
    before, after = Here.started
    assert before.is_stopped and not after.is_stopped


def test_an_update_that_fails_keeps_the_model(running: Any, models: list[str], tmp_path: Path) -> None:
    url, port, _, _ = running
    with pytest.raises(ConfigError, match="keeps its model"):
        ask_for_update(port, str(tmp_path), ())
    Here.fails = True
    try:
        with pytest.raises(TrainingError, match="no memory.*keeps its model") as caught:
            ask_for_update(port, models[1], ())
    finally:
        Here.fails = False
    assert caught.value.code == FailureCode.WORKER_ERROR
    assert [one.is_stopped for one in Here.started] == [False, True]
    assert httpx.post(f"{url}/predict", json={"text": "a"}).status_code == 200
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(socket_path(port)))
        connected.sendall(b"nonsense\n")
        assert b"not an update" in connected.recv(1000)


def test_what_has_come_is_answered_when_the_server_ends(running: Any) -> None:
    url, _, ends, future = running
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(httpx.post, f"{url}/predict", json={"texts": ["a"] * 1000}, timeout=30) for _ in "1234"]
        while b"in_progress 5.0" not in httpx.get(f"{url}/metrics").content:
            assert not asked[0].done()
        ends.set()
        assert [len(one.result().json()["predictions"]) for one in asked] == [1000] * 4
    future.result(10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_port_in_use_and_a_missing_package(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(server_module, "check_packages", lambda: None)
        with pytest.raises(ConfigError, match=f"port {port}: can't listen there"):
            serve_model(models[0], ServeRequest(port=port))
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ConfigError, match=r"needs the package starlette.*raytrain\[serve\]"):
        check_packages()


def test_the_error_of_a_replica_is_told_without_its_traceback() -> None:
    text = 'RuntimeError: Traceback (most recent call last):\n  File "x"\nraytrain.errors.ConfigError: no: such file\n'
    assert _last_line(text) == "no: such file"
