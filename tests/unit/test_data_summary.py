"""What `raytrain data show` and the report say of prepared data: each row counted once, with examples. No Ray."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import write_config
from test_dedup import edited, in_this_process, make_config, texts, write_rows
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.config import RunConfig
from raytrain.data.prepare import prepare
from raytrain.data.stages.examples import MOST_CHARACTERS, STAGES_NAME, Example, Examples, excerpts
from raytrain.data.summary import SUMMARY_NAME, DataSummary, summarize
from raytrain.errors import ConfigError
from raytrain.reports.html import build_report
from raytrain.storage import Storage

EVIL = "<script>alert(1)</script>"
BROKEN = "{broken"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)
    monkeypatch.setattr("raytrain.runs.run.ray_session", lambda *_: nullcontext())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Two training sources of 40 rows, in which each stage finds something, and a test file of 20."""
    some, test = texts(80, 1), texts(20, 2)
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(some)]
    for i in range(1, 15, 2):
        rows[i]["text"] = f"<b>{rows[i]['text']}</b> {EVIL}"
    rows[2]["text"], rows[4]["text"], rows[6]["text"] = "short", f"{some[0]} drop", f"{some[0]} fail"
    rows[8]["text"], rows[10]["text"] = None, test[3]
    rows[41]["text"], rows[42]["text"] = some[40], edited(some[44])
    rows[43]["label"] = EVIL
    rows[20]["label"] = None
    paths = [write_rows(tmp_path / "data" / f"{i}.jsonl", rows[i * 40 : i * 40 + 40]) for i in (0, 1)]
    with open(paths[0], "a") as file:
        file.write(BROKEN + "\n")
    held_out = write_rows(tmp_path / "data" / "test.jsonl", [{"text": text, "label": "a"} for text in test])
    (tmp_path / "rules_of_show.py").write_text(
        "def rule(row):\n"
        "    text = row['text'] or ''\n"
        "    assert 'fail' not in text\n"
        "    return None if text.endswith('drop') else row\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    clean = {"html": True, "min_words": 2, "custom": "rules_of_show:rule"}
    return make_config(
        tmp_path,
        {"test": held_out},
        f"data.train.sources={json.dumps([{'path': path} for path in paths])}",
        on_error="quarantine",
        max_quarantined=1,
        clean=clean,
        train={"sources": [{"path": path} for path in paths]},
        dedup={"exact": True, "near": True},
    )


def test_each_row_is_counted_once_and_each_stage_has_examples(config: RunConfig) -> None:
    found = summarize(config, prepare(config))
    assert found.adds_up
    rows = {(one.split, one.source.partition(" (")[0]): one for one in found.rows}
    train = rows["train", ""]
    assert (train.read, train.quarantined, train.dropped, train.duplicates) == (81, 4, 2, 3)
    of_sources = [rows["train", f"data.train.sources.{i}"] for i in (0, 1)]
    for name in ("read", "kept", "quarantined", "dropped", "duplicates"):
        assert sum(getattr(one, name) for one in of_sources) == getattr(train, name)
    stages = {one["name"]: one for one in found.stages if one["split"] == "train"}
    lost = {name: (one["changed"], one["dropped"], one["quarantined"]) for name, one in stages.items()}
    assert lost == {
        "read": (0, 0, 1),
        "clean.html": (7, 0, 0),
        "clean.length": (0, 1, 0),
        "clean.custom": (0, 1, 1),
        "dedup.leakage": (0, 1, 0),
        "dedup.exact": (0, 1, 0),
        "dedup.near": (0, 1, 0),
        "encode": (0, 0, 2),
    }
    shown = {(one["stage"], one["what"]): one for one in found.examples if one["split"] == "train"}
    what = ("changed", "dropped", "quarantined")
    done = {(name, what[i]) for name, counts in lost.items() for i, count in enumerate(counts) if count}
    assert set(shown) == done, "an example of everything that was done, and of nothing else"
    html = shown["clean.html", "changed"]
    assert html["text"].startswith("<b>") and EVIL in html["text"] and "<" not in html["other"]
    assert len([one for one in found.examples if one["stage"] == "clean.html"]) == 5
    pair = shown["dedup.near", "dropped"]
    assert pair["place"].endswith("1.jsonl:5") and pair["partner"].endswith("1.jsonl:3") and 0.8 <= pair["jaccard"] < 1
    assert pair["text"].split()[0] == pair["other"].split()[0] and pair["text"] != pair["other"]
    assert shown["read", "quarantined"]["text"].strip() == BROKEN
    assert shown["clean.custom", "quarantined"]["place"].endswith("0.jsonl:7")


def test_labels_lengths_and_padding(config: RunConfig) -> None:
    store = prepare(config)
    found = summarize(config, store)
    labels = {one["label"]: one["splits"] for one in found.labels}
    assert set(labels) == {"a", "b", EVIL, ""} and labels[""]["train"]["quarantined"] == 1
    of_train = [one["train"] for one in labels.values()]
    split = found.rows[0]
    for what in ("read", "quarantined"):
        assert sum(one[what] for one in of_train) == getattr(split, what) - 1, "all but the row that can't be parsed"
    for what in ("dropped", "duplicates", "kept"):
        assert sum(one[what] for one in of_train) == getattr(split, what)
    counts = store.manifest.splits["train"].label_counts
    assert {label: one["train"]["kept"] for label, one in labels.items() if label} == counts
    for lengths in found.lengths:
        assert sum(lengths.counts) == lengths.num_samples == store.manifest.splits[lengths.split].num_samples
        assert lengths.percentiles == sorted(lengths.percentiles) and lengths.mean <= lengths.percentiles[-1]
    assert found.padding is None or 0 < found.padding < 1
    assert DataSummary.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_padding_is_that_of_the_configured_batch(tmp_path: Path) -> None:
    rows = [{"text": " ".join(["film"] * (2 if i % 2 else 8)), "label": "ab"[i // 2 % 2]} for i in range(64)]
    path = write_rows(tmp_path / "data" / "a.jsonl", rows)
    options = ("training.global_batch_size=8", "training.micro_batch_size=8", "data.dedup.leakage=off")
    config = make_config(tmp_path, {"train": path}, *options)
    store = prepare(config)
    assert summarize(config, store).padding == pytest.approx(0.0)  # samples of one length are together
    mixed = make_config(tmp_path, {"train": path}, *options, "data.group_by_length=false")
    assert 0.2 < summarize(mixed, store).padding < 0.4  # 4 of 4 or 10 tokens: 0.3


def test_what_does_not_add_up_is_seen(config: RunConfig) -> None:
    found = summarize(config, prepare(config))
    assert not replace(found, num_listed=found.num_listed - 1).adds_up
    assert not replace(found, rows=[replace(found.rows[0], read=80), *found.rows[1:]]).adds_up
    assert not replace(found, stages=[{**found.stages[0], "rows_out": 79}, *found.stages[1:]]).adds_up


def test_a_store_without_examples_is_shown(config: RunConfig) -> None:
    store = prepare(config)
    (Path(store.root) / STAGES_NAME).write_text('{"examples": [{"who": 1}]')
    found = summarize(config, store)
    assert found.adds_up and not found.examples and {one["seconds"] for one in found.stages} == {None}


def test_examples_come_in_the_order_of_the_rows() -> None:
    examples = Examples()
    for ordinal in (3, 0, 2, 1):
        examples.add([Example("train", "s", "dropped", f"{ordinal}:{row}", "") for row in (1, 2)], ordinal)
    examples.add([Example("train", "r", "dropped", "later", "")])
    assert [one.place for one in examples] == ["later", "0:1", "0:2", "1:1", "1:2", "2:1"]


def test_long_texts_are_cut_around_the_change() -> None:
    before, after = "x" * 5_000 + "<b>y", "x" * 5_000 + "y"
    cut = excerpts(before, after)
    assert all(len(one) <= MOST_CHARACTERS + 6 for one in cut) and cut[0].endswith("<b>y") and cut[1].endswith("xy")


def shown(config: RunConfig, folder: Path, *words: str) -> str:
    prepare(config)
    result = CliRunner().invoke(app, ["data", "show", write_config(config, folder), *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_on_the_terminal_and_as_a_page(tmp_path: Path, config: RunConfig) -> None:
    output = shown(config, tmp_path)
    assert re.search(r"\nclean.length +80 +0 +1 +0 +79 ", output)
    assert "\ntrain: dedup.near, dropped\n" in output and "Jaccard 0." in output and "\n- <b>" in output
    assert "add up" not in output
    output = shown(config, tmp_path, "--html")
    page = (tmp_path / "a-data.html").read_text()
    assert f"page    {tmp_path}/a-data.html" in output
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "do not add up" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "self-contained"
    assert page.count("Jaccard 0.") == 1 and "sample 0 of train" in page
    assert "sample 1 of test" in shown_page(config, tmp_path, "--split", "test", "--rows", "2")


def shown_page(config: RunConfig, folder: Path, *words: str) -> str:
    shown(config, folder, "--html", "--output", str(folder / "page.html"), *words)
    return (folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--html", "--row", "a:1"], "--row and --html are given"),
        (["--html", "--output", "data"], "--output data: this is a folder; give the name of a file"),
        (["--output", "a.html"], "--output names the file of --html"),
        (["--html", "--output", "0.jsonl/a.html"], "--output 0.jsonl/a.html: the page can't be written"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, config: RunConfig, words: list[str], message: str) -> None:
    (tmp_path / "0.jsonl").write_text("")
    with pytest.raises(ConfigError, match=message):
        shown(config, tmp_path, *words)


def test_the_report_has_the_same_section(tmp_path: Path, config: RunConfig) -> None:
    found = summarize(config, prepare(config))
    run = tmp_path / "run"
    run.mkdir()

    def report(content: Any) -> str:
        (run / SUMMARY_NAME).write_text(json.dumps(content))
        return Path(build_report(Storage(str(run)))).read_text()

    page = report(found.to_json())
    assert "<h3>stages</h3>" in page and "clean.custom" in page and EVIL not in page
    for other in ({}, [], {**found.to_json(), "more": 1}):
        assert "<h3>stages</h3>" not in report(other), "of another version"
