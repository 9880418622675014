"""A language model's answer piece by piece, and a conversation with it on a pipe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from saved_models import save_best
from typer.testing import CliRunner

import raytrain
from raytrain.cli.main import app
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, DataError
from raytrain.inference.card import find_model, read_card
from raytrain.inference.completing import Asked, complete
from raytrain.inference.predictor import Predictor
from raytrain.runs.preflight import check

TURNS = [{"role": "user", "content": "hi"}]


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


@pytest.fixture(scope="module")
def ask(folders: dict[str, str]) -> Callable[..., Any]:
    predictor = Predictor.load(read_card(find_model(folders["chat"])), (), "cpu")

    def asked(prompt: Any = TURNS, most: int = 8, **options: Any) -> tuple[str, Any]:
        pieces = list(complete(predictor, Asked(prompt, most, **options)))
        assert [piece.finish_reason is None for piece in pieces] == [*[True] * (len(pieces) - 1), False]
        return "".join(piece.text for piece in pieces), pieces[-1]

    return asked


def test_pieces_join_to_what_predict_answers(folders: dict[str, str], ask: Callable[..., Any]) -> None:
    text, last = ask()
    assert text == raytrain.load(folders["chat"], device="cpu")("hi", max_new_tokens=8)["answer"] and text
    assert last.completion_tokens <= 8 and last.prompt_tokens > 2
    assert ask(most=1)[1].finish_reason == "length"


def test_an_answer_ends_before_a_stop_text_that_spans_pieces(ask: Callable[..., Any]) -> None:
    text, _ = ask()
    stop = text[2:4]
    stopped, last = ask(stop=("never", stop))
    assert stopped == text[: text.index(stop)] and last.finish_reason == "stop"


def test_draws_depend_on_seed_and_number_and_top_p(ask: Callable[..., Any]) -> None:
    drawn = ask(temperature=1.5, seed=1)[0]
    assert drawn == ask(temperature=1.5, seed=1)[0]
    assert drawn != ask(temperature=1.5, seed=2)[0] and drawn != ask(temperature=1.5, seed=1, number=1)[0]
    for least in ({"top_p": 1e-9}, {"top_p": 0.0}, {"temperature": 1e-320}, {"temperature": 1e-40, "top_p": 0.5}):
        only = ask(**{"temperature": 1.5, "seed": 1, **least})[0]
        assert only == ask()[0], "only the most probable token is left"


@pytest.mark.parametrize(
    ("prompt", "most", "told"),
    [
        ([], 3, "no turns"),
        ([*TURNS, {"role": "assistant", "content": "a"}], 3, "the last turn is the assistant's"),
        ([*TURNS, *TURNS], 3, "user follows user"),
        ("a" * 5000, 3, "positions of the model: shorten it"),
        ("half \ud83d", 3, "half of a surrogate pair"),
        ([{"role": "user", "content": "half \ud83d"}], 3, "half of a surrogate pair"),
    ],
)
def test_refusals(ask: Callable[..., Any], prompt: Any, most: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ask(prompt, most)


@pytest.mark.parametrize("kind", ["chat", "causal_lm"])
def test_a_conversation_on_a_pipe(folders: dict[str, str], kind: str) -> None:
    def said(text: str | bytes) -> list[str]:
        found = CliRunner().invoke(app, ["chat", folders[kind], "--max-new-tokens", "4"], input=text)
        assert found.exit_code == 0, found.output
        return found.output.splitlines()

    once = said("hi\n")
    assert said("hi\n\n/reset\nhi\n/quit\nhi\n") == [*once, *once]
    assert "/quit" in said("/help\n")[0]
    assert len(said(b"\xff in no encoding\nhi\n")) >= 2, "a byte that is no text ends nothing"


def test_a_text_that_no_tokenizer_takes_is_refused_with_its_place(folders: dict[str, str]) -> None:
    texts = ["fine", "half \ud83d"]
    for data in (
        texts,
        pd.DataFrame({"prompt": pd.Series(texts, dtype=object)}),
        [{"messages": [{"role": "user", "content": t}]} for t in texts],
    ):
        with pytest.raises(DataError, match=r"data\[1\]: a text holds half of a surrogate pair"):
            raytrain.load(folders["chat"], device="cpu")(data, max_new_tokens=2)


def test_chat_refuses_a_model_that_says_nothing(tmp_path: Path) -> None:
    from saved_models import model_config

    folder = save_best(model_config(tmp_path, {"kind": "sequence_classification"}), {"labels": ["a", "b"]}, tmp_path)
    found = CliRunner().invoke(app, ["chat", folder])
    assert isinstance(found.exception, ConfigError) and "generates no text" in str(found.exception)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"sample_prompts": ["fine", "a <|im_end|>"]}, r"task\.sample_prompts\[1\]: a text holds '<|im_end|>'"),
        ({"sample_prompts": [[*TURNS, *TURNS]]}, r"task\.sample_prompts\[0\]: .*user follows user"),
        ({"sample_prompts": ["half \ud83d"]}, r"task\.sample_prompts\[0\]: a text holds half of a surrogate pair"),
        (
            {"sample_prompts": ["fine"], "sample_max_new_tokens": 5000},
            r"task\.sample_max_new_tokens: .* leaves no room",
        ),
    ],
)
def test_samples_that_can_not_be_made_are_refused_before_a_run_starts(
    tmp_path: Path, task: dict[str, Any], told: str
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"messages": [*TURNS, {"role": "assistant", "content": "a"}]}) + "\n")
    raw: dict[str, Any] = {"name": "lm", "storage_path": str(tmp_path), "task": {"kind": "chat", **task}}
    raw["model"] = {"config": TINY_CHAT, "tokenizer": chat_tokenizer(tmp_path / "tokenizer")}
    raw["data"] = {"train": {"path": str(train)}, "max_length": 120}
    with pytest.raises(ConfigError, match=told):
        check(parse_config(raw))
