"""Arrow's own format (IPC): files, which Feather is too, and streams, which Hugging Face datasets are saved as."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raytrain.data.readers.base import Chunk, SourceFile, first_line
from raytrain.data.readers.opening import REQUEST_BYTES, open_source
from raytrain.data.readers.tables import chunks_of, class_names
from raytrain.errors import DataError

FILE_MAGIC, FEATHER_1_MAGIC = b"ARROW1", b"FEA1"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_arrow(file: SourceFile, columns: list[str] | None) -> Iterator[Chunk]:
    """The rows of a file. Raises DataError when it is damaged."""
    row = 1
    try:
        with open_source(file) as opened:
            schema, batches = _opened(opened, file)
            classes = class_names(schema)
            for batch in batches:
                if columns is not None:
                    batch = batch.select([name for name in columns if name in schema.names])
                yield from chunks_of(batch, file.path, row, classes)
                row += len(batch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file.path}, near row {row}: broken Arrow file: {first_line(error)}") from None


def arrow_head(file: SourceFile) -> tuple[list[str], bool]:
    """(columns, whether there is a row). Raises OSError or ValueError."""
    with open_source(file) as opened:
        schema, batches = _opened(opened, file)
        return schema.names, any(len(batch) for batch in batches)


def _opened(opened: Any, file: SourceFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of a file, which are read one by one. Raises OSError or ValueError."""
    magic = _bytes_at(opened, 0, len(FILE_MAGIC))
    if magic.startswith(FEATHER_1_MAGIC):
        raise ValueError("it is Feather version 1; write it again, as version 2 or as Parquet")
    if magic == FILE_MAGIC:
        reader = pa.ipc.open_file(opened)
        return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    # A stream may end without its mark, and then looks the same as one that was cut between two batches.
    if _bytes_at(opened, max(0, opened.size() - len(END_OF_STREAM)), len(END_OF_STREAM)) != END_OF_STREAM:
        raise ValueError("it is neither an Arrow file nor a stream with the mark at its end")
    # A buffer makes fewer requests to an object store. A local file does without: where a damaged length claims
    # gigabytes, a buffer fills as many before it finds that there are fewer.
    source = pa.BufferedInputStream(opened, REQUEST_BYTES) if "://" in file.path else opened
    stream = pa.ipc.open_stream(source)
    return stream.schema, _to_the_end(stream, source)


def _to_the_end(stream: Any, source: Any) -> Iterator[pa.RecordBatch]:
    """The batches of a stream. Raises ValueError when it ends before its file does."""
    yield from stream
    if source.read(1):
        raise ValueError("more bytes follow the end of the stream")


def _bytes_at(opened: Any, offset: int, num_bytes: int) -> bytes:
    """Bytes of a file, which is then at its start."""
    opened.seek(offset)
    found: bytes = opened.read(num_bytes)
    opened.seek(0)
    return found
