"""Each source row is traced to its sample or to why it is in none, and each sample back to its rows. No Ray."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from running import write_config
from test_dedup import edited, in_this_process, labelled, make_config, texts, write_rows
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.config import LeakagePolicy, RunConfig
from raytrain.data.lineage import fate_of, pairs, source_of
from raytrain.data.prepare import prepare
from raytrain.data.prepared import PreparedStore
from raytrain.data.show import decode_sample, source_texts
from raytrain.elastic.bad_step import samples_of
from raytrain.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Two training files, with a leak, a duplicate, a near duplicate and a bad row, and a test file."""
    some, test = texts(60, 1), texts(20, 2)
    some[5], some[45], some[50] = test[3], edited(some[6]), some[7]
    first, second = labelled(some[:30]), labelled(some[30:])
    first[10] = {"text": " ", "label": "a"}
    paths = [write_rows(tmp_path / "data" / f"{i}.jsonl", rows) for i, rows in enumerate((first, second))]
    held_out = write_rows(tmp_path / "data" / "test.jsonl", labelled(test))
    options = {
        "on_error": "quarantine",
        "max_quarantined": 1,
        "dedup": {"exact": True, "near": True},
        "validation": {"fraction": 0.2},
    }
    config = make_config(tmp_path, {"train": paths, "test": held_out})
    raw = config.model_dump(mode="json")
    raw["data"].update(options)
    return RunConfig.model_validate(raw)


def test_each_row_is_in_one_place(config: RunConfig) -> None:
    store, seen = prepare(config), {}
    for path in (*config.data.train.path, config.data.test.path):
        for row in range(1, 31 if path != config.data.test.path else 21):
            (line,), samples = fate_of(store, f"{path}:{row}")
            assert line.startswith(f"{path}:{row} ")
            for source in samples:
                assert (source.file, source.rows) == (path, [row])
                assert source_of(store, source.split, source.sample) == source
                seen.setdefault(source.split, []).append(source.sample)
            assert ("is in sample" in line) == bool(samples)
    for split, info in store.manifest.splits.items():
        assert sorted(seen[split]) == list(range(info.num_samples))


def test_why_a_row_is_in_no_sample(config: RunConfig) -> None:
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": None})})
    store, (first, second), test = prepare(config), config.data.train.path, config.data.test.path
    why = {place: fate_of(store, place)[0][0].partition(" ")[2] for place in (f"{first}:6", f"{first}:11")}
    assert why[f"{first}:6"] == f"was removed: nearly equals {test}:4 (dedup.leakage, Jaccard 1.00)"
    assert why[f"{first}:11"] == "was quarantined: text is empty (bad_input)"
    assert f"nearly equals {first}:7 (dedup.near, Jaccard 0." in fate_of(store, f"{second}:16")[0][0]
    assert f"nearly equals {first}:8 (dedup.exact, Jaccard 1.00)" in fate_of(store, f"{second}:21")[0][0]
    assert fate_of(store, "data/1.jsonl:21") == fate_of(store, f"{second}:21"), "the end of a path will do"


def test_a_leak_that_is_kept_is_told_with_its_sample(tmp_path: Path, config: RunConfig) -> None:
    dedup = config.data.dedup.model_copy(update={"leakage": LeakagePolicy.REPORT})
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": None, "dedup": dedup})})
    lines, (source,) = fate_of(prepare(config), f"{config.data.train.path[0]}:6")
    assert "is in sample 5 of train" in lines[0] and "Jaccard 1.00), and was kept" in lines[1] and source.sample == 5


