"""The server of a model without Ray: answers, refusals, limits, the token, and the queue that joins requests."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from saved_models import model_config, save_best
from tiny import make_reviews, make_sentences

import raytrain
from raytrain.errors import ConfigError
from raytrain.inference.completing import Asked, Piece, complete
from raytrain.inference.predictor import Predictor
from raytrain.serving.batcher import ATTEMPTS, Backend, Batcher, FailedError, QueueFullError, ReplicaLostError
from raytrain.serving.front import Front
from raytrain.serving.limits import GROUP_CHARS, GROUP_ROWS, Limits, Replicas
from raytrain.serving.metrics import ServeMetrics
from raytrain.serving.openapi import openapi
from raytrain.serving.replica import Answer, How, Row, answer_rows
from raytrain.serving.served import Model, Served, Speak, check_model
from raytrain.serving.token import VARIABLE, Token, find_token, is_loopback, own_folder
from raytrain.tasks.predicting import Decoding

TASKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "classes": ({"kind": "sequence_classification"}, ["negative", "positive"]),
    "pairs": ({"kind": "sequence_classification", "text_pair_column": "other"}, ["no", "yes"]),
    "tags": ({"kind": "token_classification"}, ["O", "B-LOC", "B-PER", "I-PER"]),
    "documents": ({"kind": "token_classification", "document_context": True}, ["O", "B-PER", "I-PER"]),
}
TEXTS = [row["text"] for row in make_reviews(30, seed=0)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    found = {}
    for name, (task, labels) in TASKS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = save_best(model_config(folder, task), {"labels": labels}, folder)
    return found


def backend_of(model: Model) -> Backend:
    """Answers as a replica does, in this process."""
    predictor = Predictor.load(model.card, (), "cpu")

    async def answer(rows: list[Row], how: How) -> list[Answer]:
        return answer_rows(predictor, rows, how)

    return answer


def speak_of(model: Model) -> Speak:
    """Generates as a replica does, in this process."""
    predictor: list[Predictor] = []

    async def speak(asked: Asked) -> AsyncGenerator[Piece]:
        predictor.extend([] if predictor else [Predictor.load(model.card, (), "cpu")])
        for piece in complete(predictor[0], asked):
            yield piece

    return speak


def front_of(folder: str, *, limits: Limits | None = None, token: Token | None = None, backend: Any = None) -> Front:
    model, limits, metrics = check_model(folder, ()), limits or Limits(), ServeMetrics()
    served = Served(model, backend or backend_of(model), metrics, limits.max_queue, speak_of(model))
    return Front(served, limits, metrics, token)


Call = Callable[..., Coroutine[Any, Any, httpx.Response]]


def asking(front: Front, do: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(front)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await do(client)

    return asyncio.run(run())


def ask(front: Front, body: Any, path: str = "/predict", **options: Any) -> httpx.Response:
    """One request: a POST of JSON, or of bytes; None: a GET."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    return asking(front, lambda client: client.request(method, path, content=content, **options))


def test_answers_are_those_of_predict(models: dict[str, str]) -> None:
    front, model = front_of(models["classes"]), raytrain.load(models["classes"], device="cpu")
    for options in ({}, {"probabilities": True}, {"embeddings": True}):
        expected = model(TEXTS, **options)

        async def one_by_one(client: httpx.AsyncClient, options: Any = options) -> list[Any]:
            return await asyncio.gather(*(client.post("/predict", json={"text": t, **options}) for t in TEXTS))

        alone = [answer.json()["prediction"] for answer in asking(front, one_by_one)]
        together = ask(front, {"texts": TEXTS, **options}).json()["predictions"]
        for one, other, ours in zip(alone, together, expected, strict=True):
            assert one.keys() == other.keys() == ours.keys()
            for name, value in ours.items():
                expected_value = value if isinstance(value, str) else pytest.approx(value, abs=1.5e-6)
                assert one[name] == expected_value and other[name] == expected_value
    text = ask(front, None, "/metrics").text
    assert 'raytrain_serve_rows_total{result="predicted"} 180.0' in text
    assert "raytrain_serve_group_rows_count 93.0" not in text, "requests that come together are joined"


