"""Rows of a query: SQLite, and PostgreSQL where its server is installed. No Ray."""

import glob
import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

from raytrain.config import DataConfig, SequenceClassificationConfig
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import CHUNK_ROWS, ROW, BadRow, ReadTask, SourceFile
from raytrain.data.sources import check_sources, read_tasks
from raytrain.errors import ConfigError, DataError
from raytrain.runs.preflight import check_elsewhere, resolve
from raytrain.tasks import make_task
from tests.tiny import make_reviews

REVIEWS = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
ROWS = make_reviews(CHUNK_ROWS + 100, 0)
NUMBERED = [{**row, ROW: number} for number, row in enumerate(ROWS, 1)]


@pytest.fixture
def database(tmp_path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(tmp_path / "a b#%.db")
    connection.execute("create table reviews(id integer primary key, text, label, day)")
    values = [(i + 1, row["text"], row["label"], i // 3) for i, row in reversed([*enumerate(ROWS)])]
    connection.executemany("insert into reviews values(?, ?, ?, ?)", values)
    connection.commit()
    return connection


def config(folder: Path | str, **options: Any) -> DataConfig:
    uri = f"sqlite:///{folder}/a b#%.db"
    train = {"path": uri, "query": "select * from reviews", "order_by": "id", **options}
    return DataConfig.model_validate({"train": train, "on_error": "quarantine"})


def read(files: dict[str, list[SourceFile]]) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """As another process does."""
    rows: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for task in read_tasks(files):
        for chunk in read_chunks(ReadTask.from_json(json.dumps(asdict(task))), ["text", "label"]):
            rows += chunk.table.to_pylist()
            bad += chunk.bad_rows
    return rows, bad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order_by": ["day", "id"]},
        {"query": "with good as (select * from reviews) select * from good -- all of them\n;"},
    ],
)
def test_rows_come_in_their_order_with_their_numbers(
    tmp_path: Path, database: sqlite3.Connection, options: dict[str, Any]
) -> None:
    files = check_sources(config(tmp_path, **options), REVIEWS)
    assert files["train"][0].path == f"sqlite:///{tmp_path}/a b#%.db#train"
    assert read(files) == (NUMBERED, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order_by": "day"}, r"row 2: it has the same day as the row before it \(0\).*such as the primary key"),
        ({"order_by": "nope"}, "order_by names 'nope', but the query has only the columns 'id', 'text'"),
        ({"query": None}, r"data.train.query is missing"),
        ({"order_by": None}, r"data.train.order_by is missing"),
        ({"query": "select * frm reviews"}, "SQLite: near .*syntax error"),
        ({"query": "delete from reviews"}, "SQLite: near .*syntax error"),
        ({"query": "select * from reviews where id < 0"}, "has no rows"),
        ({"query": "select id, text from reviews"}, "has no column 'label'"),
        ({"format": "csv"}, "is a database; leave the format out"),
        ({"delimiter": ";"}, "data.train.delimiter has no effect"),
        ({"path": "sqlite:////nowhere/b.db"}, r"no such file \(looked for /nowhere/b.db\)"),
        ({"path": __file__, "format": "sql"}, "a database is named by a URI: sqlite:////.*test_databases.py"),
    ],
)
def test_what_is_refused_before_anything_starts(
    tmp_path: Path, database: sqlite3.Connection, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_sources(config(tmp_path, **options), REVIEWS)


def test_an_absolute_path_with_too_few_slashes(tmp_path: Path, database: sqlite3.Connection) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/a b#%.db would be sqlite:///{tmp_path}"):
        check_sources(config(str(tmp_path)[1:]), REVIEWS)


def test_the_content_is_that_of_the_rows(tmp_path: Path, database: sqlite3.Connection) -> None:
    before = check_sources(config(tmp_path), REVIEWS)
    database.execute("create table other(x)")
    database.execute("update reviews set text = text")
    database.commit()
    same = check_sources(config(tmp_path), REVIEWS)["train"][0]
    assert (same.content, same.num_bytes) == (before["train"][0].content, before["train"][0].num_bytes)
    database.execute("update reviews set text = 'another' where id = 4000")
    database.commit()
    assert check_sources(config(tmp_path), REVIEWS)["train"][0].content != same.content
    with pytest.raises(DataError, match="the rows have changed while they were read; give the command again"):
        read(before)


def test_a_value_of_another_type_concerns_its_row_alone(tmp_path: Path, database: sqlite3.Connection) -> None:
    for id, value in ((3000, "5"), (3001, "x'00ff'"), (3002, "null"), (3003, "cast(x'61ff' as text)")):
        database.execute(f"update reviews set text = {value} where id = {id}")
    database.commit()
    rows, bad = read(check_sources(config(tmp_path), REVIEWS))
    assert [row["text"] for row in rows[2999:3002]] == [5, b"\x00\xff", None]
    assert rows[:2999] == NUMBERED[:2999] and rows[3002:] == NUMBERED[3003:]
    assert [(one.row, one.reason) for one in bad] == [(3003, "text is invalid UTF-8")]


def test_a_damaged_database_is_named(tmp_path: Path, database: sqlite3.Connection) -> None:
    database.close()
    path = tmp_path / "a b#%.db"
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"a b#%.db#train: SQLite: .*malformed"):
        check_sources(config(tmp_path), REVIEWS)


