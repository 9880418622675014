"""Words of byte-level tokenizers are cut as in running text, where a blank stands before them."""

from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raytrain.config import TokenClassificationConfig
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED

TEXT = "a cat sat in Paris and in Oslo and it was good"
PRE_TOKENIZERS = {
    "byte-level": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),  # GPT-2, RoBERTa, ModernBERT, Llama 3
    "byte-level with a prefix": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "sentencepiece": pre_tokenizers.Metaspace,  # T5, XLM-R, Gemma
    "words": pre_tokenizers.Whitespace,  # BERT
}


@pytest.fixture(params=list(PRE_TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = PRE_TOKENIZERS[request.param]()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        [TEXT] * 20, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")


def encode(tokenizer: Any, sentences: list[str], **options: Any) -> list[dict[str, Any]]:
    config = TokenClassificationConfig(kind="token_classification", labels=["O"], **options)
    rows = [{"tokens": text.split(), "tags": ["O"] * len(text.split()), "document": 1} for text in sentences]
    table = pa.Table.from_pylist(rows)
    return make_task(config, 64).encode(table, tokenizer, {"labels": ["O"]}).table.to_pylist()


def test_words_are_the_tokens_of_the_running_text(tokenizer: Any) -> None:
    (sample,) = encode(tokenizer, [TEXT])
    assert sample["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert sum(label != IGNORED for label in sample["labels"]) == len(TEXT.split())


def test_sentences_of_a_document_follow_each_other(tokenizer: Any) -> None:
    (sample,) = encode(tokenizer, ["a cat sat", "in Paris"], document_context=True)
    assert sample["input_ids"] == tokenizer("a cat sat in Paris")["input_ids"]


def test_a_sentence_without_context_begins_a_text(tokenizer: Any) -> None:
    second = encode(tokenizer, ["a cat sat", "in Paris"])[1]
    assert second["input_ids"] == tokenizer("in Paris")["input_ids"]


def test_the_case_of_a_word_is_that_without_its_blank(tokenizer: Any) -> None:
    (sample,) = encode(tokenizer, ["a cat in Paris"], case_feature=True)
    starts = [place for place, label in enumerate(sample["labels"]) if label != IGNORED]
    assert [sample["token_type_ids"][place] for place in starts] == [0, 0, 0, 1]
