"""The parts of a prediction: what becomes of them when reading fails, the source changes or commands meet. No Ray."""

import gzip
import itertools
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from saved_models import model_config, save_best
from tiny import make_reviews

from raytrain.config import SourceConfig
from raytrain.data import work_folder
from raytrain.data.listing import list_files
from raytrain.data.parallel import in_threads
from raytrain.data.readers.base import BadRow, SourceFile
from raytrain.data.sources import read_tasks
from raytrain.errors import DataError
from raytrain.inference import batch
from raytrain.inference.batch import Request, predict_source
from raytrain.inference.card import find_model, read_card
from raytrain.inference.output import target_of
from raytrain.inference.pieces import END, PART, Done, PieceWorker, WorkSpec, part_name
from raytrain.inference.pool import Backlog
from raytrain.runs.observer import Observer
from raytrain.storage import Storage

ROWS = make_reviews(3000, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two, which give different labels."""
    torch.set_num_threads(1)
    found = []
    for age in ("old", "new"):
        folder = tmp_path_factory.mktemp(age)
        config = model_config(folder, {"kind": "sequence_classification"}, max_length=12)
        found.append(save_best(config, {"labels": [f"{age}_negative", f"{age}_positive"]}, folder))
    return found


class Workers:
    """In place of Ray and its actors: two workers in this process, each with two pieces at a time."""

    def __init__(self) -> None:
        self.num_pieces, self.at_piece = 0, {}  # type: tuple[int, dict[int, Any]]
        """Number of pieces that are done -> what happens then."""
        self.is_open = False
        self.specs: list[WorkSpec] = []
        self.cut_when: list[bool] = []

    @contextmanager
    def session(self, *_: Any) -> Iterator[Any]:
        self.is_open = True
        yield SimpleNamespace(num_gpus=0, num_cpus=2)
        self.is_open = False

    def in_parallel(self, work: Any, items: Any) -> list[Any]:
        self.cut_when.append(self.is_open)
        return in_threads(work, items)

    def __call__(self, spec: WorkSpec, texts: list[str], *_: Any) -> "Workers":
        self.specs.append(spec)
        self.texts = texts
        return self

    def run(self, backlog: Backlog) -> Iterator[Done | None]:
        workers = [PieceWorker(self.specs[-1]) for _ in range(2)]
        asked: list[list[tuple[int, int]]] = [[], []]
        newest = [-1, -1]
        for worker in workers:
            assert not worker.load().error
            yield None
        while True:
            for i in range(len(workers)):
                while len(asked[i]) < 2 and (following := backlog.take(newest[i])) is not None:
                    asked[i].append(following)
                    newest[i] = following[0]
            if not any(asked):
                return
            for worker, of_worker in zip(workers, asked, strict=True):
                if not of_worker:
                    continue
                task, piece = of_worker.pop(0)
                done = worker.predict(task, self.texts[task], piece)
                if done.error:
                    for other, number in of_worker:  # the actor goes on until it is told to end
                        worker.predict(other, self.texts[other], number)
                    raise DataError(done.error)
                if done.is_end:
                    backlog.ended(task, piece)
                    continue
                yield done
                self.num_pieces += 1
                self.at_piece.pop(self.num_pieces, lambda: None)()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(batch, "Pool", found)
    monkeypatch.setattr(batch, "ray_session", found.session)
    monkeypatch.setattr(batch, "in_parallel", found.in_parallel)
    return found


def write_rows(path: Path) -> str:
    path.write_text("".join(f"{json.dumps({'n': n, **row})}\n" for n, row in enumerate(ROWS)))
    return str(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spec_in(folder: Path) -> WorkSpec:
    """For a worker that is not to load a model."""
    return WorkSpec(None, (), None, batch.PLAIN, False, str(folder), 1, False)  # type: ignore[arg-type]


def test_a_file_that_ends_too_early_is_told_each_time(tmp_path: Path, models: list[str], workers: Workers) -> None:
    whole = gzip.compress(Path(write_rows(tmp_path / "rows.jsonl")).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) * 7 // 10])
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        with pytest.raises(DataError, match="truncated"):
            predict_source(models[0], Request(str(tmp_path / "cut.jsonl.gz"), str(out)))
        assert not out.exists() and not [*tmp_path.glob(f"out.jsonl.work/*/*{END}")]


def test_two_models_with_one_output(tmp_path: Path, models: list[str], workers: Workers) -> None:
    """The first command goes on while the second one predicts, and writes all of its parts."""
    request = Request(write_rows(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl"))

    def killed() -> None:
        raise KeyboardInterrupt

    workers.at_piece[1] = killed
    with pytest.raises(KeyboardInterrupt):
        predict_source(models[0], request)
    (first,) = workers.specs

    def first_goes_on() -> None:
        worker = PieceWorker(first)
        worker.load()
        for piece in range(4):
            assert not worker.predict(0, workers.texts[0], piece).error

    workers.at_piece[2] = first_goes_on
    found = predict_source(models[1], request)
    told = rows_of(tmp_path / "out.jsonl")
    assert found.num_rows == len(told) == len(ROWS)
    assert {row["predicted_label"].partition("_")[0] for row in told} == {"new"}
    assert [row["n"] for row in told] == [*range(len(ROWS))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]
    assert workers.cut_when and all(workers.cut_when), "large files are cut by Ray, not before it is there"


def database(path: Path) -> tuple[sqlite3.Connection, tuple[str, ...]]:
    """With the rows, and the options that name the query."""
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")  # what is written does not wait for who reads
    connection.execute("create table reviews(n integer primary key, text)")
    connection.executemany("insert into reviews values(?, ?)", [(n, row["text"]) for n, row in enumerate(ROWS)])
    connection.commit()
    return connection, ("data.test.query=select * from reviews", "data.test.order_by=n")


def test_all_rows_of_a_query_are_of_one_reading(tmp_path: Path, models: list[str], workers: Workers) -> None:
    connection, options = database(tmp_path / "a.db")

    def change() -> None:
        connection.execute("delete from reviews where n < 500")
        connection.commit()

    workers.at_piece[1] = change
    request = Request(f"sqlite:///{tmp_path}/a.db", str(tmp_path / "out.jsonl"), options)
    assert predict_source(models[0], request).num_rows == len(ROWS)
    assert [row["n"] for row in rows_of(tmp_path / "out.jsonl")] == [*range(len(ROWS))]


def test_parts_of_rows_that_have_changed_are_removed(tmp_path: Path) -> None:
    connection, _ = database(tmp_path / "a.db")
    source = SourceConfig.model_validate(
        {"path": f"sqlite:///{tmp_path}/a.db", "query": "select * from reviews", "order_by": "n"}
    )
    (file,) = list_files(source, "data.test")
    (task,) = read_tasks({"test": [SourceFile(**{**vars(file), "content": "of other rows"})]})
    work = tmp_path / "work"
    work.mkdir()
    for number in (0, 1):
        (work / f"{part_name(number, 0)}{PART}").write_text("")
    done = PieceWorker(spec_in(work)).predict(0, json.dumps(asdict(task)), 9)
    assert "the rows have changed" in done.error
    assert [path.name for path in work.iterdir()] == [f"{part_name(1, 0)}{PART}"]
    connection.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_query_has_one_reader_that_meets_its_end(seed: int) -> None:
    """Whatever the number of workers, their deaths, and the parts that are there already."""
    rng = random.Random(seed)
    counts = [rng.randint(0, 5) for _ in range(4)]
    unshared = {task for task in range(4) if rng.random() < 0.5}
    parts = {task: {piece for piece in range(count) if rng.random() < 0.4} for task, count in enumerate(counts)}
    ends = {task: count for task, count in enumerate(counts) if rng.random() < 0.5}
    backlog = Backlog(4, {task: set(pieces) for task, pieces in parts.items()}, ends, unshared)
    needed = {task for task in unshared if task not in ends or len(parts[task]) < counts[task]}
    waiting, reads, given = [(worker, -1) for worker in range(3)], dict[int, list[tuple[int, int]]](), set()
    num_workers = 3
    while waiting:
        worker, newest = waiting.pop(rng.randrange(len(waiting)))
        if (following := backlog.take(newest)) is None:
            continue
        task, piece = following
        if rng.random() < 0.1:  # it dies, and another one is started
            backlog.put_back(task, piece)
            waiting.append((num_workers, -1))
            num_workers += 1
            continue
        reads.setdefault(task, []).append((worker, piece))
        if piece >= counts[task]:
            backlog.ended(task, piece)
        else:
            assert (task, piece) not in given and piece not in parts[task]
            given.add((task, piece))
        waiting.append((worker, task))
    assert given == {(task, piece) for task in range(4) for piece in range(counts[task])} - {
        (task, piece) for task, pieces in parts.items() for piece in pieces
    }
    assert needed == unshared & reads.keys()
    for task in needed:
        of_workers, pieces = zip(*reads[task], strict=True)
        assert list(pieces) == sorted(pieces) and pieces[-1] >= counts[task]
        changes = sum(a != b for a, b in itertools.pairwise(of_workers))
        assert changes == len(set(of_workers)) - 1, "one after the other"


def test_more_read_tasks_than_their_names_have_digits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, progress = target_of(str(tmp_path / "out.jsonl")), batch._Progress(Observer(), [])
    progress.folder = "0" * 20
    worker = PieceWorker(spec_in(tmp_path / "out.jsonl.work" / progress.folder))
    monkeypatch.setattr(batch, "_is_complete", lambda *_: True)
    order = [(5, 0), (99_999, 0), (99_999, 10_000_000), (100_000, 0)]
    for task, piece in reversed(order):
        done = Done(task, piece, 1, 1)
        bad = BadRow("a.csv", 1, "text is empty", data={"n": [task, piece]})
        worker._write(done, pa.table({"n": [[task, piece]]}), [bad])
        progress.add(done)
    found = batch.finish(target, progress, 0.0)
    assert [tuple(row["n"]) for row in rows_of(tmp_path / "out.jsonl")] == order
    assert found.refused_path
    assert [tuple(row["data"]["n"]) for row in rows_of(Path(found.refused_path))] == order


def test_parts_of_other_versions_are_not_used(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card(find_model(models[0]))
    config = card.config((), write_rows(tmp_path / "rows.jsonl"))
    assert config.data.test is not None
    files = list_files(config.data.test, "data.test")

    def folder() -> str:
        return batch._fingerprint(card, Request("", ""), config, files)

    before = folder()
    assert batch.FINGERPRINT.fullmatch(before) and folder() == before
    monkeypatch.setattr(work_folder, "__version__", "another")
    assert folder() != before
    assert Storage(str(tmp_path)).list_names() == ["rows.jsonl"]
