"""Data that a Python program holds, written to Parquet files once, in order.

The config of the run then names these files, so resuming it needs none of the objects, and a lazy pipeline, which may
give other rows when it runs again, runs once. Libraries that the program has not imported are not imported here.
"""

import functools
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.config import SPLITS
from raytrain.config.from_python import Override, parse
from raytrain.data.quiet import quiet_ray_data
from raytrain.data.readers.base import CHUNK_ROWS, ROW, first_line
from raytrain.data.readers.tables import chunks_of, class_names, update_with_rows
from raytrain.errors import ConfigError, DataError, FailureCode
from raytrain.retries import advice_for, retrying
from raytrain.storage import Storage

FOLDER = "_given"
"""Below the folder of the prepared data."""
COMMITTED = "given.json"
"""Written last: the number of rows, and the size of each file."""
PART_BYTES = 256 << 20  # a file is closed when it is this large

_Tables = Iterator[pa.Table]


class Given(TypedDict, total=False):
    """The data of splits: each a Ray Dataset, a pandas DataFrame, a `datasets.Dataset`, an Arrow table, or a list of
    dicts."""

    train: Any
    validation: Any
    test: Any


def with_given(config: Any, overrides: Sequence[Override], given: Given) -> list[Override]:
    """The overrides of a config, and further ones that name the files to which the data of splits is written.

    Raises:
        ConfigError: The config is wrong, or an object is of an unknown type; nothing was written.
        DataError: Like `write_given`.
        TypeError: There is no such split.
    """
    if unknown := next((name for name in given if name not in SPLITS), None):
        raise TypeError(f"there is no argument {unknown!r}; data is given as {', '.join(SPLITS)}")
    data = {split: one for split, one in given.items() if one is not None}
    if not data:
        return list(overrides)
    places = {f"data.{split}": {"path": f"_given/{split}.parquet"} for split in data}  # whose errors come first
    parsed = parse(config, [*overrides, places])
    try:
        prepared = Storage(parsed.data.prepared_path or f"{parsed.storage_path}/_prepared")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the folder of the prepared data can't be opened: {first_line(error)}") from None
    return [*overrides, {f"data.{split}": {"path": write_given(prepared, split, one)} for split, one in data.items()}]


def write_given(prepared: Storage, split: str, data: Any) -> str:
    """Write the rows, unless they are there already, and return the folder of their Parquet files.

    Args:
        prepared: The folder of the prepared data; the rows are in `_given/<hash of the rows>` below it.
        split: For messages.
        data: A Ray, pandas or datasets object, an Arrow table, or a list of dicts.

    Raises:
        ConfigError: An object of another type.
        DataError: It has no rows, or a row can't be stored. Or storage fails for two minutes.
    """
    tables = _tables_of(split, data)
    with tempfile.TemporaryDirectory(prefix="raytrain-") as local:
        rows = _Rows(local)
        try:
            for table in _plain_tables(split, tables):
                rows.add(table)
            name, sizes = rows.close()
        except pa.ArrowException as error:
            raise DataError(f"{split} can't be stored as Parquet: {first_line(error)}") from error
        except OSError as error:
            what = f"{split} can't be written to {local}, a folder for temporary files: {first_line(error)}"
            raise DataError(f"{what}. TMPDIR names another", FailureCode.STORAGE) from error
        if not rows.num_rows:
            raise DataError(f"{split} has no rows")
        target = prepared.at(FOLDER, name)
        try:
            if not retrying(lambda: _is_committed(target), f"reading {target.path_of()}"):
                for file in sizes:
                    retrying(functools.partial(_upload, f"{local}/{file}", target, file), f"writing {target.path_of()}")
                # Those of a command that was killed: its files may begin at other rows, and all in the folder are read.
                for other in set(target.list_names()) - set(sizes):
                    target.delete(other)
                told = json.dumps({"rows": rows.num_rows, "files": sizes}).encode()
                retrying(lambda: target.commit_bytes(COMMITTED, told), f"writing {target.path_of()}")
        except OSError as error:
            what = f"{split} can't be written to {target.path_of()}: {first_line(error)}"
            raise DataError(f"{what}. {advice_for(error)}", FailureCode.STORAGE) from None
    return target.path_of()


