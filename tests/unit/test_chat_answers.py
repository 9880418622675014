"""A model that chats: its config is made whole before a run, its answers, and rows that are set aside."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_templates import GEMMA, TINY_CHAT, chat_tokenizer
from saved_models import save_best

import raytrain
from raytrain.config import LeakagePolicy, RunConfig
from raytrain.config.io import parse_config
from raytrain.data.encode import Encoder, report_of
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.stages.duplicates import Duplicates
from raytrain.errors import ConfigError, DataError
from raytrain.runs.preflight import resolve
from raytrain.tasks import make_task

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
LONG = [{"role": "user", "content": "hi " * 100}, {"role": "assistant", "content": "yes"}]


def config_of(folder: Path, rows: list[dict[str, Any]], task: dict[str, Any], **data: Any) -> RunConfig:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    raw = {
        "name": "chat",
        "storage_path": str(folder / "runs"),
        "task": {"kind": "chat", **task},
        "model": {"config": {**TINY_CHAT, "initializer_range": 0.2}, "tokenizer": chat_tokenizer(folder / "tokenizer")},
        "data": {"train": {"path": str(path)}, "max_length": 120, **data},
    }
    return parse_config(raw)


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": TALK, "id": 1}, "messages"),
        ({"prompt": "hi", "completion": "yes"}, "prompt_completion"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "sharegpt"),
        ({"instruction": "hi", "input": "", "output": "yes"}, "alpaca"),
    ],
)
def test_the_format_is_found_by_the_columns(tmp_path: Path, row: dict[str, Any], format: str) -> None:
    assert resolve(config_of(tmp_path, [row], {})).task.format == format


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"question": "hi", "answer": "yes"}, "'question', 'answer', which fits none of them (messages: messages; "),
        ({"prompt": "hi", "completion": "yes", "messages": TALK}, "which fits messages and prompt_completion"),
    ],
)
def test_columns_that_fit_no_format_or_several_are_refused(tmp_path: Path, row: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(config_of(tmp_path, [row], {}))
    assert word in str(error.value)
    assert "Set task.format" in str(error.value)


def test_the_config_of_a_run_holds_the_template_and_not_its_file(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(GEMMA)
    resolved = resolve(config_of(tmp_path, [{"messages": TALK}], {"chat_template": str(path)}))
    assert resolved.task.chat_template == GEMMA
    assert resolve(resolved) == resolved
    with pytest.raises(ConfigError, match="task.chat_template .*nowhere: this file can't be read"):
        resolve(config_of(tmp_path, [{"messages": TALK}], {"chat_template": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize(
    ("too_long", "on_error", "outcome"),
    [
        ("refuse", "fail", "error"),
        ("refuse", "quarantine", "quarantined"),
        ("set_aside", "fail", "quarantined"),
        ("cut", "fail", "error"),  # no answer of it fits
    ],
)
def test_a_conversation_that_is_too_long(tmp_path: Path, too_long: str, on_error: str, outcome: str) -> None:
    rows = [{"messages": TALK}, {"messages": LONG}, {"messages": TALK}]
    config = config_of(tmp_path, rows, {"format": "messages", "too_long": too_long}, on_error=on_error)
    (read_task,) = read_tasks(check_sources(config.data, make_task(config.task, config.data.max_length)))
    none = Duplicates(LeakagePolicy.OFF, str(tmp_path / "store"))
    encoder = Encoder(config.model_dump(mode="json", exclude_unset=True), {}, str(tmp_path / "store"), 100, none)
    report = report_of(encoder({"ordinal": 0, "task": json.dumps(asdict(read_task))}))
    if outcome == "error":
        assert f"{read_task.file.path}, row 2: has 342 tokens, more than data.max_length 120" in report["error"]
        assert "Raise data.max_length, or set task.too_long" in report["error"]
        return
    assert "error" not in report
    quarantined = [json.loads(line) for file in (tmp_path / "store").rglob("*.jsonl") for line in file.open()]
    assert [(one["row"], one["code"]) for one in quarantined] == [(2, "too_long")]
    assert report["counts"]["train"]["quarantined"] == 1
    (item,) = report["written"]
    assert pq.read_table(tmp_path / "store" / item["part"]["name"]).num_rows == 2


def test_augmentation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would change the tokens that task.kind=chat has to predict"):
        config_of(tmp_path, [{"messages": TALK}], {}, augment={"word_swap": 0.1})


class TestAnswers:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> raytrain.LoadedModel:
        folder = tmp_path_factory.mktemp("model")
        config = config_of(folder, [{"messages": TALK}], {"format": "messages"})
        return raytrain.load(save_best(config, {}, folder), device="cpu")

    def test_a_question_a_prompt_and_turns(self, model: raytrain.LoadedModel) -> None:
        asked = model("hi", max_new_tokens=8)
        assert set(asked) == {"loss", "num_tokens", "answer"}
        assert (asked["loss"], asked["num_tokens"]) == (None, 0)
        rows = [{"prompt": "hi"}, {"prompt": "and?"}]
        answers = model(rows, max_new_tokens=8)
        assert answers[0] == asked
        assert answers[1]["answer"] != asked["answer"]
        (whole,) = model([{"messages": TALK}], max_new_tokens=8)
        assert whole["answer"] == asked["answer"]
        assert whole["loss"] > 0
        assert whole["num_tokens"] == 4
        assert model("[hi] {there}", max_new_tokens=8)["answer"]  # no JSON, but a question

    def test_answers_without_being_asked_for_a_number_of_tokens(self, model: raytrain.LoadedModel) -> None:
        with pytest.raises(ConfigError, match="max_new_tokens 256 leaves no room"):
            model("hi")

    def test_what_can_not_be_answered(self, model: raytrain.LoadedModel) -> None:
        with pytest.raises(DataError, match=r"data\[1\]: a text holds '<\|im_end\|>'"):
            model(["hi", "<|im_end|>"], max_new_tokens=8)
        with pytest.raises(DataError, match=r"data\[0\]: the question is empty"):
            model([" "], max_new_tokens=8)
        with pytest.raises(ConfigError, match="no column 'messages'"):
            model([{"question": "hi"}], max_new_tokens=8)