def test_words_and_documents_are_as_predict_has_them(models: dict[str, str]) -> None:
    words = [[word for word, _ in sentence] for sentence in make_sentences(20, seed=0)]
    rows = [{"tokens": each, "document": number // 5} for number, each in enumerate(words)]
    for name in ("tags", "documents"):
        front, model = front_of(models[name]), raytrain.load(models[name], device="cpu")
        assert ask(front, {"rows": rows}).json()["predictions"] == model(rows)
    texts = [" ".join(each) for each in words]
    front, model = front_of(models["tags"]), raytrain.load(models["tags"], device="cpu")
    assert ask(front, {"texts": texts}).json()["predictions"] == model(texts)
    assert ask(front, {"text": words[0]}).json()["prediction"] == model([words[0]])[0]


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"text=hello", 400, "not_json", "is not JSON"),
        (b"[" * 100_000, 400, "not_json", "send an object"),
        (b'{"text": "\xff"}', 400, "not_json", "is not JSON"),
        (b"[1]", 422, "wrong_request", "JSON array"),
        ({}, 422, "wrong_request", "one of text, texts and rows"),
        ({"text": "a", "rows": []}, 422, "wrong_request", "text and rows"),
        ({"txt": "a"}, 422, "wrong_request", "did you mean text?"),
        ({"texts": "a"}, 422, "wrong_request", "is a list"),
        ({"text": "a", "threshold": 0.5}, 422, "wrong_request", "several labels per row"),
        ({"text": "a", "probabilities": "yes"}, 422, "wrong_request", "true or false"),
        ({"text": ""}, 422, "bad_input", "text is empty"),
        ({"text": 5}, 422, "bad_input", "not a JSON number"),
        (b'{"text": "\\ud83d"}', 422, "bad_input", "surrogate"),
        ({"texts": ["a"] * 6}, 413, "too_many_rows", "at most 5"),
        (b" " * 2001, 413, "too_large", "send several requests"),
    ],
)
def test_refusals_say_what_to_do(models: dict[str, str], body: Any, status: int, code: str, says: str) -> None:
    front = front_of(
        models["classes"], limits=Limits(max_rows=5, max_body_mb=0.11 if body == b"[" * 100_000 else 0.002)
    )
    found = ask(front, body)
    error = found.json()["error"]
    assert (found.status_code, error["code"]) == (status, code)
    assert says in error["message"]


def test_each_row_has_its_own_error(models: dict[str, str]) -> None:
    found = ask(
        front_of(models["pairs"]), {"rows": [{"text": "a", "other": "b"}, {"text": "a"}, 3, {"text": 1, "other": "b"}]}
    )
    good, *bad = found.json()["predictions"]
    assert found.status_code == 200 and good["predicted_label"] in ("no", "yes")
    assert [one["error"]["code"] for one in bad] == ["bad_input"] * 3
    assert "there is no other" in bad[0]["error"]["message"]
    assert ask(front_of(models["pairs"]), {"text": "a"}).status_code == 422


def test_other_paths_and_methods(models: dict[str, str]) -> None:
    front = front_of(models["classes"])
    assert ask(front, None, "/nothing").status_code == 404
    assert ask(front, None, "/predict").headers["allow"] == "POST"
    assert ask(front, {"text": "a"}, headers={"Content-Encoding": "gzip"}).status_code == 415
    about = ask(front, None, "/model")
    assert about.json()["labels"] == ["negative", "positive"] and models["classes"] not in about.text
    assert ask(front, None, "/readyz").status_code == 200
    front.is_draining = True
    assert ask(front, None, "/readyz").status_code == 503 and ask(front, None, "/healthz").status_code == 200