def test_two_splits_of_one_database(tmp_path: Path, database: sqlite3.Connection) -> None:
    of_train = {**config(tmp_path).train.model_dump(exclude_unset=True), "query": "select * from reviews where id % 9"}
    of_test = {**of_train, "query": "select * from reviews where id % 9 = 0"}
    files = check_sources(DataConfig.model_validate({"train": of_train, "test": of_test}), REVIEWS)
    assert [file.path.rpartition("#")[2] for split in files.values() for file in split] == ["train", "test"]
    assert len(read({"train": files["train"]})[0]) + len(read({"test": files["test"]})[0]) == len(ROWS)
    with pytest.raises(DataError, match="is in data.train.path and in data.test.path"):
        check_sources(DataConfig.model_validate({"train": of_train, "test": of_train}), REVIEWS)


def test_the_path_of_a_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data.train.path=sqlite:///a.db", "data.train.query=select 1", "data.train.order_by=id"]
    words += ["data.validation.path=postgresql://reader@db/reviews"]
    config = resolve(tiny_run(tmp_path, "a", *words))
    assert config.data.train.path == f"sqlite:///{tmp_path}/a.db"
    assert config.data.validation is not None and config.data.validation.path == "postgresql://reader@db/reviews"
    with pytest.raises(ConfigError, match="data.train.path: sqlite:///a.db"):
        check_elsewhere(tiny_run(tmp_path, "a", *words))
    with pytest.raises(ConfigError, match="PGPASSWORD") as caught:
        tiny_run(tmp_path, "a", "data.train.path=postgresql://reader:geheim@db/reviews")
    assert "geheim" not in str(caught.value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a PostgreSQL server with a password."""
    pytest.importorskip("adbc_driver_postgresql")
    found = [*glob.glob("/usr/lib/postgresql/*/bin"), os.path.dirname(shutil.which("initdb") or "")]
    if not found[0] or shutil.which("psql") is None:
        pytest.skip("there is no PostgreSQL server here")
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
    folder = Path("/tmp") / f"raytrain-postgres-{os.getpid()}"
    folder.mkdir()
    (folder / "password").write_text("geheim-geheim")
    if as_user:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(program: str, *args: str) -> None:
        command = [*as_user, f"{found[0]}/{program}", "-D", f"{folder}/data", *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    try:
        call("initdb", "-A", "scram-sha-256", f"--pwfile={folder}/password", "-U", "postgres")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        call("pg_ctl", "-w", "-o", options, "-l", f"{folder}/log", "start")
        monkeypatch.setenv("PGPASSWORD", "geheim-geheim")
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_postgresql(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def psql(statement: str) -> None:
        subprocess.run(["psql", "-qd", server], input=statement, text=True, check=True)

    def config(**options: Any) -> DataConfig:
        train = {"path": server, "query": "select * from reviews", "order_by": "id", **options}
        return DataConfig.model_validate({"train": train})

    psql("create type sentiment as enum ('negative', 'positive')")
    psql("create table reviews(id serial primary key, text text, label sentiment, score numeric, more jsonb)")
    values = ", ".join(f"('{row['text']}', '{row['label']}', 1.5, '[1]')" for row in ROWS)
    psql(f"insert into reviews(text, label, score, more) values {values}")
    files = check_sources(config(), REVIEWS)
    assert read(files) == (NUMBERED, [])
    assert check_sources(config(), REVIEWS) == files
    for options, message in (
        ({"order_by": "label"}, "row 2: it has the same label"),
        ({"query": "select * frm reviews"}, "PostgreSQL: .*syntax error"),
        ({"query": "select *, nextval('reviews_id_seq') from reviews"}, "read-only transaction"),
    ):
        with pytest.raises(DataError, match=message):
            check_sources(config(**options), REVIEWS)
    psql("update reviews set text = 'another' where id = 7")
    assert check_sources(config(), REVIEWS)["train"][0].content != files["train"][0].content
    with pytest.raises(DataError, match="the rows have changed"):
        read(files)
    monkeypatch.setenv("PGPASSWORD", "another-password")
    with pytest.raises(DataError, match="Passwords come from PGPASSWORD") as caught:
        check_sources(config(), REVIEWS)
    assert "another-password" not in str(caught.value)
