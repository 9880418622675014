"""Where a model and its tokenizer are looked for, before anything is loaded. No network: the hub is a function."""

import time
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run
from tiny import TINY_BERT, tiny_tokenizer

from raytrain.config import ModelConfig
from raytrain.errors import ConfigError
from raytrain.models import tokenizer
from raytrain.models.tokenizer import check_tokenizer
from raytrain.runs.preflight import resolve


def answer(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Let the hub answer a look-up with an exception, or a function's result."""

    def model_info(*_: Any, **__: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome()

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


def refusal(**model: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_tokenizer(ModelConfig(**model))
    return str(refused.value)


def test_a_name_that_is_neither_folder_nor_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    monkeypatch.chdir(tmp_path)
    answer(monkeypatch, OfflineModeIsEnabled("off"))
    text = refusal(path="models/minilm")
    assert text.startswith("model.path models/minilm: there is no such folder")
    assert f"{tmp_path}/models/minilm" in text and "HF_HUB_OFFLINE" in text
    answer(monkeypatch, OSError("Name or service not known"))
    assert "can't be reached (Name or service not known)" in refusal(config=TINY_BERT, tokenizer="some/tokenizer")
    answer(monkeypatch, HFValidationError("a space"))
    assert "it is not a hub id either" in refusal(path="models/mini lm")
    assert "no such folder" in refusal(path="a/b/c")


def test_the_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "HUB_TIMEOUT_S", 0.1)
    answer(monkeypatch, lambda: time.sleep(5))
    started_at_s = time.monotonic()
    assert "did not answer within 0.1 s" in refusal(path="some/model")
    assert time.monotonic() - started_at_s < 4


def test_what_the_hub_or_its_cache_has_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, lambda: "a model")
    check_tokenizer(ModelConfig(path="some/model"))
    answer(monkeypatch, OSError("no network"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path))
    check_tokenizer(ModelConfig(path="some/model"))


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_tokenizer(tmp_path / "words")
    config = resolve(tiny_run(tmp_path, "a", "model.tokenizer=~/words"))
    assert config.model.tokenizer == f"{tmp_path}/words"
    check_tokenizer(config.model)
    config = resolve(tiny_run(tmp_path, "a", "model.config=null", "model.path=~/gone"))
    assert config.model.path == f"{tmp_path}/gone"
    assert resolve(tiny_run(tmp_path, "a", "model.tokenizer=some/name")).model.tokenizer == "some/name"
