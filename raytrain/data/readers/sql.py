"""Rows of a query to a database: SQLite by Python's own module, PostgreSQL by ADBC.

A source with a query is one file, whose path is the URI of the database and, after a #, the option that names it. The
rows are ordered by columns that tell all of them apart, so that a row has a number. A hash of all rows says what they
contain: when they are read later, it is compared.

SQLite has a type for each value and not for a column. ADBC takes a column's type from the first 1,024 rows, and stops
at a later value of another one; Python's module gives each value as it is.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from raytrain.data.readers.base import (
    ROW,
    Chunk,
    Rows,
    RowsChangedError,
    SourceFile,
    Unreadable,
    first_line,
    in_chunks,
)
from raytrain.data.readers.tables import chunks_of, update_with_rows
from raytrain.data.readers.text import is_valid
from raytrain.errors import DataError

SQLITE, POSTGRESQL = "sqlite", "postgresql"
LOCK_WAIT_S = 60.0  # for another program that is writing to an SQLite database

_contents: dict[tuple[SourceFile, str], tuple[str, int]] = {}
"""A source and the state of its database -> (hash of its rows, bytes). The checks of one command ask several times."""


def is_database(path: str) -> bool:
    """Whether a path is the URI of a database."""
    return path.partition("://")[0] in (SQLITE, POSTGRESQL)


def read_query(file: SourceFile, columns: Collection[str] | None) -> Iterator[Chunk]:
    """The rows of a query, at most CHUNK_ROWS at a time.

    Raises:
        DataError: The database can't be read, the query is wrong, or two rows have the same place in the order.
        RowsChangedError: The rows are not those that were checked before. Known at the end only.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        _update(digest, chunk)
        yield chunk if columns is None else _with_columns(chunk, columns)
    if file.content and digest.hexdigest() != file.content:
        raise RowsChangedError(f"{file.path}: the rows have changed while they were read; give the command again")


def query_head(file: SourceFile, num_rows: int, columns: Collection[str] | None = None) -> Chunk:
    """The first rows of a query; without columns when there is no row. Raises DataError like `read_query`."""
    chunk = next(_chunks(file, num_rows), Chunk(pa.table({})))
    return chunk if columns is None or not len(chunk.table) else _with_columns(chunk, columns)


def query_content(file: SourceFile) -> tuple[str, int]:
    """(hash of all rows, bytes that they have as JSON). Raises DataError like `read_query`."""
    state = _state(file)
    if (known := _contents.get((file, state))) is not None:
        return known
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in _chunks(file):
        num_bytes += _update(digest, chunk)
    found = digest.hexdigest(), num_bytes
    if state and state == _state(file):
        _contents[file, state] = found
    return found


def sqlite_file(path: str) -> str:
    """The file of an SQLite URI: sqlite:///relative or sqlite:////absolute, as SQLAlchemy has it."""
    return os.path.abspath(os.path.expanduser(_uri(path).partition(":///")[2]))


def _uri(path: str) -> str:
    return path.rpartition("#")[0] or path


def _chunks(file: SourceFile, limit: int | None = None) -> Iterator[Chunk]:
    """The rows, all columns of them. Raises DataError."""
    order, before = list(file.reading.order_by), None
    source = _of_sqlite if file.path.startswith(SQLITE) else _of_postgresql
    for chunk in source(file, limit):
        names = chunk.table.column_names
        if len(chunk.table) and (missing := [name for name in order if name not in names]):
            raise DataError(
                f"{file.path}: order_by names {missing[0]!r}, but the query has only the columns "
                f"{', '.join(map(repr, names[:-1]))}"
            )
        for values in chunk.table.select([*order, ROW]).to_pylist() if len(chunk.table) else ():
            row = values.pop(ROW)
            if values == before:
                raise DataError(
                    f"{file.path}, row {row}: it has the same {' and '.join(order)} as the row before it "
                    f"({', '.join(map(repr, values.values()))}), so the order of the rows is not determined. Add a "
                    "column to order_by that tells them apart, such as the primary key"
                )
            before = values
        yield chunk


