"""The file of the predictions, made of the parts in their order, of which a few at a time are in memory."""

import base64
import contextlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.parallel import in_threads
from raytrain.errors import ConfigError, FailureCode, TrainingError, first_line
from raytrain.storage import Storage

ROW_GROUP_ROWS = 16_384
SHARD_ROWS = 262_144
SHARD = re.compile(r"part-\d{5,}\.parquet")
ASSEMBLING = "assembling"
"""In the work folder while the target is written: what is there then is of a command that was killed."""
QUOTE, EMPTY_CELL = '"', '""'
Tables = Iterator[pa.Table]
Result = TypeVar("Result")


class OutputFormat(StrEnum):
    """What the predictions are written as."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


ENDINGS = {f".{format.value}": format for format in OutputFormat}


@dataclass(frozen=True)
class Target:
    """Where the predictions go."""

    parent: Storage
    name: str
    format: OutputFormat
    is_folder: bool
    """Whether it is a folder of Parquet files, for many rows."""

    @property
    def refused(self) -> str:
        """Name of the file with the rows that have no prediction."""
        return f"{self.name}.quarantined.jsonl"

    @property
    def work(self) -> Storage:
        """The folder of the parts."""
        return self.parent.at(f"{self.name}.work")


def target_of(out: str) -> Target:
    """The target that a path names. Raises ConfigError when its ending tells no format."""
    parent, name = Storage(out).place()
    if out.endswith("/"):
        return Target(Storage(parent or "/"), name, OutputFormat.PARQUET, True)
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending) and name.lower() != ending), None)
    if ending is None:
        raise ConfigError(
            f"--out {out!r}: the ending tells the format; allowed: {', '.join(ENDINGS)}, or a / at the end for a "
            "folder of Parquet files"
        )
    return Target(Storage(parent or "/"), name, ENDINGS[ending], False)


def assemble(target: Target, parts: Sequence[str], refused: Sequence[str], of_parts: str = "") -> None:
    """Write the rows without a prediction, and the predictions. On a file system, a reader sees all of the predictions
    or nothing. A command that was killed in here can be given again.

    Args:
        parts, refused: Names in the folder of the parts, in the order of the rows.
        of_parts: Name of that folder in the work folder; "": the work folder itself.

    Raises TrainingError when Arrow can't read or write a table.
    """
    work = target.work.at(of_parts) if of_parts else target.work
    schema = _told(target, lambda: _schema_of(work, parts, target.format))
    target.work.commit_bytes(ASSEMBLING, b"")
    is_local, own = work.local_path() is not None, uuid.uuid4().hex[:8]
    # On a file system, files are renamed once they are complete. An object store has no such call for large ones.
    folder, rows, bad = work, f"rows.{own}", f"refused.{own}"
    if not is_local:
        folder, rows, bad = target.parent, target.name, target.refused
        for name in (bad, rows):  # what a killed command has left, or what is to be replaced
            folder.delete(name)
    try:
        if refused:
            with folder.open_output(bad) as sink:
                for part in refused:
                    sink.write(work.read_bytes(part))
        _told(target, lambda: _write(target, work, (folder, rows), parts, schema))
    except BaseException:  # an object store shows what was written of a file when it is closed
        with contextlib.suppress(OSError):
            folder.delete(rows)
        raise
    if is_local:
        at = "/".join(filter(None, (f"{target.name}.work", of_parts)))
        if refused:
            target.parent.move(f"{at}/{bad}", target.refused)
        else:
            target.parent.delete(target.refused)
        target.parent.move(f"{at}/{rows}", target.name)
    target.work.delete(ASSEMBLING)


def _write(target: Target, work: Storage, place: tuple[Storage, str], parts: Sequence[str], schema: pa.Schema) -> None:
    """Write the predictions to a place."""
    folder, name = place
    tables = (_fitted(_read(work, part), schema) for part in parts)
    if target.is_folder:
        for number, shard in enumerate(_in_shards(tables, schema)):
            with folder.open_output(f"{name}/part-{number:05d}.parquet") as sink:
                _write_parquet(sink, shard, schema)
    else:
        with folder.open_output(name) as sink:
            _WRITERS[target.format](sink, tables, schema)


def _told(target: Target, call: Callable[[], Result]) -> Result:
    """What a call returns. An error of Arrow that is none of the storage becomes one for people."""
    try:
        return call()
    except pa.ArrowException as error:
        if isinstance(error, OSError):
            raise
        path = target.parent.path_of(target.name)
        raise TrainingError(
            f"the predictions can't be written to {path}: {first_line(str(error))}. Write another format, or leave the "
            f"column out with --columns; delete {target.work.path_of()} if a file in it is damaged",
            FailureCode.STORAGE,
        ) from error


def _read(work: Storage, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part. `columns`: None: all."""
    with work.open_input(part) as opened:
        if columns is None:
            return pa.ipc.open_file(opened).read_all()
        names = pa.ipc.open_file(opened).schema.names
        wanted = [place for place, name in enumerate(names) if name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        return pa.ipc.open_file(opened, options=options).read_all()


def _schema_of(work: Storage, parts: Sequence[str], format: OutputFormat) -> pa.Schema:
    """One schema for all parts. Columns whose types or values can't be of one type become text, and so do those that
    the format has no type for."""

    def look(part: str) -> pa.Schema:
        with work.open_input(part) as opened:
            return pa.ipc.open_file(opened).schema.remove_metadata()

    types: dict[str, list[pa.DataType]] = {}
    for schema in in_threads(look, parts):
        for field in schema:
            known = types.setdefault(field.name, [])
            if field.type not in known:
                known.append(field.type)
    common = {name: _common(found) for name, found in types.items()}
    mixed = [name for name, found in types.items() if not {common[name], pa.null()}.issuperset(found)]
    mixed = [name for name in mixed if not pa.types.is_string(common[name])]

    def misfits(part: str) -> list[str]:
        return _misfits(_read(work, part, mixed), common)

    texts = {name for found in in_threads(misfits, parts) for name in found} if mixed else set()
    if format == OutputFormat.PARQUET:
        texts |= {name for name, kind in common.items() if not _is_for_parquet(kind)}
    return pa.schema([(name, pa.string() if name in texts else kind) for name, kind in common.items()])


def _misfits(table: pa.Table, types: dict[str, pa.DataType]) -> list[str]:
    """The columns of a table that hold a value that their type can't, such as an integer above 2^53 among decimals."""
    found = []
    for name in table.column_names:
        try:
            table[name].cast(types[name])
        except pa.ArrowException:
            found.append(name)
    return found


def _is_for_parquet(kind: pa.DataType) -> bool:
    """Whether a column of a Parquet file can have this type; an object without fields, for one, can't be written."""
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([("one", kind)])).close()
    except pa.ArrowException:
        return False
    return True


