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

    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)
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
        assert f"labels: {row['label']!r}\n" in shown.output
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


def shown_of(tmp_path: Path, train: list[str], test: list[str], *overrides: str) -> tuple[str, str]:
    """What `data show` and `plan` print for texts with these labels."""
    for split, labels in (("train", train), ("test", test)):
        rows = [{"text": f"good film {i}", "label": label} for i, label in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"data={{train: {{path: {tmp_path}/train.jsonl}}, test: {{path: {tmp_path}/test.jsonl}}}}"
    config = tiny_run(tmp_path, "a", files, *overrides)
    prepare(config)
    path = write_config(config, tmp_path)
    outputs = []
    for command in (["data", "show", path], ["plan", path]):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    return outputs[0], outputs[1]


def test_labels_that_the_training_data_hardly_has_are_noted(tmp_path: Path) -> None:
    """They are trained or scored like the others, and their scores can only be bad."""
    train = ["pos"] * 30 + ["neg"] * 30 + ["odd"] + ["few"] * 9 + ["ten"] * 10
    outputs = shown_of(tmp_path, train, ["pos", "neg", "new", "new", "only"])
    for output in outputs:
        assert "note: labels that occur fewer than 10 times in the training data" in output
        assert ": 'odd' (once), 'few' (9 times)\n" in output
        assert "does not have can't be learned: 'new' (2 times in test), 'only' (once in test)\n" in output


def test_a_declared_label_that_no_row_has_is_noted(tmp_path: Path) -> None:
    labels = "task={kind: sequence_classification, labels: [pos, neg, none]}"
    for output in shown_of(tmp_path, ["pos", "neg"] * 10, ["pos"], labels):
        assert "does not have can't be learned: 'none'\n" in output and "fewer than" not in output


def test_blanks_around_labels_are_seen(tmp_path: Path) -> None:
    output, _ = shown_of(tmp_path, ["pos ", "pos"] * 10, ["pos"])
    assert "labels  'pos', 'pos '\n" in output and "labels: 'pos '\n" in output
