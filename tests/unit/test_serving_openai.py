"""The server in OpenAI's format, without Ray: answers, streams, errors, and what a request reserves."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from saved_models import save_best
from test_serving import ask, front_of

import raytrain
from raytrain.config.io import parse_config
from raytrain.inference.completing import Asked, Piece
from raytrain.serving.batcher import ReplicaLostError
from raytrain.serving.limits import Limits
from raytrain.serving.token import Token

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 8}
LIMITS = Limits(max_new_tokens=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    tokenizer, found = chat_tokenizer(tmp_path_factory.mktemp("tokenizer")), {}
    for kind in ("chat", "causal_lm"):
        model = {"config": {**TINY_CHAT, "initializer_range": 0.2}, "tokenizer": tokenizer}
        raw = {"name": "lm", "task": {"kind": kind} | ({"format": "messages"} if kind == "chat" else {})}
        raw |= {"model": model, "data": {"train": {"path": "train.jsonl"}, "max_length": 120}}
        found[kind] = save_best(parse_config(raw), {}, tmp_path_factory.mktemp(kind))
    return found


def events_of(text: str) -> list[Any]:
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in events]


def test_answers_are_those_of_predict(folders: dict[str, str]) -> None:
    front = front_of(folders["chat"], limits=LIMITS)
    expected = raytrain.load(folders["chat"], device="cpu")("hi", max_new_tokens=8)["answer"]
    nothing = {
        "tools": [],
        "logprobs": False,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "top_k": -1,
    }
    found = ask(front, {**BODY, "model": "lm", "n": 2, "user": "me", **nothing}, CHAT).json()
    assert [one["message"]["content"] for one in found["choices"]] == [expected] * 2
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and found["object"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    same = ask(front, {**BODY, "messages": parts}, CHAT).json()["choices"][0]
    assert same["message"] == {"role": "assistant", "content": expected}
    drawn = {"messages": QUESTION, "seed": 5}
    assert len({ask(front, drawn, CHAT).json()["choices"][0]["message"]["content"] for _ in range(3)}) == 1
    front = front_of(folders["causal_lm"], limits=LIMITS)
    (choice,) = ask(front, {"prompt": "hi", "temperature": 0, "max_tokens": 8}, TEXTS).json()["choices"]
    assert choice["text"] == raytrain.load(folders["causal_lm"], device="cpu")("hi", max_new_tokens=8)["generated"]


def test_a_stream_joins_to_the_whole_answer(folders: dict[str, str]) -> None:
    front = front_of(folders["chat"], limits=LIMITS)
    whole = ask(front, {**BODY, "n": 2}, CHAT).json()
    streamed = {**BODY, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    response = ask(front, streamed, CHAT)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = events_of(response.text)
    for index, choice in enumerate(whole["choices"]):
        own = [one["choices"][0] for one in events if one["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == choice["finish_reason"]
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
    assert last["usage"] == whole["usage"] and not last["choices"]
    assert front._pages._num_requests == front._pages._num_bytes == front.served.num_requests == 0


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "not JSON"),
        ({**BODY, "model": "gpt-9"}, 404, "no model"),
        ({**BODY, "messages": []}, 400, "at least one"),
        ({**BODY, "messages": [*QUESTION, *QUESTION]}, 400, "user follows user"),
        ({**BODY, "messages": [*QUESTION, {"role": "assistant", "content": "a"}]}, 400, "the last turn"),
        ({**BODY, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "not text"),
        ({**BODY, "max_tokens": 9}, 400, "from 1 to 8 (--max-new-tokens)"),
        ({**BODY, "temperature": -1}, 400, "temperature -1"),
        ({**BODY, "stop": ["a"] * 5}, 400, "at most 4"),
        ({**BODY, "frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
        ({**BODY, "tools": [{}]}, 400, "tools is not supported"),
        ({**BODY, "logprobs": True}, 400, "logprobs is not supported"),
        ({**BODY, "top_logprobs": 1}, 400, "top_logprobs is not supported"),
        ({**BODY, "presence_penalty": 1}, 400, "presence_penalty is not supported"),
        ({**BODY, "stream_options": "usage"}, 400, "give an object"),
        ({**BODY, "seed": -1}, 400, "seed -1"),
    ],
)
def test_errors_have_openais_format(folders: dict[str, str], body: Any, status: int, told: str) -> None:
    front = front_of(folders["chat"], limits=LIMITS)
    for extra in ({}, {"stream": True}):
        found = ask(front, body if isinstance(body, bytes) else {**body, **extra}, CHAT)
        error = found.json()["error"]
        assert found.status_code == status and told in error["message"] and error["type"].endswith("_error")
    assert front.served.num_requests == 0


def test_each_kind_of_model_has_its_path_and_the_token_is_asked_for(folders: dict[str, str]) -> None:
    wrong = ask(front_of(folders["causal_lm"]), BODY, CHAT)
    assert wrong.status_code == 400 and TEXTS in wrong.json()["error"]["message"]
    front = front_of(folders["chat"], limits=LIMITS, token=Token("s" * 16, "here"))
    assert ask(front, BODY, CHAT).json()["error"]["type"] == "authentication_error"
    header = {"Authorization": f"Bearer {'s' * 16}"}
    assert ask(front, None, "/v1/models", headers=header).json()["data"][0]["id"] == "lm"
    assert ask(front, BODY, CHAT, headers=header).status_code == 200


def test_a_replica_that_dies_before_the_first_piece_is_replaced(folders: dict[str, str]) -> None:
    front, deaths = front_of(folders["chat"], limits=LIMITS), [1, 1]

    async def speak(asked: Asked) -> AsyncGenerator[Piece]:
        if deaths:
            deaths.pop()
            raise ReplicaLostError
        yield Piece("fine", 1, 1)
        if asked.seed == 1:
            raise ReplicaLostError
        yield Piece("", 1, 1, "stop")

    front.served.speak = speak
    assert ask(front, BODY, CHAT).json()["choices"][0]["message"]["content"] == "fine"
    text = ask(front, {**BODY, "seed": 1, "stream": True}, CHAT).text
    assert "fine" in text and "has died" in text and "[DONE]" not in text


def test_whether_to_stream_is_told_by_true_and_false_alone(folders: dict[str, str]) -> None:
    found = ask(front_of(folders["chat"], limits=LIMITS), {**BODY, "stream": "true"}, CHAT)
    assert found.status_code == 400 and "stream" in found.json()["error"]["message"]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_ends_the_work(folders: dict[str, str], is_streamed: bool) -> None:
    front, closed, is_enough = front_of(folders["chat"], limits=LIMITS), [], asyncio.Event()

    async def speak(asked: Asked) -> AsyncGenerator[Piece]:
        try:
            for number in itertools.count():
                yield Piece("a", 1, 1)
                await asyncio.sleep(0.001)
                if number == 5:
                    is_enough.set()
        finally:
            closed.append(1)

    front.served.speak = speak

    async def run() -> None:
        body = json.dumps({**BODY, "stream": is_streamed}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await is_enough.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        await asyncio.wait_for(front(scope, receive, send), 30)

    asyncio.run(run())
    assert closed and front.served.num_requests == 0