@pytest.mark.parametrize("name", TASKS)
def test_the_example_of_the_description_is_answered(models: dict[str, str], name: str) -> None:
    front = front_of(models[name])
    told = ask(front, None, "/openapi.json").json()
    assert told == json.loads(json.dumps(openapi(front.served.model, Limits())))
    example = told["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert ask(front, example).status_code == 200
    assert json.dumps(example)[:8] in ask(front, None, "/docs").text.replace("&quot;", '"')


def test_the_token_is_asked_for(models: dict[str, str]) -> None:
    token = Token("0123456789abcdef", "somewhere")
    front = front_of(models["classes"], token=token)
    for header in (None, "Bearer 0123456789abcdeX", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer \u00e9"):
        headers = {} if header is None else {"Authorization": header.encode()}
        for path in ("/model", "/metrics", "/docs", "/openapi.json"):
            assert ask(front, None, path, headers=headers).status_code == 401
        refused = ask(front, {"text": "a"}, headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert ask(front, {"text": "a"}, headers={"Authorization": "Bearer 0123456789abcdef"}).status_code == 200
    assert ask(front, None, "/healthz").status_code == ask(front, None, "/readyz").status_code == 200
    assert token.secret not in repr(token)


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find_token("127.0.0.1", 1, None) is None and find_token("::1", 1, None) is None
    assert is_loopback("localhost") and not is_loopback("0.0.0.0") and not is_loopback("example.org")
    made = find_token("0.0.0.0", 8000, None)
    path = own_folder() / "serve-8000.token"
    assert made is not None and path.read_text().strip() == made.secret and str(path) in made.told
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    again = find_token("0.0.0.0", 8000, str(path))
    assert again is not None and again.secret == made.secret
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        find_token("127.0.0.1", 8000, str(path))
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match="at least 16"):
        find_token("0.0.0.0", 8000, None)
    monkeypatch.setenv(VARIABLE, "f" * 32)
    given = find_token("127.0.0.1", 8000, None)
    assert given is not None and given.secret == "f" * 32
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="you alone can read"):
        own_folder()
    assert os.getuid() == path.stat().st_uid


def test_what_replicas_may_be() -> None:
    assert Replicas.parse("2") == Replicas(2, 2) and Replicas.parse("1:4") == Replicas(1, 4)
    for text in ("0", "4:1", "many", "1:", "-1", ""):
        with pytest.raises(ConfigError, match="--replicas"):
            Replicas.parse(text)


def test_slow_and_too_many_requests(models: dict[str, str]) -> None:
    free = asyncio.Event()

    async def slow(rows: list[Row], how: How) -> list[Answer]:
        await free.wait()
        return [Answer("{}")] * len(rows)

    limits = Limits(timeout_s=0.2, max_queue=2)
    front = front_of(models["classes"], limits=limits, backend=slow)

    async def many(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = [asyncio.create_task(client.post("/predict", json={"texts": ["a"] * GROUP_ROWS})) for _ in range(2)]
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(client.post("/predict", json={"text": "a"})) for _ in range(3)]
        return await asyncio.gather(*first, *waiting)

    found = asking(front, many)
    assert [one.status_code for one in found] == [504, 504, 504, 504, 503]
    assert found[-1].headers["retry-after"] == "1"
    assert front.served.batcher.num_waiting == 0, "what is given up is not answered later"


def test_what_the_model_cannot_answer_and_what_breaks_it(models: dict[str, str]) -> None:
    async def broken(rows: list[Row], how: How) -> list[Answer]:
        raise ConfigError("embeddings need an encoder") if how.embeddings else OSError("/secret/path")

    front = front_of(models["classes"], backend=broken)
    found = ask(front, {"text": "a", "embeddings": True})
    assert (found.status_code, found.json()["error"]["message"]) == (422, "embeddings need an encoder")
    found = ask(front, {"text": "a"})
    assert found.status_code == 500 and "OSError" in found.text and "/secret" not in found.text


class Recorded:
    """A backend that says which rows it was given together, fails over a text, and dies over it some times first."""

    def __init__(self, *, fails: str = "", deaths: int = 0, is_cured: bool = False):
        self.groups: list[list[str]] = []
        self._fails, self._deaths, self._is_cured = fails, deaths, is_cured

    async def __call__(self, rows: list[Row], how: How) -> list[Answer]:
        texts = [row["text"] for row in rows]
        self.groups.append(texts)
        await asyncio.sleep(0.01)
        if self._fails in texts and self._deaths:
            self._deaths -= 1
            raise ReplicaLostError
        if self._fails in texts and not self._is_cured:
            raise RuntimeError("this text")
        return [Answer(text) for text in texts]


def batched(backend: Backend, requests: list[tuple[list[str], How]], *, joins: bool = True) -> list[Any]:
    async def run() -> list[Any]:
        batcher = Batcher(backend, ServeMetrics(), max_queue=10_000, joins=joins)
        calls = (batcher.answer([{"text": text} for text in texts], how) for texts, how in requests)
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(run())
    return [one if isinstance(one, Exception) else [answer.text for answer in one] for one in found]


def test_requests_are_joined_where_they_ask_the_same() -> None:
    backend, other = Recorded(), How(Decoding(probabilities=True))
    requests = [([f"a{n}"], How()) for n in range(10)] + [([f"b{n}", "b"], other) for n in range(5)]
    assert batched(backend, requests) == [texts for texts, _ in requests]
    assert [len(group) for group in backend.groups] == [10, 10]
    apart = Recorded()
    assert batched(apart, requests, joins=False) == [texts for texts, _ in requests]
    assert len(apart.groups) == len(requests)


def test_a_long_request_does_not_hold_up_short_ones() -> None:
    backend = Recorded()
    long = [f"long {n}" for n in range(1000)]
    found = batched(backend, [(long, How()), (["short"], How()), (["x" * GROUP_CHARS], How()), (["y"], How())])
    assert found == [long, ["short"], ["x" * GROUP_CHARS], ["y"]]
    assert max(map(len, backend.groups)) == GROUP_ROWS
    assert any("short" in group for group in backend.groups[:4])
    assert ["x" * GROUP_CHARS] in backend.groups, "a row as long as a group is alone"


@pytest.mark.parametrize("replicas", [1, 2])
def test_clients_that_ask_again_as_they_are_answered_share_groups(replicas: int) -> None:
    """Else the first that asks again would be a group of its own, and each group have few rows."""
    backend, clients, rounds = Recorded(), 32, 10

    async def client(batcher: Batcher, name: int) -> None:
        for number in range(rounds):
            await asyncio.sleep(0.0002 * name)  # not all in the same turn of the event loop
            await batcher.answer([{"text": f"{name} {number}"}], How())

    async def run() -> None:
        batcher = Batcher(backend, ServeMetrics(), max_queue=10_000)
        batcher.set_replicas(replicas)
        await asyncio.gather(*(client(batcher, name) for name in range(clients)))

    asyncio.run(run())
    assert sum(map(len, backend.groups)) == clients * rounds
    assert len(backend.groups) <= 3 * replicas * rounds, sorted(map(len, backend.groups))


def test_a_row_that_breaks_the_model_fails_alone() -> None:
    found = batched(Recorded(fails="c"), [([text], How()) for text in "abcde"])
    assert isinstance(found.pop(2), FailedError)
    assert found == [["a"], ["b"], ["d"], ["e"]]


def test_a_replica_that_dies_loses_nothing_unless_the_rows_kill_each() -> None:
    requests = [([text], How()) for text in "abcde"]
    assert batched(Recorded(fails="c", deaths=1, is_cured=True), requests) == [[text] for text in "abcde"]
    found = batched(Recorded(fails="c", deaths=ATTEMPTS + 5), requests)
    assert isinstance(found.pop(2), FailedError)
    assert found == [["a"], ["b"], ["d"], ["e"]]


def test_a_full_queue_refuses_and_an_empty_one_takes_any_request() -> None:
    async def run() -> None:
        batcher = Batcher(Recorded(), ServeMetrics(), max_queue=3)
        first = [asyncio.create_task(batcher.answer([{"text": "a"}] * 64, How())) for _ in range(2)]
        await asyncio.sleep(0)
        later = asyncio.create_task(batcher.answer([{"text": "a"}], How()))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.answer([{"text": "a"}] * 200, How())
        await asyncio.gather(*first, later)
        assert len(await batcher.answer([{"text": "a"}] * 200, How())) == 200

    asyncio.run(run())
