"""Arrow tables without extension types (P13). A library may register such a type with a conversion to Python objects
that runs code: Ray Data does, for pickled objects. What comes from storage is only ever seen as what it is stored as.
"""

from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def in_storage_types(rows: Rows) -> Rows:
    """The rows with columns of extension types as the type that they are stored as. Raises pa.ArrowInvalid for one
    inside a list or a struct."""
    for place, field in enumerate(rows.schema):
        if not has_extension(field.type):
            continue
        column = rows.column(place)
        while isinstance(column.type, pa.BaseExtensionType):
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            stored = pa.chunked_array([chunk.storage for chunk in chunks], column.type.storage_type)
            column = stored if isinstance(column, pa.ChunkedArray) else stored.combine_chunks()
        if has_extension(column.type):
            raise pa.ArrowInvalid(f"column {field.name!r} has values of the extension type {field.type} inside others")
        rows = rows.set_column(place, field.name, column)
    return rows


def has_extension(kind: pa.DataType) -> bool:
    """Whether a type is an extension type, or holds one."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return has_extension(kind.value_type)
    return any(has_extension(kind.field(i).type) for i in range(kind.num_fields))


def read_parquet(source: Any, **options: Any) -> pa.Table:
    """`pyarrow.parquet.read_table`, in storage types. Raises pa.ArrowInvalid and OSError."""
    return in_storage_types(pq.read_table(source, **options))
