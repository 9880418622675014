"""`raytrain serve` on real Ray Serve: answers, a replica that is killed, and another model, without a lost request."""

import concurrent.futures
import json
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import kill_all, start_cli, wait_until, worker_processes
from saved_models import model_config, save_best
from tiny import make_reviews

import raytrain
from raytrain.errors import ConfigError, RaytrainError
from raytrain.serving.server import ServeObserver, ServeRequest, serve_model
from raytrain.serving.token import Token
from raytrain.serving.update import ask_for_update

TEXTS = [row["text"] for row in make_reviews(40, seed=5)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models that say the same with other labels."""
    found = []
    for labels in (["negative", "positive"], ["bad", "good"]):
        folder = tmp_path_factory.mktemp(labels[0])
        found.append(save_best(model_config(folder, {"kind": "sequence_classification"}), {"labels": labels}, folder))
    return found


@dataclass
class Running:
    url: str
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def server(local_ray: None, models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """In this process, on the Ray of the tests, as on a cluster that others use too."""
    file = tmp_path_factory.mktemp("token") / "token"
    ends, is_up, urls = threading.Event(), threading.Event(), []

    class Up(ServeObserver):
        def serving(self, url: str, about: dict[str, Any], token: Token | None) -> None:
            urls.append(url)
            is_up.set()

    request = ServeRequest(port=0, token_file=str(file))
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        serving = thread.submit(serve_model, models[0], request, Up(), ends)
        wait_until(lambda: is_up.is_set() or serving.done(), "the server")
        if serving.done():
            serving.result()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {file.read_text().strip()}"}
        with httpx.Client(base_url=urls[0], headers=headers, timeout=60) as client:
            yield Running(urls[0], client)
        ends.set()
        serving.result(60)
    from ray import serve

    assert not serve.status().applications, "nothing is left on the cluster"


def predict(server: Running, texts: list[str]) -> list[dict[str, Any]]:
    answer = server.client.post("/predict", json={"texts": texts, "probabilities": True})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def test_served_answers_are_those_of_predict(server: Running, models: list[str]) -> None:
    expected = raytrain.load(models[0], device="cpu")(TEXTS, probabilities=True)
    for one, other in zip(predict(server, TEXTS), expected, strict=True):
        assert one == pytest.approx(other, abs=1.5e-6)  # both are rounded to six digits
    vectors = raytrain.load(models[0], device="cpu")(TEXTS, embeddings=True)
    answer = server.client.post("/predict", json={"texts": TEXTS, "embeddings": True}).json()
    for one, other in zip(answer["predictions"], vectors, strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-6)
    assert httpx.post(f"{server.url}/predict", json={"text": "a"}).status_code == 401
    assert server.client.post("/predict", content=b"text").status_code == 400
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    assert server.client.get("/model").json()["replicas"] == 1


def test_what_is_wrong_is_said_before_anything_starts(server: Running, models: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't listen there"):
        serve_model(models[0], ServeRequest(port=server.port))
    with pytest.raises(ConfigError, match="no `raytrain serve`"):
        ask_for_update(1, models[0], ())
    with pytest.raises(RaytrainError, match="keeps its model"):
        ask_for_update(server.port, str(tmp_path), ())
    assert predict(server, TEXTS[:1])[0]["predicted_label"] in ("negative", "positive")


def test_a_replica_that_is_killed_loses_no_request(server: Running) -> None:
    replicas = worker_processes(name="ServeReplica")
    assert len(replicas) == 1
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        before = predict(server, TEXTS)
        asked = [threads.submit(predict, server, TEXTS) for _ in range(8)]
        replicas[0].send_signal(signal.SIGKILL)
        for one in asked:  # they may share batches, which have other kernels
            for answer, other in zip(one.result(), before, strict=True):
                assert answer == pytest.approx(other, abs=1.5e-6)
    assert worker_processes(name="ServeReplica")[0].pid != replicas[0].pid


@pytest.mark.slow
def test_no_request_is_lost_under_load_while_replicas_are_killed_and_the_model_is_replaced(
    models: list[str], tmp_path: Path
) -> None:
    """A command of its own, with a private Ray, and 32 connections."""
    process = start_cli("serve", models[0], "--port", "18431", "--replicas", "2", "--timeout-s", "120", cwd=tmp_path)
    url = "http://127.0.0.1:18431"
    codes: Counter[Any] = Counter()
    labels: set[str] = set()
    is_over = threading.Event()

    def is_ready() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=130) as client:
            while not is_over.is_set():
                try:
                    answer = client.post("/predict", json={"text": TEXTS[0]})
                    codes[answer.status_code] += 1
                    labels.add(answer.json()["prediction"]["predicted_label"])
                except Exception as error:
                    codes[repr(error)] += 1

    try:
        wait_until(is_ready, "the server")
        with concurrent.futures.ThreadPoolExecutor(32) as threads:
            asking = [threads.submit(ask) for _ in range(32)]
            for _ in range(2):
                time.sleep(2)
                killed = worker_processes(process.pid, "ServeReplica")[0]
                killed.send_signal(signal.SIGKILL)
                wait_until(lambda: b"serve_replicas 1.0" in httpx.get(f"{url}/metrics").content, "one is missed")
                wait_until(lambda: b"serve_replicas 2.0" in httpx.get(f"{url}/metrics").content, "two again")
            about = ask_for_update(18431, models[1], ())
            time.sleep(1)
            is_over.set()
            concurrent.futures.wait(asking)
        assert set(codes) == {200} and codes[200] > 500, codes
        assert len(labels) == 2 and labels & {"bad", "good"} and labels & {"negative", "positive"}
        assert httpx.get(f"{url}/model").json()["hash"] == about["hash"]
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "Traceback" not in output and "updated" in output, output
    finally:
        kill_all(process)


@pytest.mark.slow
def test_what_has_come_is_answered_after_sigterm(models: list[str], tmp_path: Path) -> None:
    process = start_cli("serve", models[0], "--port", "18432", "--host", "0.0.0.0", "--max-queue", "9000", cwd=tmp_path)
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("token"):
                break
        path = Path(lines[-1].split(" in ")[1].strip())
        secret = path.read_text().strip()
        assert not any(secret in line for line in lines) and path.stat().st_uid == os.getuid()
        headers = {"Authorization": f"Bearer {secret}"}
        body = json.dumps({"texts": TEXTS * 25})
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            options: dict[str, Any] = {"content": body, "headers": headers, "timeout": 60}
            asked = [threads.submit(httpx.post, "http://127.0.0.1:18432/predict", **options) for _ in range(8)]
            wait_until(lambda: b"in_progress 9.0" in _metrics(headers) or asked[0].done(), "all have come")
            process.send_signal(signal.SIGTERM)
            assert [len(one.result().json()["predictions"]) for one in asked] == [1000] * 8
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopping" in output and secret not in output, output
    finally:
        kill_all(process)


def _metrics(headers: dict[str, str]) -> bytes:
    return httpx.get("http://127.0.0.1:18432/metrics", headers=headers).content
