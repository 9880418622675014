"""Parquet, read by row groups. Class names that Hugging Face datasets keep in its metadata replace their numbers."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain.data.readers.base import CHUNK_ROWS, ROW, Chunk, ReadTask, SourceFile, first_line
from raytrain.data.readers.opening import open_source
from raytrain.errors import DataError


def read_parquet(task: ReadTask, columns: list[str] | None) -> Iterator[Chunk]:
    """The rows of a read task. Raises DataError when a page is broken."""
    row = task.first_row
    try:
        with open_source(task.file) as opened:
            file = pq.ParquetFile(opened)
            classes = class_names(file.schema_arrow)
            start, stop = task.row_groups or (0, file.metadata.num_row_groups)
            wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=list(range(start, stop)), columns=wanted):
                table = _with_names(pa.Table.from_batches([batch]), classes)
                yield Chunk(table.append_column(ROW, pa.array(range(row, row + len(table)), pa.int64())))
                row += len(table)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{task.file.path}, near row {row}: broken Parquet: {first_line(error)}") from None


def parquet_footer(file: SourceFile) -> tuple[list[str], list[int]]:
    """(columns, number of rows of each row group). Raises OSError or pa.ArrowInvalid."""
    with open_source(file) as opened:
        footer = pq.ParquetFile(opened)
        metadata = footer.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return footer.schema_arrow.names, rows


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its classes, of columns that a Hugging Face data set declares as ClassLabel or as a list
    of these."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _names_of(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if names}


def _names_of(feature: Any) -> list[str]:
    if isinstance(feature, list) and len(feature) == 1:
        feature = {"feature": feature[0]}
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature.get("names") or []]
    inner = feature.get("feature")
    return _names_of(inner) if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else []


def _with_names(table: pa.Table, classes: dict[str, list[str]]) -> pa.Table:
    """The table with names for the numbers of classes. -1, which means unlabelled, becomes null."""
    for column, names in classes.items():
        if column not in table.column_names:
            continue
        values = table[column].combine_chunks()
        place = table.column_names.index(column)
        if pa.types.is_integer(values.type):
            table = table.set_column(place, column, _named(values, names))
        elif (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)) and pa.types.is_integer(
            values.type.value_type
        ):
            rows = values.to_pylist()
            named = [None if row is None else [_name(number, names) for number in row] for row in rows]
            table = table.set_column(place, column, pa.array(named, pa.list_(pa.string())))
    return table


def _named(values: pa.Array, names: list[str]) -> pa.Array:
    return pa.array([_name(number, names) for number in pc.cast(values, pa.int64()).to_pylist()], pa.string())


def _name(number: int | None, names: list[str]) -> str | None:
    """A number beyond the classes stays what it is, and is refused as an unknown label."""
    if number is None or number == -1:
        return None
    return names[number] if 0 <= number < len(names) else str(number)