def tables_of(name: str, data: Any) -> _Tables:
    """The rows of an object that `write_given` takes, in their order, at most CHUNK_ROWS at a time. `name`: for
    messages. Raises ConfigError and DataError as that does."""
    return _plain_tables(name, _tables_of(name, data))


@dataclass
class _Rows:
    """The Parquet files that are written, in a local folder. A file is named by its first row, counted from 1."""

    folder: str
    num_rows: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)
    _names: list[str] = field(default_factory=list)
    _writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows. Another file is begun where columns or their types change."""
        update_with_rows(self._digest, table)
        if self._writer is not None and (fitting := _as_in(table, self._writer.schema)) is not None:
            table = fitting
        else:
            self._begin_file(table.schema)
        assert self._writer is not None
        self._writer.write_table(table)
        self.num_rows += len(table)
        if os.path.getsize(f"{self.folder}/{self._names[-1]}") >= PART_BYTES:
            self._end_file()

    def close(self) -> tuple[str, dict[str, int]]:
        """(hash of the rows, size in bytes of each file)."""
        self._end_file()
        sizes = {name: os.path.getsize(f"{self.folder}/{name}") for name in self._names}
        return self._digest.hexdigest()[:20], sizes

    def _begin_file(self, schema: pa.Schema) -> None:
        self._end_file()
        self._names.append(f"rows-{self.num_rows + 1:012d}.parquet")
        self._writer = pq.ParquetWriter(
            f"{self.folder}/{self._names[-1]}", schema, compression="zstd", write_page_checksum=True
        )

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _as_in(table: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """The table with the types of a file, where only columns without any value have others; else None."""
    if table.schema.names != schema.names:
        return None
    pairs = zip(table.schema.types, schema.types, strict=True)
    return table.cast(schema) if all(one in (other, pa.null()) for one, other in pairs) else None


def _is_committed(folder: Storage) -> bool:
    try:
        committed = folder.read_json(COMMITTED)
    except (FileNotFoundError, ValueError):
        return False
    sizes = folder.list_sizes("")
    return all(sizes.get(name) == size for name, size in committed["files"].items())


def _upload(path: str, folder: Storage, name: str) -> None:
    with open(path, "rb") as opened:
        folder.commit_bytes(name, opened.read())


def _plain_tables(split: str, tables: _Tables) -> _Tables:
    """At most CHUNK_ROWS rows at a time, with the names of classes in place of their numbers. Raises DataError for a
    row that can't be stored."""
    num_rows = 0
    try:
        for table in tables:
            classes = class_names(table.schema)
            for batch in table.replace_schema_metadata(None).to_batches():
                for chunk in chunks_of(batch, split, num_rows + 1, classes):
                    if chunk.bad_rows:
                        raise DataError(f"{chunk.bad_rows[0]}", FailureCode.BAD_ROW)
                    yield chunk.table.drop_columns([ROW])
                num_rows += len(batch)
    except pa.ArrowException as error:
        raise DataError(f"{split}, near row {num_rows + 1}: it can't be stored: {first_line(error)}") from error


