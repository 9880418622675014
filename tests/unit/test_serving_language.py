"""Language models behind the server: questions and turns, new tokens and their limit, groups that are generated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from saved_models import save_best
from test_serving import Recorded, ask, batched, front_of

import raytrain
from raytrain.config.io import parse_config
from raytrain.serving.limits import GROUP_CHARS, GROUP_TOKENS, Limits
from raytrain.serving.openapi import openapi
from raytrain.serving.replica import How
from raytrain.serving.served import check_model
from raytrain.tasks.predicting import Decoding

TASKS: dict[str, dict[str, Any]] = {
    "messages": {"kind": "chat", "format": "messages", "tools_column": None},
    "alpaca": {"kind": "chat", "format": "alpaca"},
    "text": {"kind": "causal_lm"},
}
LIMITS = Limits(max_new_tokens=3)
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    found, tokenizer = {}, chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    for name, task in TASKS.items():
        folder = tmp_path_factory.mktemp(name)
        model = {"config": {**TINY_CHAT, "initializer_range": 0.2}, "tokenizer": tokenizer}
        data = {"train": {"path": "train.jsonl"}, "max_length": 120}
        found[name] = save_best(parse_config({"name": "lm", "task": task, "model": model, "data": data}), {}, folder)
    return found


@pytest.mark.parametrize("name", ["messages", "alpaca"])
def test_questions_and_turns_are_answered_as_predict_does(models: dict[str, str], name: str) -> None:
    front, model = front_of(models[name], limits=LIMITS), raytrain.load(models[name], device="cpu")
    (expected,) = model(["hi"], max_new_tokens=3)
    assert ask(front, {"text": "hi"}).json() == {"prediction": expected}
    rows: list[dict[str, Any]] = [{"messages": QUESTION}, {"prompt": "hi"}, {"text": "hi"}, {"text": " "}]
    *same, empty = ask(front, {"rows": rows}).json()["predictions"]
    assert same == [expected] * 3, "what stands for the columns is told row by row"
    assert "empty" in empty["error"]["message"]
    if name == "alpaca":
        row = {"instruction": "hi", "input": "you"}
        assert ask(front, {"rows": [row, {"text": "hi"}]}).json()["predictions"] == [
            *model([row], max_new_tokens=3),
            expected,
        ]


def test_turns_do_not_depend_on_those_of_other_rows(models: dict[str, str]) -> None:
    front = front_of(models["messages"], limits=LIMITS)
    odd = [{"role": "user", "content": "hi", "note": 5}, {"role": "assistant", "content": "yes", "note": {"a": "b"}}]
    rows: list[Any] = [{"messages": QUESTION}, {"messages": 5}, {"messages": odd}, {"messages": [1]}]
    good, number, other, items = ask(front, {"rows": rows}).json()["predictions"]
    assert good == ask(front, {"text": "hi"}).json()["prediction"]
    assert other == ask(front, {"rows": [{"messages": odd}]}).json()["predictions"][0] and other["num_tokens"]
    assert "is a number" in number["error"]["message"] and "[0]" in items["error"]["message"]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("messages", {"max_new_tokens": 4}, "an integer from 1 to 3 (--max-new-tokens)"),
        ("messages", {"max_new_tokens": 0}, "an integer from 1 to 3"),
        ("messages", {"max_new_tokens": True}, "max_new_tokens true"),
        ("text", {"max_new_tokens": 10**30}, "an integer from 0 to 3"),
        ("text", {"max_new_tokens": 1, "embeddings": True}, "two things"),
        ("text", {"text": "a" * (GROUP_CHARS + 1)}, "32,769 characters"),
        ("messages", {"text": "a" * (GROUP_CHARS + 1)}, "32,769 characters"),
    ],
)
def test_refusals_say_what_to_do(models: dict[str, str], name: str, body: dict[str, Any], told: str) -> None:
    found = ask(front_of(models[name], limits=LIMITS), {"text": "hi", **body})
    assert found.status_code == 422 and told in found.json()["error"]["message"]


def test_a_text_is_continued_only_when_that_is_asked_for(models: dict[str, str]) -> None:
    front = front_of(models["text"], limits=LIMITS)
    assert ask(front, {"text": "hi"}).json()["prediction"].keys() == {"loss", "num_tokens"}
    assert "generated" in ask(front, {"text": "hi", "max_new_tokens": 2}).json()["prediction"]


@pytest.mark.parametrize("name", TASKS)
def test_the_example_of_the_description_is_answered(models: dict[str, str], name: str) -> None:
    front = front_of(models[name], limits=LIMITS)
    content = openapi(check_model(models[name], ()), LIMITS)["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert ask(front, content["application/json"]["example"]).status_code == 200
    assert "max_new_tokens" in json.dumps(content) and "max_new_tokens" in ask(front, None, "/docs").text


def test_little_is_generated_at_once_so_that_others_take_turns() -> None:
    backend = Recorded()
    how = How(Decoding(max_new_tokens=GROUP_TOKENS // 4))
    long, alone = [f"long {number}" for number in range(20)], How(Decoding(max_new_tokens=GROUP_TOKENS + 1))
    assert batched(backend, [(long, how), (["short"], how), (["a", "b"], alone)]) == [long, ["short"], ["a", "b"]]
    assert max(map(len, backend.groups)) == 4 and ["a"] in backend.groups
    assert any("short" in group for group in backend.groups[:4])


def test_a_threshold_is_part_of_the_hash(models: dict[str, str], tmp_path: Path) -> None:
    model = check_model(models["text"], ())
    path = Path(models["text"], "raytrain.json")
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), "threshold": 0.25}))
        tuned = check_model(models["text"], ())
    finally:
        path.write_text(before)
    assert tuned.hash != model.hash == check_model(models["text"], ()).hash
    assert tuned.about()["threshold"] == 0.25 and "threshold" not in model.about()
