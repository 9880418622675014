"""Masked language models: what is masked, that it belongs to the sample and the epoch, and the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import TINY_BERT, byte_tokenizer, context, make_reviews
from torch.nn import functional

from raytrain.config import MaskedLmConfig, ModelConfig, RunConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED
from raytrain.tasks.predicting import PLAIN
from raytrain.training.evaluate import to_tensors

ROWS = pa.table({"text": [row["text"] for row in make_reviews(60, seed=0)]})
CPU = torch.device("cpu")
START, END, MASK = 0, 1, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with several tokens in a word: pieces of two letters."""
    torch.set_num_threads(1)  # more would wait for each other: the models are tiny
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("pieces")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"##{a}" for a in letters), *(f"##{a}{b}" for a in letters[:9] for b in letters)]
    words = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", *pieces]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", END), ("[CLS]", START))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(path))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    return load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=folder))


def task_of(max_length: int = 24, **options: Any) -> Any:
    return make_task(MaskedLmConfig(kind="masked_lm", **options), max_length)


def samples_of(task: Any, tokenizer: Any) -> pa.Table:
    return task.encode(ROWS, tokenizer, {}).table


def test_documents_are_cut_and_nothing_is_left_out(tokenizer: Any) -> None:
    inputs = task_of(10).encode_inputs(ROWS, tokenizer)
    for row, text in enumerate(ROWS["text"].to_pylist()):
        of_row = inputs.table.filter(pa.array(inputs.first_rows == row))["input_ids"].to_pylist()
        assert all(ids[0] == START and ids[-1] == END and len(ids) <= 10 for ids in of_row)
        assert [i for ids in of_row for i in ids[1:-1]] == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("whole_words", [True, False])
def test_what_is_chosen(tokenizer: Any, whole_words: bool) -> None:
    task = task_of(200, whole_words=whole_words)
    texts = ROWS["text"].to_pylist()
    rows = pa.table({"text": [*texts[:9], *(" ".join(texts[i : i + 9]) for i in range(0, 54, 3))]})
    table = task.encode(rows, tokenizer, {}).table
    plain = [np.array(ids) for ids in table["input_ids"].to_pylist()]
    words = [np.array(ids) for ids in table["word_ids"].to_pylist()]
    counts, shares = dict.fromkeys(("masked", "kept", "other"), 0), []
    for epoch in range(20):
        batch = task.collate(table, context(len(table), epoch=epoch, pad_token_id=3))
        for ids, of_word, given, labels in zip(plain, words, batch["input_ids"], batch["labels"], strict=True):
            chosen = np.flatnonzero(labels != IGNORED)
            assert len(chosen) >= 1
            assert (of_word[chosen] >= 0).all(), "a special token or padding is predicted"
            assert (labels[chosen] == ids[chosen]).all()
            rest = np.setdiff1d(np.arange(len(ids)), chosen)
            assert (given[rest] == ids[rest]).all()
            if whole_words:
                assert not set(of_word[chosen]) & set(of_word[rest]), "a word is chosen in part"
            if len(ids) > 100:  # of a shorter text one word may be more
                shares.append(len(chosen) / (len(ids) - 2))
            counts["masked"] += (given[chosen] == MASK).sum()
            counts["kept"] += (given[chosen] == ids[chosen]).sum()
            counts["other"] += ((given[chosen] != ids[chosen]) & (given[chosen] != MASK)).sum()
    total = sum(counts.values())
    assert counts["masked"] / total == pytest.approx(0.8, abs=0.02)
    assert counts["kept"] / total == pytest.approx(0.1, abs=0.02)
    assert np.mean(shares) == pytest.approx(0.15, abs=0.01)


def test_masks_belong_to_the_sample_and_the_epoch(tokenizer: Any) -> None:
    task = task_of()
    table = samples_of(task, tokenizer)

    def labels(rows: list[int], **changes: Any) -> list[list[int]]:
        ids = np.array(rows)
        batch = task.collate(table.take(pa.array(rows)), context(len(rows), ids=ids, pad_token_id=3, **changes))
        lengths = [len(table["input_ids"][i].as_py()) for i in rows]
        return [row[:length].tolist() for row, length in zip(batch["labels"], lengths, strict=True)]

    together = labels([0, 1, 2, 3])
    assert [labels([i])[0] for i in range(4)] == together
    assert labels([3, 1])[::-1] == [together[1], together[3]]
    assert labels([0, 1, 2, 3], epoch=1) != together
    assert labels([0, 1, 2, 3], seed=1) != together
    assert labels([0, 1, 2, 3], copies=np.ones(4, int)) != together
    assert labels([0, 1, 2, 3], split="validation") == labels([0, 1, 2, 3], split="validation")


def build(folder: str) -> Any:
    torch.manual_seed(0)
    model = ModelConfig(config={**TINY_BERT, "vocab_size": 320, "initializer_range": 0.3}, tokenizer=folder)
    return task_of().build_model(model, {}, TrainingConfig(dropout=0.0))


def test_the_loss_is_that_of_the_chosen_tokens(folder: str, tokenizer: Any, tmp_path: Path) -> None:
    task, model = task_of(), build(folder).eval()
    table = samples_of(task, tokenizer).slice(0, 9)
    batch = to_tensors(task.collate(table, context(9, pad_token_id=3)), CPU)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    loss = task.loss_sum(model, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    scores = task.scores({})
    with torch.no_grad():
        scores.update(task.predict(model, batch)[1], task.targets(task.collate(table, context(9, pad_token_id=3))))
    values = scores.compute().values
    assert set(values) == {"perplexity", "token_accuracy"}
    weight = task.target_weight({name: tensor.numpy() for name, tensor in batch.items()})
    assert values["perplexity"] == pytest.approx(np.exp(wanted.item() / weight), rel=1e-5)
    task.save_model(model, model.state_dict(), str(tmp_path))
    again = task.load_model(str(tmp_path), ModelConfig(path="unused"), {}, TrainingConfig()).eval()
    assert task.loss_sum(again, batch).item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_prediction_does_not_depend_on_the_rows_beside_it(folder: str, tokenizer: Any) -> None:
    task, model = task_of(), build(folder).eval()
    told = []
    for rows in (ROWS.slice(0, 5), ROWS.slice(3, 1)):
        inputs = task.encode_inputs(rows, tokenizer).table
        with torch.no_grad():
            outputs = task.infer(model, to_tensors(task.collate_inputs(inputs, 3), CPU))
        told.append(task.decode(outputs, inputs, rows, {}, PLAIN).to_pylist())
    assert told[1][0]["num_tokens"] == told[0][3]["num_tokens"]
    assert told[1][0]["loss"] == pytest.approx(told[0][3]["loss"], abs=2e-6)


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_augmentation_of_what_is_predicted_is_refused(kind: str) -> None:
    raw = {
        "name": "lm",
        "task": {"kind": kind},
        "model": {"path": "unused"},
        "data": {"train": {"path": "unused"}, "augment": {"word_drop": 0.1}},
    }
    with pytest.raises(ValueError, match=f"tokens that task.kind={kind} has to predict"):
        RunConfig.model_validate(raw)


def test_what_can_not_be_is_refused(folder: str, tmp_path: Path) -> None:
    no_mask = load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=byte_tokenizer(tmp_path)))
    with pytest.raises(ConfigError, match="no token for masks"):
        task_of().encode_inputs(ROWS, no_mask)
    with pytest.raises(ConfigError, match="no masked language model of type 'gpt2'"):
        task_of().build_model(ModelConfig(config={"model_type": "gpt2"}, tokenizer=folder), {}, TrainingConfig())