def _statement(file: SourceFile, limit: int | None, collation: str = "") -> str:
    """The query with its rows in order. It may end with a comment or a semicolon."""
    query = (file.reading.query or "").strip().removesuffix(";")
    order = ", ".join('"' + name.replace('"', '""') + '"' + collation for name in file.reading.order_by)
    return f"SELECT * FROM (\n{query}\n) AS source ORDER BY {order}" + (f" LIMIT {limit}" if limit else "")


def _of_sqlite(file: SourceFile, limit: int | None) -> Iterator[Chunk]:
    try:
        yield from in_chunks(_sqlite_rows(file, limit), file.path, None)
    except sqlite3.Error as error:
        raise DataError(f"{file.path}: SQLite: {first_line(error)}") from None


def _sqlite_rows(file: SourceFile, limit: int | None) -> Rows:
    """A row per row of the query."""
    path = sqlite_file(file.path)
    if not os.path.isfile(path):
        other = f"/{_uri(file.path).partition(':///')[2]}"
        hint = f"; {other} would be sqlite:///{other}" if os.path.isfile(other) else ""
        raise DataError(f"{file.path}: no such file (looked for {path}){hint}")
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with contextlib.closing(sqlite3.connect(f"file:{quoted}?mode=ro", LOCK_WAIT_S, uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        cursor = connection.execute(_statement(file, limit, " COLLATE BINARY"))
        names = [column[0] for column in cursor.description]
        for row, values in enumerate(cursor, 1):
            found = dict(zip(names, values, strict=True))
            odd = [name for name, value in found.items() if isinstance(value, str) and not is_valid(value)]
            yield row, Unreadable(f"{odd[0]} is invalid UTF-8", " | ".join(map(str, values))) if odd else found


@contextlib.contextmanager
def _postgresql(file: SourceFile) -> Iterator[Any]:
    """A cursor that can't change anything. Raises DataError."""
    try:
        import adbc_driver_postgresql.dbapi as driver
    except ImportError:
        raise DataError(
            f"{file.path}: reading PostgreSQL needs adbc-driver-postgresql: pip install 'raytrain[sql]', on every node"
        ) from None
    try:
        connection = driver.connect(_uri(file.path), autocommit=True)
    except driver.Error as error:
        raise DataError(
            f"{file.path}: PostgreSQL: {first_line(error)}. Passwords come from PGPASSWORD or ~/.pgpass of every node"
        ) from None
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            yield cursor
    except (driver.Error, OSError, pa.ArrowException) as error:  # Arrow's while rows arrive
        raise DataError(f"{file.path}: PostgreSQL: {first_line(error)}") from None


def _of_postgresql(file: SourceFile, limit: int | None) -> Iterator[Chunk]:
    with _postgresql(file) as cursor:
        cursor.execute(_statement(file, limit))
        row = 1
        for batch in cursor.fetch_record_batch():
            yield from chunks_of(batch, file.path, row, {})
            row += len(batch)


def _state(file: SourceFile) -> str:
    """Differs when the database may have changed; "": nothing is known."""
    if file.path.startswith(SQLITE):
        path = sqlite_file(file.path)
        found = [os.stat(one) for one in (path, f"{path}-wal") if os.path.exists(one)]
        return str([(one.st_ino, one.st_mtime_ns, one.st_size) for one in found])
    with _postgresql(file) as cursor:
        cursor.execute("SELECT txid_current_snapshot()::text")  # another one after each transaction that wrote
        return str(cursor.fetchone()[0])


def _update(digest: Any, chunk: Chunk) -> int:
    """Add rows to a hash. Returns their bytes."""
    bad = "".join(json.dumps([one.row, one.reason, str(one.data)]) for one in chunk.bad_rows).encode()
    digest.update(bad)
    return update_with_rows(digest, chunk.table) + len(bad)


def _with_columns(chunk: Chunk, columns: Collection[str]) -> Chunk:
    kept = [name for name in chunk.table.column_names if name in (*columns, ROW)]
    return Chunk(chunk.table.select(kept), chunk.bad_rows)
