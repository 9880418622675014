"""Texts encoded by the Rust part of a tokenizer alone come out as when the tokenizer is called."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from raytrain.models.encode_texts import _is_plain, encode_texts
from tests.tiny import tiny_tokenizer

TEXTS = [
    "plain words",
    "Caf\u00e9 \u4e2d\u6587 \U0001f600",
    "[SEP] inside [MASK]",
    " ",
    "a\tb\n c",
    "x" * 300,
    "good film " * 90,
]
PAIRS = ["other", "", "[CLS]", "b", "", "yes " * 200, "no"]


def byte_level() -> Any:
    """A tokenizer as GPT-2's, with special tokens around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "</s>", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    ends = [(token, backend.token_to_id(token)) for token in special[:2]]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="[SEP]")


class OwnCode(BertTokenizerFast):
    """A tokenizer with Python code for texts."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._encode_plus([one.replace("plain", "own") for one in text], *args, **kwargs)


@pytest.fixture(scope="module", params=["word pieces", "byte level", "own code"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "byte level":
        return byte_level()
    folder = tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))
    return (OwnCode if request.param == "own code" else BertTokenizerFast).from_pretrained(folder)


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["one text", "pairs"])
@pytest.mark.parametrize("splits", [False, True], ids=["special tokens", "split special tokens"])
def test_as_when_the_tokenizer_is_called(tokenizer: Any, pairs: list[str] | None, splits: bool) -> None:
    assert _is_plain(tokenizer) != isinstance(tokenizer, OwnCode)
    tokenizer.split_special_tokens = splits
    expected = tokenizer(TEXTS, pairs, return_token_type_ids=True)
    others = {"truncation": True, "max_length": 4, "padding": "max_length", "split_special_tokens": not splits}
    tokenizer(TEXTS[:2], **others)  # leaves its settings in the Rust part
    ids, segments = encode_texts(tokenizer, TEXTS, pairs)
    assert ids == expected["input_ids"] and segments == expected["token_type_ids"]
    assert encode_texts(tokenizer, [], None if pairs is None else []) == ([], [])
