"""`raytrain predict` on real Ray: order, resuming, rows that can't be used, and the files that it writes."""

import csv
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import run_cli, start_cli
from saved_models import model_config, save_best
from tiny import make_reviews, make_sentences, write_parquet

import raytrain
from raytrain.errors import ConfigError, DataError
from raytrain.inference import batch as batch_module
from raytrain.inference import pool as pool_module
from raytrain.inference.batch import Request, predict_source
from raytrain.inference.output import assemble, target_of
from raytrain.inference.pieces import PART, PieceWorker
from raytrain.storage import Storage


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = model_config(folder, {"kind": "sequence_classification"})
    return save_best(config, {"labels": ["negative", "positive"]}, folder)


def write_source(folder: Path, num_rows: int) -> tuple[list[dict[str, Any]], set[int]]:
    """A third of the rows in each of three files of different formats; (rows, numbers of those without a text)."""
    rows: list[dict[str, Any]] = [{"n": n, "text": row["text"]} for n, row in enumerate(make_reviews(num_rows, seed=3))]
    bad = set(random.Random(0).sample(range(num_rows), num_rows // 50))
    for number in bad:
        rows[number]["text"] = ""
    third = num_rows // 3
    folder.mkdir()
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["n", "text"])
        writer.writeheader()
        writer.writerows(rows[:third])
    (folder / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[third : 2 * third]))
    write_parquet(folder / "c.parquet", rows[2 * third :], row_group_size=100)
    return rows, bad


@pytest.mark.usefixtures("local_ray")
def test_rows_keep_their_order_and_finished_parts_are_kept(best: str, tmp_path: Path) -> None:
    _, bad = write_source(tmp_path / "source", 6000)
    out = tmp_path / "out.jsonl"
    request = Request(str(tmp_path / "source"), str(out), ("workers.max=1",))

    class Killed(Exception):
        pass

    class KillsAtHalf:
        """Ends the first command in its middle, as Ctrl-C would."""

        def prepared(self, done: int, total: int, rows_per_s: float) -> None:
            if done > 2000:
                raise Killed

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    with pytest.raises(Killed):
        predict_source(best, request, KillsAtHalf())  # type: ignore[arg-type]
    assert not out.exists()
    work = tmp_path / "out.jsonl.work"
    kept = {path.name: path.stat().st_ino for path in work.glob(f"*/*{PART}")}
    (folder,) = work.iterdir()
    (folder / "00000-0000000.refused.jsonl.1234.tmp").write_text("of a write that was cut off")
    notes: list[str] = []

    class Notes:
        def note(self, text: str) -> None:
            notes.append(text)
            now = {path.name: path.stat().st_ino for path in work.glob(f"*/*{PART}")}
            assert kept.items() <= now.items()

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    request = Request(str(tmp_path / "source"), str(out), ("workers.max=2",))
    found = predict_source(best, request, Notes())  # type: ignore[arg-type]
    assert notes and notes[0].startswith("continuing: ")
    assert (found.num_rows, found.num_refused) == (6000 - len(bad), len(bad))
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [int(row["n"]) for row in told] == [n for n in range(6000) if n not in bad]
    model = raytrain.load(best)
    alone = model([row["text"] for row in told[::97]])
    assert [row["predicted_label"] for row in told[::97]] == [row["predicted_label"] for row in alone]
    assert len({row["predicted_label"] for row in told}) == 2
    refused = [json.loads(line) for line in (tmp_path / "out.jsonl.quarantined.jsonl").read_text().splitlines()]
    assert [int(row["data"]["n"]) for row in refused] == sorted(bad)
    assert {Path(row["file"]).name for row in refused} == {"a.csv", "b.jsonl", "c.parquet"}
    assert all(row["reason"] == "text is empty" for row in refused)
    assert not work.exists()
    with pytest.raises(ConfigError, match="exists already"):
        predict_source(best, request)


