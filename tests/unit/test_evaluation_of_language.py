"""`raytrain eval MODEL --data` for language models, whose rows become several samples: the numbers are those of the
evaluation of a training."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from chat_templates import QWEN3, TINY_CHAT, chat_tokenizer
from rich.console import Console
from saved_models import save_best
from test_evaluation_of_data import Alone, evaluated
from tiny import TINY_BERT, TINY_GPT, byte_tokenizer, context, make_reviews, tiny_tokenizer

from raytrain.config.io import parse_config
from raytrain.data.items import EvalBatch
from raytrain.data.readers.base import ROW
from raytrain.inference.card import find_model, read_card
from raytrain.inference.evaluation_page import write_page
from raytrain.inference.judging import Judging, judge_rows
from raytrain.inference.predictor import Predictor
from raytrain.tasks.base import BatchContext, Metrics
from raytrain.tasks.predicting import PLAIN
from raytrain.tasks.token_scores import TokenScores
from raytrain.terminal.evaluate import print_evaluation
from raytrain.training.evaluate import evaluate

TEXTS = ["a fine film", "é", "no story, no plot and no ending at all", "xy", "café au lait: 5 €, 𝄞"]
ONE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nyes"}]
TWO = [*ONE, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "no"}]
DOCUMENTS = pa.table({"text": TEXTS, "kind": ["even", "odd"] * 2 + ["even"]})
ROWS = {
    "causal_lm": DOCUMENTS,
    "chat": pa.Table.from_pylist([{"messages": one, "kind": "chat"} for one in (TWO, ONE, TWO)]),
    "masked_lm": pa.table({"text": [one["text"] for one in make_reviews(9, 0)], "kind": ["a"] * 9}),
}


def config_of(kind: str, folder: Path) -> Any:
    task: dict[str, Any] = {"kind": kind}
    model: dict[str, Any] = {"config": {**TINY_GPT, "initializer_range": 0.3}, "tokenizer": byte_tokenizer(folder)}
    if kind == "chat":
        task |= {"format": "messages", "chat_template": QWEN3}
        model = {"config": {**TINY_CHAT, "initializer_range": 0.3}, "tokenizer": chat_tokenizer(folder)}
    if kind == "masked_lm":
        model = {"config": {**TINY_BERT, "initializer_range": 0.3}, "tokenizer": tiny_tokenizer(folder)}
    data = {"train": {"path": "unused"}, "max_length": 400 if kind == "chat" else 8}
    return parse_config({"name": "lm", "task": task, "model": model, "data": data})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ROWS}
    return {kind: save_best(config_of(kind, folder / "tokenizer"), {}, folder) for kind, folder in folders.items()}


def in_training(model: str, rows: pa.Table) -> tuple[Metrics, int]:
    """The metrics as an evaluation makes them of padded batches of three, and the number of samples."""
    predictor = Predictor.load(read_card(find_model(model)), device="cpu")
    task: Any = predictor.task
    table = task.encode(rows, predictor.tokenizer, {}).table
    batches = []
    for begin in range(0, len(table), 3):
        part, ids = table.slice(begin, 3), np.arange(begin, min(begin + 3, len(table)))
        about = BatchContext({}, "test", ids, 0, ids, 0, context(3).pad_token_id)
        batches.append(EvalBatch(task.collate(part, about), False, ids))
    alone: Any = Alone()
    return evaluate(predictor.model, batches, task, {}, torch.device("cpu"), alone, lambda: None), len(table)


@pytest.mark.parametrize("kind", ["causal_lm", "chat"])
def test_the_numbers_are_those_of_the_evaluation_of_a_training(
    models: dict[str, str], tmp_path: Path, kind: str
) -> None:
    rows = ROWS[kind]
    expected, num_samples = in_training(models[kind], rows)
    assert num_samples > len(rows)
    found = evaluated(models[kind], rows, by="kind")
    assert found.num_samples == len(rows)
    assert found.metrics == pytest.approx(expected.values, rel=1e-6)
    assert ("bits_per_byte" in found.metrics) == (kind == "causal_lm")
    assert sum(one.num_rows for one in found.slices) == len(rows)
    for one in found.slices:
        of_slice = in_training(models[kind], rows.filter(pa.array([k == one.value for k in rows["kind"].to_pylist()])))
        assert one.metrics == pytest.approx(of_slice[0].values, rel=1e-6)
    assert found.worst[0].text and found.worst[0].true is None is found.worst[0].predicted
    shown = Console(width=300)
    with shown.capture() as printed:
        print_evaluation(shown, found)
    assert "predicted" not in printed.get() and ": " + found.worst[0].text.split()[0] in printed.get()
    page = write_page(found, str(tmp_path / "page.html"))
    assert "predicted:" not in Path(page).read_text()


def test_masks_of_an_evaluation_of_rows_are_those_of_a_prediction(models: dict[str, str]) -> None:
    predictor = Predictor.load(read_card(find_model(models["masked_lm"])), device="cpu")
    told = predictor.predict_rows(ROWS["masked_lm"]).table.to_pylist()
    total = sum(row["loss"] * row["num_tokens"] for row in told) / sum(row["num_tokens"] for row in told)
    assert evaluated(models["masked_lm"], ROWS["masked_lm"]).metrics["loss"] == pytest.approx(total, rel=1e-5)


def test_a_file_of_predictions_tells_the_loss_once(models: dict[str, str]) -> None:
    predictor = Predictor.load(read_card(find_model(models["causal_lm"])), device="cpu")
    rows = DOCUMENTS.append_column(ROW, pa.array(range(len(DOCUMENTS))))
    found = judge_rows([predictor], rows, Judging(), PLAIN)
    assert [*found.predicted.table.column_names, *found.added.column_names] == ["loss", "num_tokens"]


def test_sums_without_tokens_or_bytes_have_no_ratio() -> None:
    scores = TokenScores(knows_bytes=True)
    assert {name: float(one) for name, one in scores.values_of(np.zeros(4)).items()} == {
        "perplexity": 0.0,
        "bits_per_byte": 0.0,
        "token_accuracy": 0.0,
    }
    assert scores.compute().values == {}
