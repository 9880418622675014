"""Text files: their encoding, their lines, and plain text with a row per line."""

import codecs
import io
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raytrain.data.readers.base import Rows, SourceFile, Span, Unreadable, first_line
from raytrain.data.readers.opening import open_source, open_span

BYTES_TO_LOOK_AT = 4096
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Ending of a compressed file -> pyarrow's name of the codec. It says when a file is cut, and reads several frames."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(file: SourceFile, newline: str | None = None, span: Span | None = None) -> io.TextIOWrapper:
    """A text file, opened for reading, without a byte order mark.

    Bytes that are not of the encoding become lone surrogates, which a valid file can't contain; `is_valid` finds them.
    """
    encoding = codecs.lookup(file.reading.encoding or "utf-8").name
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    opened = _open_raw(file) if span is None else open_span(file, span)
    return io.TextIOWrapper(opened, encoding=encoding, errors="surrogateescape", newline=newline)


def lines_of(file: SourceFile, newline: str | None = None, span: Span | None = None) -> Iterator[str]:
    """The lines of a text file, or of a part of it, with their line ends. Raises UnicodeDecodeError, a ValueError,
    where not even the next character can be found."""
    if span is not None and span.start:  # a byte order mark within a file is a character
        encoding = codecs.lookup(file.reading.encoding or "utf-8").name
        with io.TextIOWrapper(open_span(file, span), encoding, "surrogateescape", newline) as text:
            yield from text
        return
    with open_text(file, newline, span) as text:
        for number, line in enumerate(text):
            yield line if number else line.removeprefix("\ufeff")  # utf-16-le and the like keep the mark


def first_line_number(span: Span | None) -> int:
    """Of a part of a file, from 1."""
    return 1 if span is None else span.lines_before + 1


def is_valid(text: str) -> bool:
    """Whether all bytes of a text were of the file's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_valid(file: SourceFile) -> str:
    """Why a row with bytes of another encoding can't be used."""
    if file.reading.encoding:
        return f"it has bytes that are not {file.reading.encoding}"
    return "invalid UTF-8; if the file has another encoding, set data.*.encoding, such as data.test.encoding=cp1252"


def other_encoding(file: SourceFile) -> str:
    """The encoding that a file seems to have instead of the one it is read in, or an empty string."""
    with _open_raw(file) as raw:
        head: bytes = raw.read(BYTES_TO_LOOK_AT)
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "")
    if not found and head.count(b"\0") > len(head) // 4:
        found = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    read_as = codecs.lookup(file.reading.encoding or "utf-8").name
    return "" if read_as.startswith(found.partition("-le")[0].partition("-be")[0]) else found


def text_rows(file: SourceFile, span: Span | None = None) -> Rows:
    """A row per line, in the column `text`; empty lines are passed over."""
    for number, line in enumerate(lines_of(file, span=span), first_line_number(span)):
        if line.strip():
            yield number, {"text": line.rstrip("\n")} if is_valid(line) else Unreadable(not_valid(file), line)


def why_unreadable(error: BaseException) -> str:
    """What is wrong with a file whose next row can't be found."""
    if isinstance(error, UnicodeDecodeError):
        return f"its bytes are not {error.encoding}: {error.reason}"
    return first_line(error)


CANT_BE_READ = (OSError, pa.ArrowInvalid, UnicodeError, zlib.error)
"""Errors that mean that a file can't be read any further."""


def _open_raw(file: SourceFile) -> Any:
    opened = open_source(file)
    codec = COMPRESSIONS.get(os.path.splitext(file.path)[1].lower())
    return opened if codec is None else pa.CompressedInputStream(opened, codec)