def test_a_query_is_named_by_its_database(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "a#b.db") as database:
        database.execute("create table t(id integer primary key, text, label)")
        database.executemany("insert into t(text, label) values (?, ?)", [(one, one[0]) for one in texts(10, 3)])
    uri = f"sqlite:///{tmp_path}/a#b.db"
    config = make_config(tmp_path, {"train": uri})
    raw = config.model_dump(mode="json")
    raw["data"]["train"] |= {"query": "select * from t", "order_by": "id"}
    (line,), _ = fate_of(prepare(RunConfig.model_validate(raw)), f"{uri}:4")
    assert line == f"{uri}#train:4 is in sample 3 of train"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", ["'nowhere'", "give FILE:ROW"]),
        ("a.jsonl:x", ["give FILE:ROW"]),
        ("a.jsonl:1", ["a.jsonl is none of the source files", "0.jsonl", "test.jsonl"]),
        ("0.jsonl:31", ["no row of", "0.jsonl begins there"]),
        ("0.jsonl:0", ["no row of"]),
    ],
)
def test_a_place_that_is_not_there(config: RunConfig, place: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        fate_of(prepare(config), place)
    assert all(word in str(refused.value) for word in ["--row", *words])


@pytest.mark.parametrize(("split", "sample"), [("validation", 10**6), ("train", -1), ("nowhere", 0)])
def test_a_sample_that_is_not_there(config: RunConfig, split: str, sample: int) -> None:
    with pytest.raises(ConfigError, match="allowed|has the samples 0 to"):
        source_of(prepare(config), split, sample)


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_sentences_that_share_a_sample(tmp_path: Path, fraction: float | None) -> None:
    """Each sentence is in the sample whose words include its own, though others between them are elsewhere."""
    rows = [{"tokens": [f"w{i}", "good", "film"], "tags": ["O", "B-LOC", "O"]} for i in range(60)]
    rows[20]["tokens"][0] = ""  # three columns and no word: set aside
    path = write_rows(tmp_path / "data" / "a.conll", rows)
    validation = {} if fraction is None else {"validation": {"fraction": fraction}}
    task = "task={kind: token_classification, document_context: true}"
    config = make_config(
        tmp_path, {"train": path}, task, on_error="quarantine", max_quarantined=1, max_length=17, **validation
    )
    store, found = prepare(config), {}
    for split, info in store.manifest.splits.items():
        starts = store.row_group_starts(split)
        lengths = [
            row["sentence_lengths"]
            for group in range(len(starts) - 1)
            for row in store.read_row_group(split, group).to_pylist()
        ]
        for sample in range(info.num_samples):
            source = source_of(store, split, sample)
            assert len(source.rows) == len(lengths[sample]) > 0
            found.update(dict.fromkeys(source.rows, source))
        assert max(map(len, lengths)) > 1
    lines = [1 + 4 * i for i in range(60) if i != 20]
    assert sorted(found) == lines
    for line in lines:
        assert fate_of(store, f"{path}:{line}")[1] == [found[line]]
    assert "was quarantined" in fate_of(store, f"{path}:{1 + 4 * 20}")[0][0]


def test_a_step_that_fails_names_the_rows_of_its_samples(config: RunConfig) -> None:
    store = prepare(config)
    message = samples_of(1, config, store.root)
    ids = [int(word) for word in re.findall(r"samples are ([\d, ]+) of", message)[0].split(", ")]
    assert len(ids) == config.training.global_batch_size == 8
    assert message.splitlines()[2:] == [f"  {source_of(store, 'train', sample)}" for sample in ids]
    for info in store.manifest.splits.values():
        for part in info.parts:
            (Path(store.root) / part.index_name).unlink()
    assert samples_of(1, config, store.root) == "\n".join(message.splitlines()[:2])


def test_an_index_that_is_damaged(config: RunConfig) -> None:
    store = prepare(config)
    part = store.manifest.splits["train"].parts[0]
    (Path(store.root) / part.index_name).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is damaged"):
        source_of(PreparedStore(store.root), "train", 0)


def shown(config: RunConfig, folder: Path, *words: str) -> str:
    prepare(config)
    result = CliRunner().invoke(app, ["data", "show", write_config(config, folder), *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_on_the_terminal(tmp_path: Path, config: RunConfig) -> None:
    store, test = prepare(config), config.data.test.path
    output = shown(config, tmp_path, "--row", f"{test}:4")
    assert f"{test}:4 is in sample 3 of test\n" in output and "\nsample 3\ntext: " in output
    output = shown(config, tmp_path, "--sample", "3", "--split", "test")
    assert f"sample 3 of test is from {test}:4\n" in output and "\nsample 3\ntext: " in output
    output = shown(config, tmp_path, "--pairs", "1")
    rules = store.manifest.splits["train"].num_removed
    assert set(rules) >= {"dedup.leakage", "dedup.near"}
    listed = ", ".join(f"{count} x {rule}" for rule, count in sorted(rules.items()))
    assert f"\nremoved {listed} from train; --pairs 10 shows pairs\n" in output
    (pair,) = pairs(store, 1)
    text = source_texts(config, pair.places)
    assert len(text) == 2 and all(f"{place}: {text[place]}\n" in output for place in pair.places)
    assert f"dedup.{pair.rule}, Jaccard {pair.jaccard:.2f}\n" in output


def test_what_was_removed_is_told_once(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raytrain.runs.run.ray_session", lambda *_: nullcontext())
    monkeypatch.setattr("raytrain.runs.run.check_model", lambda *_: None)
    words = ["data", "prepare", write_config(config, tmp_path)]
    output = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "\nremoved " in output and output.count("dedup.near") == 1
    assert "rows removed" not in caplog.text and "1 row quarantined; see" in caplog.text


def test_texts_of_rows_far_down_in_large_files(tmp_path: Path) -> None:
    some = texts(5_000, 1, num_words=4)
    for ending in ("parquet", "jsonl"):
        path = write_rows(tmp_path / "data" / f"a.{ending}", labelled(some))
        config = make_config(tmp_path, {"train": path})
        places = [f"{path}:{row}" for row in (4_999, 1, 9_999)]
        assert source_texts(config, places) == {places[0]: some[4_998], places[1]: some[0]}


def test_texts_of_rows_in_weighted_sources(tmp_path: Path) -> None:
    some = texts(20, 1)
    paths = [write_rows(tmp_path / "data" / f"{i}.jsonl", labelled(some[i::2])) for i in (0, 1)]
    sources = ", ".join(f"{{path: {path}, weight: 1}}" for path in paths)
    config = make_config(tmp_path, {"train": paths}, "data.train.path=null", f"data.train.sources=[{sources}]")
    assert source_texts(config, [f"{paths[1]}:3"]) == {f"{paths[1]}:3": some[5]}


def test_a_sample_is_shown_as_it_is_stored(config: RunConfig) -> None:
    store = prepare(config)
    row = json.loads(Path(config.data.test.path).read_text().splitlines()[7])
    described: dict[str, Any] = decode_sample(store, config, "test", 7)
    assert described["labels"] == row["label"]


def test_one_question_at_a_time(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="--row and --sample are given"):
        shown(config, tmp_path, "--row", "a:1", "--sample", "1")
