"""data.clean on a real Ray: the store says what became of each row, and a second command holds it to the limits."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raytrain.config import RunConfig
from raytrain.data.prepare import find_prepared, prepare
from raytrain.data.summary import summarize
from raytrain.errors import DataError
from tests.tiny import TINY_BERT, make_reviews, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("local_ray")

RULES: dict[str, Any] = {"html": True, "white_space": True, "min_words": 2}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Makes configs on two files of 30 training rows, of which a third is too short, and on one of 10 test rows."""
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    rows = []
    for i, row in enumerate(make_reviews(60, 0)):
        text = ("short", f"<b>{row['text']}</b>", row["text"])[i % 3]
        rows.append(json.dumps({**row, "text": text}) + "\n")
    for name, some in (("a", rows[:30]), ("b", ["{broken\n", *rows[30:]]), ("test", rows[:10])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))

    def make(cache: str = "prepared", **data: Any) -> RunConfig:
        files = {"train": {"path": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]}}
        more = {"test": {"path": str(tmp_path / "test.jsonl")}, "on_error": "quarantine", "max_quarantined": 0.1}
        more["dedup"] = {"leakage": "off"}  # the test rows are training rows too
        return RunConfig.model_validate(
            {
                "name": "test",
                "task": {"kind": "sequence_classification"},
                "model": {"config": TINY_BERT, "tokenizer": tokenizer},
                "data": {**files, **more, "max_length": 12, "prepared_path": str(tmp_path / cache), **data},
            }
        )

    return make


def test_the_store_says_what_became_of_each_row(tmp_path: Path, config: Any) -> None:
    store = prepare(config(clean=RULES))
    train, test = store.manifest.row_counts["train"], store.manifest.row_counts["test"]
    assert (train.read, train.quarantined, train.dropped, train.kept) == (61, 1, 20, 40)
    assert (test.read, test.quarantined, test.dropped, test.kept) == (10, 0, 0, 10)
    assert store.manifest.splits["train"].num_samples == 40
    assert store.manifest.remarks[0] == (
        "train: 61 rows read, 1 quarantined, 20 dropped (min_words 20), 40 kept; changed: html 20"
    )
    root = Path(store.root)
    removed = pq.read_table(root / "removed.parquet").to_pylist()
    assert [(row["file"], row["row"]) for row in removed] == [
        (str(tmp_path / f"{name}.jsonl"), row + (name == "b")) for name in "ab" for row in range(1, 31, 3)
    ]
    assert {(row["split"], row["stage"], row["rule"]) for row in removed} == {("train", "clean", "min_words")}
    names = {path.name for path in root.iterdir()}
    files = {"manifest.json", "removed.parquet", "leaks.parquet", "stages.json"}
    assert names == files | {"train", "test", "index", "quarantine", "lengths-train.bin", "lengths-test.bin"}
    summary = summarize(config(clean=RULES), store)
    assert summary.adds_up and {one["stage"] for one in summary.examples} == {"read", "clean.html", "clean.length"}
    again = prepare(config(cache="other", clean=RULES))
    assert again.manifest.content == store.manifest.content
    assert (Path(again.root) / "removed.parquet").read_bytes() == (root / "removed.parquet").read_bytes()


def test_a_limit_ends_the_command_before_and_after_the_data_is_prepared(tmp_path: Path, config: Any) -> None:
    strict = config(clean={**RULES, "max_dropped": 0.3})
    for prepares in (True, False):
        with pytest.raises(DataError, match=r"drops 20 of 61 rows of data.train, .*max_dropped 0.3.*min_words 20"):
            prepare(strict) if prepares else find_prepared(strict)
        if prepares:
            (work,) = (tmp_path / "prepared").glob("*")  # another limit continues there
            assert prepare(config(clean=RULES)).root == str(work.with_suffix(""))
    with pytest.raises(DataError, match=r"drops 60 of 61 rows of data.train.*min_words 60"):  # and not: no labels
        prepare(config(clean={"min_words": 999}))
    with pytest.raises(DataError, match="1 of 61 rows of data.train can't be used.*max_quarantined 0.01") as refusal:
        prepare(config(cache="other", clean=RULES, max_quarantined=0.01))
    assert "1 x unreadable: malformed JSON" in str(refusal.value) and refusal.value.exit_code == 2
