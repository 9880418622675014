"""`raytrain watch MODEL http://...`: a row that was answered 200 counts once, also after a kill. No Ray."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from saved_models import model_config, save_best
from tiny import make_reviews

import raytrain
from raytrain.errors import ConfigError
from raytrain.serving.token import Token
from raytrain.watching import spool as spool_module
from raytrain.watching.receiver import LIMITS
from raytrain.watching.request import WatchRequest
from raytrain.watching.spool import Kept, Spool, SpoolFullError
from raytrain.watching.status import Watched, WatchObserver
from raytrain.watching.watch import watch_source

TEXTS = [row["text"] for row in make_reviews(300, seed=5)]
WAIT_S = 60


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = model_config(folder, {"kind": "sequence_classification"})
    return save_best(config, {"labels": ["negative", "very positive"]}, folder)


class Watching(WatchObserver):
    """A watch in a thread."""

    def __init__(self) -> None:
        self.url, self.is_listening, self.ends = "", threading.Event(), threading.Event()
        self.status: Watched | None = None

    def receiving(self, url: str, token: Token | None) -> None:
        self.url = url
        self.is_listening.set()

    def watched(self, status: Watched) -> None:
        self.status = status

    def wait_for(self, num_texts: int) -> None:
        end_s = time.monotonic() + WAIT_S
        while self.status is None or self.status.num_texts < num_texts:
            assert time.monotonic() < end_s
            time.sleep(0.02)


@contextlib.contextmanager
def watching(best: str, out: Path, source: str = "http://127.0.0.1:0", **options: Any) -> Iterator[Watching]:
    found = Watching()
    request = WatchRequest(source, str(out), interval_s=0.02, **options)
    thread = threading.Thread(target=watch_source, args=(best, request, found, found.ends))
    thread.start()
    try:
        assert found.is_listening.wait(WAIT_S)
        yield found
    finally:
        found.ends.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def predicted(out: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(out.glob("predictions/*")) for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_rows_are_kept_counted_once_and_predicted(best: str, tmp_path: Path) -> None:
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS[:100])]
    with watching(best, tmp_path, alerts=("negative > 1% of 50",)) as watch:
        answers = [httpx.post(watch.url, json=row).json() for row in rows[:5]]
        answers.append(httpx.post(watch.url, json=[*rows, {"text": "n\u00f3 id"}, rows[0]]).json())
        lines = "\n".join(json.dumps(row) for row in [*rows[:3], {"text": "", "n": 1}])
        answers.append(
            httpx.post(watch.url, content=lines, headers={"Content-Type": "application/x-ndjson; charset=utf-8"}).json()
        )
        watch.wait_for(101)
    assert answers == [
        *[{"received": 1, "repeated": 0}] * 5,
        {"received": 96, "repeated": 6},
        {"received": 1, "repeated": 3},
    ]
    found = predicted(tmp_path)
    assert [row["data"] for row in found] == [*rows, {"text": "n\u00f3 id"}]
    model = raytrain.load(best, device="cpu")
    assert [row["predicted_label"] for row in found] == [
        one["predicted_label"] for one in model([row["data"]["text"] for row in found])
    ]
    assert json.loads((tmp_path / "alerts.jsonl").read_text().splitlines()[0])["source"] == "http"
    with watching(best, tmp_path, source="http://localhost:0/rows") as watch:  # another port, and it knows the ids
        assert httpx.post(watch.url, json=rows).json() == {"received": 0, "repeated": 100}
        httpx.post(watch.url, json={"text": "one more"})
        watch.wait_for(102)
    assert len(predicted(tmp_path)) == 102


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"no", 400, "the body is not JSON"),
        (b"3", 422, "neither a JSON object nor a list"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b'[{"text": "a"}, 3]', 422, "row 1 is not a JSON object; no row of this request was kept"),
        (b'[{"text": "a"}, {"txt": "a"}]', 422, "row 1 has no text, which the model reads"),
        (b'{"text": "a", "id": ""}', 422, "an id is an integer, or a string"),
        (b'{"text": "a", "id": true}', 422, "an id is an integer, or a string"),
        (json.dumps([{"text": "a"}] * 10_001).encode(), 413, "10,001 rows, and a request has 10,000 at most"),
        (b" " * (LIMITS.max_body + 1), 413, "the body has more than 8 MB"),
    ],
)
def test_requests_that_are_refused_whole(running: Watching, content: bytes, status: int, said: str) -> None:
    answer = httpx.post(running.url, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and said in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def running(best: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    out = tmp_path_factory.mktemp("out")
    with watching(best, out) as watch:
        yield watch
        assert httpx.post(watch.url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert httpx.get(watch.url).status_code == 405
        assert httpx.get(watch.url.replace("/rows", "/healthz")).json() == {"status": "ok"}
    assert predicted(out) == [] and not any((out / "received").iterdir())


def test_a_token_is_asked_for_where_others_can_come(best: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with watching(best, tmp_path / "out", source="http://0.0.0.0:0", token_file=str(file)) as watch:
        url = watch.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(url, json={"text": "a"}).status_code == 401
        given = {"Authorization": f"Bearer {file.read_text().strip()}"}
        assert httpx.post(url, json={"text": "a"}, headers=given).json() == {"received": 1, "repeated": 0}
        watch.wait_for(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "http://127.0.0.1"}, "give the address to listen on as http://HOST:PORT"),
        ({"source": "http://127.0.0.1:99999"}, "give the address to listen on"),
        ({"source": "http://127.0.0.1:0/elsewhere"}, "give the address to listen on"),
        ({"source": "https://127.0.0.1:0"}, "let a proxy in front of it speak https"),
        ({"source": "http://192.0.2.7:8001"}, "can't listen there"),
        ({"is_once": True}, "--once is for files"),
        ({"source": "in", "token_file": "t"}, "--token-file is for texts that arrive by HTTP"),
    ],
)
def test_mistakes(best: str, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = {"source": "http://127.0.0.1:0", "out": str(tmp_path / "out"), **change}
    with pytest.raises(ConfigError, match=said):
        watch_source(best, WatchRequest(**given))
    assert not (tmp_path / "out").exists()


def test_from_python(best: str, tmp_path: Path) -> None:
    source, heard = tmp_path / "in.txt", list[dict[str, Any]]()
    source.write_text("\n".join(TEXTS[:60]) + "\n")
    rule = "very positive > 0% of 20"
    found = raytrain.watch(best, source, tmp_path / "out", alerts=[rule], on_alert=heard.append, once=True, window=60)
    assert (found.num_texts, found.window) == (60, 60) and sum(found.shares.values()) == pytest.approx(1)
    lines = (tmp_path / "out" / "alerts.jsonl").read_text().splitlines()
    assert heard == [json.loads(line) for line in lines] != []
    with pytest.raises(ConfigError, match="watch\\(\\) has no option 'windows'"):
        raytrain.watch(best, source, tmp_path / "out", windows=3)


def rows_of(*ids: int) -> list[Kept]:
    return [Kept(json.dumps({"text": "a", "id": i}).encode() + b"\n", str(i)) for i in ids]


class TestSpool:
    def test_a_full_disk_takes_nothing_and_forgets_the_ids(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = Spool(str(tmp_path))
        assert spool.add([rows_of(1, 2), rows_of(2, 3), []]) == [2, 1, 0]
        before, fsync = (tmp_path / "00000000.jsonl").read_bytes(), os.fsync

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            spool.add([rows_of(4)])
        monkeypatch.setattr(os, "fsync", fsync)
        assert (tmp_path / "00000000.jsonl").read_bytes() == before
        assert spool.add([rows_of(4)]) == [1]

    def test_a_row_that_was_cut_off_is_removed(self, tmp_path: Path) -> None:
        assert Spool(str(tmp_path)).add([rows_of(1)]) == [1]
        (tmp_path / "00000000.jsonl").open("ab").write(b'{"text": "b", "id": 2}')
        assert Spool(str(tmp_path)).add([rows_of(1, 2)]) == [1]
        assert len((tmp_path / "00000000.jsonl").read_text().splitlines()) == 2

    def test_files_that_were_read_go_and_what_waits_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 100)
        monkeypatch.setattr(spool_module, "MOST_WAITING_BYTES", 2000)
        monkeypatch.setattr(spool_module, "MOST_IDS", 50)
        spool, number = Spool(str(tmp_path)), 0
        with pytest.raises(SpoolFullError):
            for number in range(1000):
                spool.add([rows_of(number)])
        paths = sorted(map(str, tmp_path.iterdir()))
        assert len(paths) > 6 and spool.num_waiting_bytes <= 2000
        spool.counted({path: os.path.getsize(path) for path in paths[:-1]})
        assert sorted(map(str, tmp_path.iterdir())) == paths[-spool_module.KEPT_SEGMENTS :]
        assert spool.add([rows_of(number)]) == [1]
        again = Spool(str(tmp_path))
        assert again.add([rows_of(number, number - 1), rows_of(0)]) == [0, 1], "the oldest ids are forgotten"


@pytest.mark.slow
def test_a_watch_that_is_killed_while_rows_come(best: str, tmp_path: Path) -> None:
    """Clients send a request again until it is answered. Each row counts once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "raytrain", "watch", best, f"http://127.0.0.1:{port}", "--out", str(tmp_path)]
    sent, is_over = [0], threading.Event()  # rows that were answered 200

    lock = threading.Lock()

    def send(client: int) -> None:
        number = 0
        while not is_over.is_set():  # then all that was begun is answered
            rows = [{"text": TEXTS[(number + i) % 300], "id": f"{client}-{number}-{i}"} for i in range(7)]
            while True:
                try:
                    if httpx.post(f"http://127.0.0.1:{port}/rows", json=rows, timeout=20).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.05)
            number += 1
            with lock:
                sent[0] += 7

    def wait(is_done: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 5 * WAIT_S
        while not is_done():
            assert time.monotonic() < end_s and process.poll() is None
            time.sleep(0.01)

    clients = [threading.Thread(target=send, args=(client,), daemon=True) for client in range(2)]
    for client in clients:
        client.start()
    try:
        for kill in range(3):
            process = subprocess.Popen(command)
            wait(lambda goal=sent[0] + 150: sent[0] >= goal)  # type: ignore[misc]
            if kill < 2:
                process.kill()
                process.wait()
        is_over.set()
        for client in clients:
            client.join(WAIT_S)
        wait(lambda: len(predicted(tmp_path)) >= sent[0])
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        is_over.set()
        process.kill()
    ids = [row["data"]["id"] for row in predicted(tmp_path)]
    assert len(ids) == len(set(ids)) == sent[0]
