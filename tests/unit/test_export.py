"""best/ as a Transformers user meets it: it loads, a long text does not break it, and its card says what it is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import tiny_run
from tiny import TINY_BERT, tiny_tokenizer

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.data.prepared import Manifest, SplitInfo
from raytrain.models.card import COUNTS, model_card
from raytrain.models.tokenizer import load_tokenizer
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.labels import label_state
from raytrain.training.export import describe, save_description, save_tokenizer, update_card
from raytrain.training.records import JsonlWriter

LONG = "a good film " * 3334  # 10,000 words, and the model knows 128 positions
LABELS = ["negative", "positive"]
TAGS = ["O", "B-LOC", "B-PER"]


def export(config: RunConfig, labels: list[str], folder: Path) -> Path:
    """The files of best/, of a model that has not been trained."""
    best = folder / "best"
    task = make_task(config.task, config.data.max_length)
    task.build_model(config.model, label_state(labels), config.training).save_pretrained(best)  # type: ignore[operator]
    save_tokenizer(config, str(best))
    splits = {split: SplitInfo(37, 400, 2, 1, [], "") for split in ("train", "validation", "test")}
    facts = describe(config, Manifest("f", label_state(labels), 0, splits, "0123abcd"), step=51, epoch=1)
    save_description(facts, Storage(str(folder)), str(best))
    return best


def tagging_run(folder: Path) -> RunConfig:
    return parse_config(
        {
            "name": "tags",
            "task": {"kind": "token_classification", "labels": TAGS},
            "model": {"config": TINY_BERT, "tokenizer": tiny_tokenizer(folder / "tokenizer")},
            "data": {"train": {"path": "train.conll"}},
        }
    )


def usage(best: Path, **given: str) -> Any:
    """What the code in the model card gives, which is run as it stands there but for its texts."""
    code = re.findall(r"```python\n(.*?)```", (best / "README.md").read_text(), re.DOTALL)[0]
    code = code.replace("path/to/this/folder", str(best)).replace('print(model("..."))', "result = model(text)")
    names: dict[str, Any] = dict(given)
    exec(code, names)
    return names["result"]


def test_the_documented_pipeline_takes_a_long_text(tmp_path: Path) -> None:
    best = export(tiny_run(tmp_path, "reviews"), LABELS, tmp_path)
    assert usage(best, text=LONG)[0]["label"] in LABELS


def test_the_documented_pipeline_of_tags_takes_a_long_text(tmp_path: Path) -> None:
    best = export(tagging_run(tmp_path), TAGS, tmp_path)
    assert {entity["entity_group"] for entity in usage(best, text=LONG)} <= {"LOC", "PER"}


def test_the_tokenizer_cuts_at_the_length_of_the_training(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    config = tiny_run(tmp_path, "reviews", "data.max_length=24")
    best = export(config, LABELS, tmp_path)
    assert len(AutoTokenizer.from_pretrained(best)(LONG, truncation=True)["input_ids"]) == 24
    assert len(Tokenizer.from_file(str(best / "tokenizer.json")).encode(LONG).ids) == 24
    shared = load_tokenizer(config.model)  # goes on encoding other data
    assert shared.model_max_length == 128
    assert len(shared("good " * 100)["input_ids"]) == 102
    assert len(AutoTokenizer.from_pretrained(best)("good " * 100)["input_ids"]) == 102  # truncation is asked for


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    internal = "training.communication.environment={NCCL_SOCKET_IFNAME: inner0}"
    config = tiny_run(tmp_path, "reviews", "data.max_length=24", internal, "training.epochs=7")
    best = export(config, LABELS, tmp_path)
    page = (best / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-classification")
    for said in (
        "Trained from random weights with raytrain 0.1.0",
        "after step 51 (epoch 1)",
        "`negative`, `positive`",
        "| train | `train.parquet` | 37 | 400 | 2 | 1 |",
        "`0123abcd`",
        "epochs: 7",
        "cuts texts at 24 tokens",
        "transformers 5",
    ):
        assert said in page
    assert "inner0" not in page + (best / "raytrain.json").read_text()
    assert "storage_path" not in page
    assert str(tmp_path) not in page, "the folders of the author are nobody's business"
    assert str(tmp_path) in (best / "raytrain.json").read_text()


def test_the_card_keeps_what_is_no_folder_of_the_author(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "reviews")
    facts = describe(config, Manifest("f", label_state(LABELS), 0, {}, "c"), step=51, epoch=1)
    facts["base_model"] = {"path": "/home/ada/models/minilm", "is_folder": True, "revision": None}
    facts["data"] = {
        "train": {"paths": ["/home/ada/a-*.csv", "s3://b/c.csv", "0.1 of train"], **dict.fromkeys(COUNTS, 1)}
    }
    facts["config"]["model"]["path"] = "/home/ada/models/minilm"
    facts["config"]["data"]["test"] = {"path": ["/home/ada/t.csv", "hub/name"]}
    facts["config"]["task"] = {"kind": "python", "args": {"words": ["/home/ada/w.txt"], "mark": "/", "n": 3}}
    page = model_card(facts, {})
    assert "/home/ada" not in page
    for kept in ("`minilm`", "`a-*.csv`<br>`s3://b/c.csv`<br>`0.1 of train`", "t.csv", "hub/name", "w.txt", "mark: /"):
        assert kept in page, kept


def test_the_card_has_the_results_of_this_model_only(tmp_path: Path) -> None:
    best = export(tiny_run(tmp_path, "reviews"), LABELS, tmp_path)
    assert "## Results" not in (best / "README.md").read_text()
    rows = JsonlWriter(Storage(str(tmp_path)), "evals.jsonl")
    rows.write({"step": 51, "split": "validation", "time": 1.0, "accuracy": 0.75})
    rows.write({"step": 102, "split": "validation", "time": 2.0, "accuracy": 0.5})
    rows.write({"step": 51, "split": "test", "time": 3.0, "accuracy": 0.7})
    rows.write({"step": 51, "split": "/data/other.parquet", "time": 4.0, "accuracy": 0.1})
    rows.close()
    update_card(Storage(str(tmp_path)), "best")
    assert (
        "| metric | validation | test |\n| --- | --- | --- |\n| accuracy | 0.7500 | 0.7000 |\n\n"
        in (best / "README.md").read_text()
    )


@pytest.mark.parametrize(("path", "is_named"), [("owner/model", True), ("local", False)])
def test_a_hub_is_told_of_a_base_model_that_it_can_have(tmp_path: Path, path: str, is_named: bool) -> None:
    config = tiny_run(tmp_path, "reviews")
    splits = {"train": SplitInfo(37, 400, 2, 1, [], "")}
    facts = describe(config, Manifest("f", label_state(LABELS), 0, splits, "c"), step=51, epoch=1)
    facts["base_model"] = {"path": path, "is_folder": not is_named, "revision": "v2"}
    page = model_card(facts, {})
    assert f"Fine-tuned from `{path}`, revision `v2`" in page
    assert ("base_model" in yaml.safe_load(page.split("---")[1])) == is_named
