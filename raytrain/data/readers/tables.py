"""Rows that a source gives as Arrow tables: of Parquet and Arrow files, and of a database with typed columns.

Class names that Hugging Face datasets keep in the schema's metadata replace their numbers.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytrain.data.plain_types import in_storage_types
from raytrain.data.readers.base import CHUNK_ROWS, ROW, BadRow, Chunk
from raytrain.errors import DataError


def chunks_of(batch: pa.RecordBatch, path: str, first_row: int, classes: dict[str, list[str]]) -> Iterator[Chunk]:
    """The rows of a batch, at most CHUNK_ROWS at a time. A row with invalid UTF-8 is a bad row.

    Args:
        first_row: Position of the batch's first row in its file, from 1.
        classes: Of `class_names`.

    Raises:
        DataError: Values of an extension type are inside lists or structs.
        pa.ArrowInvalid: The batch is damaged: its offsets point nowhere, for example.
    """
    batch.validate()  # that there are as many rows as it says
    try:
        batch = in_storage_types(batch)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}, which are not read: leave the column out of the file") from None
    for begin in range(0, len(batch), CHUNK_ROWS):
        table = pa.Table.from_batches([batch.slice(begin, CHUNK_ROWS)])
        rows = pa.array(range(first_row + begin, first_row + begin + len(table)), pa.int64())
        table, bad = _without_invalid(table.append_column(ROW, rows), path)
        yield Chunk(with_names(_in_plain_types(table), classes), bad)


def update_with_rows(digest: Any, table: pa.Table) -> int:
    """Add the rows of a table to a hash, as JSON: it does not depend on how they are divided, nor on the widths of
    their types. Returns the number of bytes."""
    lines = [json.dumps(row, sort_keys=True, default=_as_json) for row in table.to_pylist()]
    text = "".join(f"{line}\n" for line in lines).encode()
    digest.update(text)
    return len(text)


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its classes, of columns that a Hugging Face data set declares as ClassLabel or as a list
    of these."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _names_of(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if names}


def with_names(table: pa.Table, classes: dict[str, list[str]]) -> pa.Table:
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


def _as_json(value: Any) -> Any:
    """A value that JSON does not have."""
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _names_of(feature: Any) -> list[str]:
    if isinstance(feature, list) and len(feature) == 1:
        feature = {"feature": feature[0]}
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature.get("names") or []]
    inner = feature.get("feature")
    return _names_of(inner) if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else []


def _named(values: pa.Array, names: list[str]) -> pa.Array:
    return pa.array([_name(number, names) for number in pc.cast(values, pa.int64()).to_pylist()], pa.string())


def _name(number: int | None, names: list[str]) -> str | None:
    """A number beyond the classes stays what it is, and is refused as an unknown label."""
    if number is None or number == -1:
        return None
    return names[number] if 0 <= number < len(names) else str(number)


def _in_plain_types(table: pa.Table) -> pa.Table:
    """The table with columns that hold their values themselves, and in order: no dictionaries (pandas' categories), no
    views, no runs."""
    for place, field in enumerate(table.schema):
        column = table.column(place)
        match field.type.id:
            case pa.lib.Type_DICTIONARY:
                column = column.cast(field.type.value_type)
            case pa.lib.Type_STRING_VIEW:
                column = column.cast(pa.large_string())
            case pa.lib.Type_BINARY_VIEW:
                column = column.cast(pa.large_binary())
            case pa.lib.Type_LIST_VIEW | pa.lib.Type_LARGE_LIST_VIEW:
                column = column.cast(pa.large_list(field.type.value_type))
            case pa.lib.Type_RUN_END_ENCODED:
                column = pc.run_end_decode(column)
            case _:
                continue
        table = table.set_column(place, field.name, column)
    return table


def _without_invalid(table: pa.Table, path: str) -> tuple[pa.Table, list[BadRow]]:
    """The rows whose texts are UTF-8, and the others. Raises pa.ArrowInvalid when more is wrong with the table."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raw = table.cast(pa.schema([field.with_type(_of_bytes(field.type)) for field in table.schema]))
        raw.validate(full=True)
        invalid = {i: name for i in range(len(table)) if (name := _invalid_column(table.slice(i, 1))) is not None}
        if not invalid:
            raise error
        bad = [_bad_row(raw.slice(i, 1).to_pylist()[0], name, path) for i, name in invalid.items()]
        return table.take(pa.array([i for i in range(len(table)) if i not in invalid], pa.int64())), bad
    return table, []


def _invalid_column(row: pa.Table) -> str | None:
    """The first column of a row that is not valid."""
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return str(name)
    return None


def _bad_row(values: dict[str, Any], column: str, path: str) -> BadRow:
    return BadRow(path, values.pop(ROW), f"{column} is invalid UTF-8", data=_decoded(values))


def _of_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in place of texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_of_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_of_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_of_bytes(field.type)) for field in kind])
    return kind


def _decoded(value: Any) -> Any:
    """A value with text in place of bytes; those that are not UTF-8 are lone surrogates in it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return {key: _decoded(one) for key, one in value.items()} if isinstance(value, dict) else value
