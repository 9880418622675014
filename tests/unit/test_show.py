"""`raytrain data show`: text and labels that a person can read, and no Ray when the data is prepared. No Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run, write_config
from tiny import make_reviews, write_conll
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.data.encode import report_of
from raytrain.data.prepare import find_prepared, prepare
from raytrain.data.show import decode_samples


def in_this_process(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
    """What Ray Data does for PREPARE, row by row."""
    for row in rows:
        yield report_of(function(row))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("raytrain.data.prepare._run", in_this_process)
    monkeypatch.setattr("raytrain.runs.run.ray_session", refuse)


def test_prepared_data_is_shown_as_text_without_ray(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    path = write_config(config, tmp_path)
    with pytest.raises(AssertionError, match="Ray is started"):
        CliRunner().invoke(app, ["data", "prepare", path], catch_exceptions=False)
    assert find_prepared(config) is None
    prepare(config)
    shown = CliRunner().invoke(app, ["data", "show", path, "--rows", "2"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    for row in make_reviews(2, 0):
        assert f"text: {row['text']}\n" in shown.output
        assert f"labels: {row['label']}\n" in shown.output
    assert not (tmp_path / "runs" / "a").exists(), "a look at the data is no run"


def test_tags_stand_beside_their_words(tmp_path: Path) -> None:
    path = write_conll(tmp_path / "a.conll", 20, 3)
    task = "task={kind: token_classification, document_context: false}"
    config = tiny_run(tmp_path, "a", task, f"data={{train: {{path: {path}}}}}")
    words = open(path).read().splitlines()[2].split()
    sample = decode_samples(prepare(config), config, "train", 1)[0]
    assert sample["labels"][0] == f"{words[0].lower()}/{words[-1]}"
    assert sample["text"].split()[0] == words[0].lower()


def test_several_labels_are_named(tmp_path: Path) -> None:
    lines = [{"text": "good film", "label": ["b", "a"]}, {"text": "bad", "label": []}, {"text": "it", "label": ["c"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = "task={kind: sequence_classification, multi_label: true}"
    config = tiny_run(tmp_path, "a", task, f"data={{train: {{path: {tmp_path}/a.jsonl}}}}")
    samples = decode_samples(prepare(config), config, "train", 3)
    assert [sample["labels"] for sample in samples] == [["a", "b"], [], ["c"]]