@pytest.mark.usefixtures("local_ray")
def test_room_that_comes_later_is_used(best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a node joins: the command has begun with one worker, and there is work for more."""
    texts = [row["text"] for row in make_reviews(1000, seed=3)]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps({'text': texts[n % 1000], 'n': n})}\n" for n in range(8000)))
    started: list[bool] = []
    start = pool_module.Pool._start
    monkeypatch.setattr(pool_module.Pool, "_start", lambda self: (started.append(True), start(self))[1])
    monkeypatch.setattr(pool_module, "GROW_EVERY_S", 0.1)
    monkeypatch.setattr(batch_module, "_num_actors", lambda *_, **__: (1, 2))
    assert predict_source(best, Request(str(source), str(out))).num_rows == 8000
    assert [json.loads(line)["n"] for line in out.read_text().splitlines()] == list(range(8000))
    assert len(started) >= 2


def spec_of(best: str, source: Path, out: str, **options: Any) -> tuple[Any, list[str]]:
    """What a command gives its workers, and the read tasks."""
    from dataclasses import asdict

    from raytrain.data.listing import list_files
    from raytrain.data.sources import read_tasks
    from raytrain.inference.card import find_model, read_card
    from raytrain.inference.pieces import WorkSpec
    from raytrain.tasks.predicting import Decoding

    card = read_card(find_model(best))
    config = card.config((), str(source))
    assert config.data.test is not None
    tasks = read_tasks({"test": list_files(config.data.test, "data.test")})
    kept = options.pop("columns", None)
    spec = WorkSpec(card, (), kept, Decoding(**options), False, target_of(out).work.root, 1, False)
    return spec, [json.dumps(asdict(task)) for task in tasks]


def predict_here(best: str, source: Path, out: str, **options: Any) -> None:
    """The work of a command without Ray, one piece after the other, the last first."""
    spec, tasks = spec_of(best, source, out, **options)
    worker = PieceWorker(spec)
    assert not worker.load().error
    for number, task in enumerate(tasks):
        for piece in (1, 0, 2):
            done = worker.predict(number, task, piece)
            assert not done.error and done.is_end == (piece >= (len(pq_rows(source)) - 1) // 1024 + 1)
    target = target_of(out)
    parts = sorted(name for name in target.work.list_names() if name.endswith(PART))
    assemble(target, parts, [])


def pq_rows(source: Path) -> list[dict[str, Any]]:
    return pq.read_table(source).to_pylist()


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.csv", "out/"])
def test_each_format_has_all_rows_and_values(best: str, tmp_path: Path, name: str) -> None:
    texts = [row["text"] for row in make_reviews(1500, 1)]
    texts[:3] = ["a good\rfilm", 'a "good", film', "a dull\r\nplot\n"]
    rows = [{"text": text, "n": n, "tags": ["a", None], "score": n / 2} for n, text in enumerate(texts)]
    source = write_parquet(tmp_path / "rows.parquet", rows)
    out = f"{tmp_path}/{name}"
    predict_here(best, Path(source), out, probabilities=True)
    columns = ["text", "n", "tags", "score", "predicted_label", "probability"]
    columns += ["probability_negative", "probability_positive"]
    if name.endswith("csv"):
        with Path(out).open(newline="") as file:
            cells: list[dict[str, Any]] = list(csv.DictReader(file))
        found = [{**row, **{name: json.loads(row[name]) for name in ("n", "tags", "score")}} for row in cells]
    elif name.endswith("jsonl"):
        found = [json.loads(line) for line in Path(out).read_text().splitlines()]
    else:
        found = pq.read_table(out).to_pylist()
    assert list(found[0]) == columns
    given = pq_rows(Path(source))
    assert [{name: row[name] for name in ("text", "n", "tags", "score")} for row in found] == given


def test_sentences_of_a_document_stay_together(tmp_path: Path) -> None:
    """As in training, within the rows that are read at once, which are more than those of a piece elsewhere."""
    task = {"kind": "token_classification", "document_context": True}
    best = save_best(model_config(tmp_path, task, max_length=60), {"labels": ["O", "B-PER", "B-LOC"]}, tmp_path)
    rows = [
        {"tokens": [word for word, _ in words], "document": number // 40}
        for number, words in enumerate(make_sentences(1100, seed=2))
    ]
    source = write_parquet(tmp_path / "rows.parquet", rows)
    spec, (read_task,) = spec_of(best, Path(source), f"{tmp_path}/out.jsonl", columns=())
    worker = PieceWorker(spec)
    worker.load()
    assert worker.predict(0, read_task, 0).num_rows == 1100 and worker.predict(0, read_task, 1).is_end
    target = target_of(f"{tmp_path}/out.jsonl")
    assemble(target, [name for name in target.work.list_names() if name.endswith(PART)], [])
    told = [json.loads(line)["predicted_tags"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = raytrain.load(best)
    assert told == [row["predicted_tags"] for row in model(rows)]
    assert told != [row["predicted_tags"] for row in model([{**row, "document": n} for n, row in enumerate(rows)])]


def test_a_model_of_words_takes_texts(tmp_path: Path) -> None:
    task = {"kind": "token_classification"}
    best = save_best(model_config(tmp_path, task), {"labels": ["O", "B-PER", "B-LOC"]}, tmp_path)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in ("Ada is in Paris", "", "Paris")))
    spec, (read_task,) = spec_of(best, source, f"{tmp_path}/out.jsonl")
    worker = PieceWorker(spec)
    worker.load()
    done = worker.predict(0, read_task, 0)
    assert (done.num_rows, done.num_refused) == (2, 1)
    assemble(target_of(f"{tmp_path}/out.jsonl"), ["00000-0000000.arrow"], [])
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = raytrain.load(best)
    assert [row["predicted_tags"] for row in told] == [model(row["text"])["predicted_tags"] for row in told]
    assert set(told[0]) == {"text", "predicted_tags", "predicted_entities"}


def test_a_late_column_of_the_name_of_a_prediction(best: str, tmp_path: Path) -> None:
    """JSON Lines are looked at in part before anything starts: such rows can't be used, and the others can."""
    lines: list[dict[str, Any]] = [{"text": "a good film"} for _ in range(5)]
    lines[2]["predicted_label"], lines[3]["predicted_label"] = "mine", None
    source, out = tmp_path / "rows.jsonl", f"{tmp_path}/out.parquet"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    spec, (read_task,) = spec_of(best, source, out)
    worker = PieceWorker(spec)
    worker.load()
    done = worker.predict(0, read_task, 0)
    assert (done.num_rows, done.num_refused, done.error) == (4, 1, "")
    (refused,) = [
        json.loads(line) for line in target_of(out).work.read_bytes("00000-0000000.refused.jsonl").splitlines()
    ]
    assert (refused["file"], refused["row"], refused["data"]) == (str(source), 3, lines[2])
    assert "has a value in predicted_label, a column that the prediction adds" in refused["reason"]
    assemble(target_of(out), ["00000-0000000.arrow"], [])
    assert pq.read_table(out).column_names == ["text", "predicted_label", "probability"]


def test_columns_of_several_types_become_one(best: str, tmp_path: Path) -> None:
    """JSON Lines may mix types in a column, from row to row and from chunk to chunk."""
    lines = [{"text": "a good film", "x": 1 if n < 3000 else "one", "y": [n]} for n in range(4500)]
    lines[7]["x"], lines[4200]["z"] = {"a": 1}, 5
    lines.insert(9, {"text": "", "x": 1.5})  # a row that can't be used, among values of several types
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    spec, (task,) = spec_of(best, source, f"{tmp_path}/out.parquet", columns=("x", "y", "z"))
    worker = PieceWorker(spec)
    worker.load()
    for piece in range(6):
        worker.predict(0, task, piece)
    target = target_of(str(tmp_path / "out.parquet"))
    assemble(target, sorted(name for name in target.work.list_names() if name.endswith(PART)), [])
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["x"].to_pylist() == ["1"] * 7 + ['{"a": 1}'] + ["1"] * 2992 + ["one"] * 1500
    assert table["y"].to_pylist() == [[n] for n in range(4500)]
    assert [n for n, value in enumerate(table["z"].to_pylist()) if value is not None] == [4200]
    assert pa.types.is_integer(table["z"].type)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "nothing.csv"}, "no such file"),
        ({"source": "empty.csv"}, r"is empty \(0 bytes\)"),
        ({"source": "header.csv"}, "has no rows"),
        ({"source": "other.csv"}, r"has no column 'text'.*did you mean 'texts'"),
        ({"out": "out.xls"}, "the ending tells the format"),
        ({"out": "good.csv"}, "is the input itself"),
        ({"out": "p.csv", "source": "p.csv.quarantined.jsonl"}, r"quarantined\.jsonl is written beside"),
        ({"out": "p.csv"}, r"p\.csv\.quarantined\.jsonl exists already"),
        ({"source": "twice.csv"}, "2 columns named 'n'"),
        ({"out": "empty.csv"}, "exists already"),
        ({"out": "empty.csv/", "overwrite": True}, "is a file: give the name of a folder"),
        ({"out": "kept", "source": "good.csv"}, "the ending tells the format"),
        ({"out": "kept/", "overwrite": True}, r"also holds precious\.txt"),
        ({"out": "busy.csv"}, "busy.csv.work is in the way"),
        ({"columns": ("m",)}, "no such column; it has n, text"),
        ({"source": "told.csv"}, "'predicted_label' already"),
        ({"overrides": ("training.epochs=2",)}, "the model was trained with it"),
        ({"overrides": ("data.test.path=other.csv",)}, "INPUT names the files.*encoding, .*query, .order_by,"),
        ({"overrides": ("data.test.delimiter=ab",)}, "a delimiter is one character"),
        ({"overrides": ("task.text_column=body",)}, "has no column 'body'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(best: str, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    files = {"empty": "", "header": "n,text\n", "other": "n,texts\n1,a\n", "good": "n,text\n1,a film\n"}
    files["twice"] = "n,text,n\n1,a,2\n"
    files["told"] = "text,predicted_label\na,b\n"
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "p.csv.quarantined.jsonl").write_text('{"text": "a film"}\n')
    for folder in ("kept", "busy.csv.work"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious.txt").write_text("mine")
    given = {"source": "good.csv", "out": "out.csv", **change}
    given |= {name: f"{tmp_path}/{given[name]}" for name in ("source", "out")}
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((ConfigError, DataError), match=said):
        predict_source(best, Request(**given))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same(best: str, tmp_path: Path) -> None:
    write_source(tmp_path / "source", 60_000)
    words = ["predict", best, str(tmp_path / "source"), "--out"]
    code, output = run_cli(*words, str(tmp_path / "whole.parquet"))
    assert code == 0, output
    process = start_cli(*words, str(tmp_path / "out.parquet"))
    work = tmp_path / "out.parquet.work"
    deadline_s = time.monotonic() + 120
    while len(list(work.glob(f"*/*{PART}"))) < 20 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    num_done = len(list(work.glob(f"*/*{PART}")))
    assert 20 <= num_done < 59 and not (tmp_path / "out.parquet").exists()
    code, output = run_cli(*words, str(tmp_path / "out.parquet"))
    assert code == 0 and "continuing: " in output, output
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "out"))
    assert one.drop_columns("probability").equals(other.drop_columns("probability"))
    assert Storage(str(tmp_path)).list_names() == [
        *("out.parquet", "out.parquet.quarantined.jsonl", "source"),
        *("whole.parquet", "whole.parquet.quarantined.jsonl"),
    ]