def _common(types: list[pa.DataType]) -> pa.DataType:
    """The type that holds the values of all; text where there is none."""
    if any(map(pa.types.is_union, types)):
        return pa.string()
    try:
        schemas = [pa.schema([("one", kind)]) for kind in types]
        found = pa.unify_schemas(schemas, promote_options="permissive").field("one").type
    except pa.ArrowException:
        return pa.string()
    return pa.string() if pa.types.is_null(found) else found


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of a schema. What is not text by itself becomes JSON where the schema says text."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table[field.name]
        if column.type == field.type or not pa.types.is_string(field.type) or pa.types.is_null(column.type):
            columns.append(column.cast(field.type))
        else:
            columns.append(pa.array([_as_text(value) for value in column.to_pylist()], pa.string()))
    return pa.table(columns, schema=schema)


def _in_shards(tables: Tables, schema: pa.Schema) -> Iterator[Tables]:
    """The tables in runs of about SHARD_ROWS rows; each has to be used up before the next is asked for."""
    following = next(tables, None)

    def shard() -> Tables:
        nonlocal following
        num_rows = 0
        while following is not None and num_rows < SHARD_ROWS:
            num_rows += len(following)
            yield following
            following = next(tables, None)

    if following is None:
        yield iter([schema.empty_table()])
    while following is not None:
        yield shard()


def _write_parquet(sink: Any, tables: Tables, schema: pa.Schema) -> None:
    with pq.ParquetWriter(sink, schema) as writer:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _write_jsonl(sink: Any, tables: Tables, schema: pa.Schema) -> None:
    for table in tables:
        lines = (json.dumps(json_value(row), ensure_ascii=False) for row in table.to_pylist())
        sink.write("".join(f"{line}\n" for line in lines).encode())


def _write_csv(sink: Any, tables: Tables, schema: pa.Schema) -> None:
    sink.write(f"{','.join(map(_as_cell, schema.names))}\n".encode())
    for table in tables:
        columns = [table[name].to_pylist() for name in table.column_names]
        lines = (",".join(map(_as_cell, row)) for row in zip(*columns, strict=True))
        sink.write("".join(f"{line or EMPTY_CELL}\n" for line in lines).encode())


_WRITERS: dict[OutputFormat, Callable[[Any, Tables, pa.Schema], None]] = {
    OutputFormat.PARQUET: _write_parquet,
    OutputFormat.JSONL: _write_jsonl,
    OutputFormat.CSV: _write_csv,
}


def json_value(value: Any) -> Any:
    """A value as JSON has it: what is not finite is null, dates are in ISO 8601, bytes in Base64."""
    if isinstance(value, dict):
        return {name: json_value(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, (str, int, float)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)


def _as_cell(value: Any) -> str:
    """A value in a CSV file: nothing for null, JSON for what is neither text nor a number. In quotes unless it is a
    number, since some readers end a row at a carriage return that is not."""
    if value is None:
        return ""
    text = _as_text(value) or ""
    return text if isinstance(value, (int, float)) else f'"{text.replace(QUOTE, QUOTE * 2)}"'
