"""Parquet, read by row groups."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.readers.base import CHUNK_ROWS, Chunk, ReadTask, SourceFile, first_line
from raytrain.data.readers.opening import open_source
from raytrain.data.readers.tables import chunks_of, class_names
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
                yield from chunks_of(batch, task.file.path, row, classes)
                row += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{task.file.path}, near row {row}: broken Parquet: {first_line(error)}") from None


def parquet_footer(file: SourceFile) -> tuple[list[str], list[int]]:
    """(columns, number of rows of each row group). Raises OSError or pa.ArrowInvalid."""
    with open_source(file) as opened:
        footer = pq.ParquetFile(opened)
        metadata = footer.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return footer.schema_arrow.names, rows