def _tables_of(split: str, data: Any) -> _Tables:
    """The rows of an object, in their order. Raises ConfigError for one of an unknown type."""
    if _is(data, "ray.data", "Dataset"):
        return _of_ray(split, data)
    if _is(data, "pandas", "DataFrame"):
        return iter([_of_pandas(split, data)])
    if _is(data, "datasets", "Dataset") or _is(data, "datasets", "IterableDataset"):
        return _of_datasets(data)
    if _is(data, "datasets", "DatasetDict") or _is(data, "datasets", "IterableDatasetDict"):
        raise ConfigError(f"{split} is a DatasetDict with the splits {', '.join(data)}: give one of them")
    if isinstance(data, pa.RecordBatch):
        return iter([pa.Table.from_batches([data])])
    if isinstance(data, pa.Table):
        return iter([data])
    if isinstance(data, list | tuple):
        return iter([_of_dicts(split, data)])
    hint = f"; for files, set data.{split}.path in the config" if isinstance(data, str | os.PathLike) else ""
    raise ConfigError(
        f"{split} is of type {type(data).__module__}.{type(data).__qualname__}; give a ray.data.Dataset, a pandas "
        f"DataFrame, a datasets.Dataset, a pyarrow Table or a list of dicts{hint}"
    )


def _is(data: Any, module: str, name: str) -> bool:
    """Whether an object is of a class of a module; who has such an object has imported it."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(data, kind)


def _of_ray(split: str, data: Any) -> _Tables:
    """Ray Data gives blocks as they are finished, unless it is told to keep their order."""
    quiet_ray_data()
    context, options = data.context, data.context.execution_options
    before = options.preserve_order, context.enable_progress_bars
    options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield from data.iter_batches(batch_size=CHUNK_ROWS, batch_format="pyarrow")
    except Exception as error:  # of the user's functions, which Ray wraps
        cause = getattr(error, "cause", None) or error
        what = f"{split}: the Ray Dataset has failed: {first_line(cause)} What Ray raised is this error's __cause__"
        raise DataError(what) from error
    finally:
        options.preserve_order, context.enable_progress_bars = before


def _of_datasets(data: Any) -> _Tables:
    schema = data.features.arrow_schema if data.features is not None else None  # has the names of classes
    for table in data.with_format("arrow").iter(batch_size=CHUNK_ROWS):
        yield table if schema is None else table.replace_schema_metadata(schema.metadata)


def _of_pandas(split: str, data: Any) -> pa.Table:
    """The columns of a DataFrame; its index is left out."""
    try:
        return pa.Table.from_pandas(data, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        if not data.columns.is_unique:
            raise DataError(
                f"{split}: several columns are named {data.columns[data.columns.duplicated()][0]!r}"
            ) from None
        columns = {str(name): _column(split, str(name), _without_nan(data[name])) for name in data.columns}
    return pa.table(columns)


def _without_nan(column: Any) -> list[Any]:
    """The values of a column of a DataFrame, None for those that are missing."""
    return [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]


def _of_dicts(split: str, rows: Sequence[Any]) -> pa.Table:
    """A column for each key of any row; null where a row does not have it."""
    names: dict[str, None] = {}
    for number, row in enumerate(rows, 1):
        odd = f"is of type {type(row).__name__}" if not isinstance(row, Mapping) else ""
        odd = odd or next((f"has the key {key!r}" for key in row if not isinstance(key, str)), "")
        if odd:
            raise DataError(f"{split}, row {number} {odd}; give dicts from column names to values")
        names.update(dict.fromkeys(row))
    return pa.table({name: _column(split, name, [row.get(name) for row in rows]) for name in names})


def _column(split: str, name: str, values: list[Any]) -> pa.Array:
    """Values as a column. Raises DataError, which names the first row with a value that does not fit."""
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        number, reason = _first_odd(values)
        reason = reason or first_line(error)
        raise DataError(f"{split}, row {number}: {name!r} {reason}", FailureCode.BAD_ROW) from None


def _first_odd(values: list[Any]) -> tuple[int, str]:
    """(number of the first row whose value does not fit to the others, why)."""
    types = Counter(map(type, values))
    types.pop(NoneType, None)
    common = types.most_common(1)[0][0]
    for number, value in enumerate(values, 1):
        try:
            pa.array([value])
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            return number, f"can't be stored: {first_line(error)}"
        if not isinstance(value, common | NoneType):
            return number, f"is {value!r:.80}, of type {type(value).__name__}; most are of type {common.__name__}"
    return 1, ""
