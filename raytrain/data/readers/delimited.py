"""CSV as in RFC 4180, read strictly, and TSV, which has no quotes.

A quote that is missing would swallow the rows after it, so a record that is not well-formed costs one row: reading
continues at the line after the one in which it began.
"""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raytrain.config import SourceFormat
from raytrain.data.readers.base import Rows, SourceFile, Span, Unreadable
from raytrain.data.readers.text import is_valid, lines_of, not_valid
from raytrain.errors import ForeignMessage, counted, says

MOST_CHARACTERS = 16 << 20  # of a record with quotes; a longer one counts as one that is never closed
# A field with this many lines, of which this share look like rows, has swallowed them: a quote is missing.
MANY_LINES, MOST_OF_THEM = 5, 0.9
DELIMITERS = (",", ";", "\t", "|")

csv.field_size_limit(sys.maxsize)  # csv's default, 128 KiB, is less than a long document


@dataclass(frozen=True)
class _Record:
    row: int
    """The line in which it begins, from 1."""
    fields: list[str] | Unreadable
    text: str
    """As it is in the file, without the last line end."""


class _Lines:
    """Lines of a file that can be put back."""

    def __init__(self, lines: Iterator[str], number: int = 0):
        self._lines, self._again = lines, deque[str]()
        self.number = number
        """Number of the line that was taken last, from 1."""
        self.has_ended = False
        """Whether there were no more lines when one was asked for."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        elif (read := next(self._lines, None)) is None:
            self.has_ended = True
            raise StopIteration
        else:
            line = read
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


def header_of(file: SourceFile) -> list[str]:
    """The columns of a CSV or TSV file; none when it is empty. Raises ValueError when its first line is broken."""
    header = next(_records(file, _Lines(lines_of(file, newline="")), None), None)
    if header is None:
        return []
    if isinstance(header.fields, Unreadable):
        raise ValueError(f"its header: {header.fields.reason}")
    return header.fields


def delimited_rows(file: SourceFile, span: Span | None = None) -> Rows:
    """A row per record after the header; a row's number is the line in which it begins. Raises ValueError for a broken
    header."""
    header = header_of(file)
    lines = _Lines(lines_of(file, newline="", span=span), 0 if span is None else span.lines_before)
    records = _records(file, lines, len(header))
    if span is None or not span.start:
        next(records, None)
    for one in records:
        yield one.row, one.fields if isinstance(one.fields, Unreadable) else _row(file, header, one.fields, one.text)


def ends_between_records(file: SourceFile, span: Span) -> bool:
    """Whether no record of a part of a CSV or TSV file, which begins with one, needs more lines than the part has, and
    the first part has the header. The same records are then found in the parts as in the whole file. Raises ValueError
    for a broken header."""
    lines = _Lines(lines_of(file, newline="", span=span))
    has_record = False
    for _ in _records(file, lines, len(header_of(file))):
        has_record = True
        if lines.has_ended:
            return False
        if file.format == SourceFormat.TSV:  # its records are lines
            break
    return has_record or span.start > 0


def other_delimiter(file: SourceFile, columns: list[str]) -> str:
    """The delimiter with which the header would have all these columns, or an empty string."""
    first = next(lines_of(file), "").rstrip("\n")
    for delimiter in DELIMITERS:
        names = [name.strip().strip('"') for name in first.split(delimiter)]
        if delimiter != _delimiter(file) and set(columns) <= set(names):
            return delimiter
    return ""


def _delimiter(file: SourceFile) -> str:
    return "\t" if file.format == SourceFormat.TSV else file.reading.delimiter or ","


def _records(file: SourceFile, lines: _Lines, width: int | None) -> Iterator[_Record]:
    """The records. `width`: the number of fields that one has; None: it is not known."""
    delimiter, has_quotes = _delimiter(file), file.format != SourceFormat.TSV
    for line in lines:
        row, bare = lines.number, line.rstrip("\r\n")
        if not bare:
            continue
        if has_quotes and '"' in bare:
            fields, text = _quoted(lines, line, delimiter, width)
            yield _Record(row, Unreadable(fields, text) if isinstance(fields, str) else fields, text)
        else:
            yield _Record(row, bare.split(delimiter), bare)


def _quoted(lines: _Lines, first: str, delimiter: str, width: int | None) -> tuple[list[str] | str, str]:
    """(fields of a record with quotes, or what is wrong with it; its lines as they are in the file)."""
    taken: list[str] = []
    try:
        fields = next(csv.reader(_feed(lines, first, taken), delimiter=delimiter, strict=True))
    except csv.Error as error:
        lines.put_back(taken[1:])
        return _what_is_wrong(taken, error), first.rstrip("\r\n")
    inner, more = taken[1:-1], counted(len(taken) - 1, "more line")
    looks_like_rows = sum(line.count(delimiter) + 1 == width for line in inner) >= MOST_OF_THEM * len(inner)
    if width and width > 1 and inner and looks_like_rows and (len(inner) >= MANY_LINES or len(fields) != width):
        lines.put_back(taken[1:])
        return f"a quoted field continues for {more}, which look like rows: a quote is missing", first.rstrip("\r\n")
    text = "".join(taken).rstrip("\r\n")
    if len(taken) > 1 and text.count('"') % 2:
        return f"a quoted field continues for {more}, and its record has an odd number of quotes", text
    if '""' not in text and any(re.fullmatch(r'\s+".*"\s*', field, re.DOTALL) for field in fields):
        return "there are blanks between a delimiter and a quote; a quoted field begins with its quote", text
    return fields, text


def _feed(lines: _Lines, first: str, taken: list[str]) -> Iterator[str]:
    """The lines that csv asks for until the record ends; they are noted in `taken`."""
    taken.append(first)
    yield first
    num_characters = len(first)
    for line in lines:
        taken.append(line)
        num_characters += len(line)
        if num_characters > MOST_CHARACTERS:
            return
        yield line


def _what_is_wrong(taken: list[str], error: csv.Error) -> str:
    if says(error, ForeignMessage.UNCLOSED_QUOTE):
        return "a quoted field begins in this line and is never closed: a quote is missing"
    hint = '; this file seems to write it as \\", which CSV does not know' if any('\\"' in one for one in taken) else ""
    return f'text follows a closing quote: a quote is missing, or one inside a quoted field is not doubled (""){hint}'


def _row(file: SourceFile, header: list[str], values: list[str], text: str) -> dict[str, Any] | Unreadable:
    """A record as a row. `text`: as it is in the file."""
    reason = ""
    if len(values) != len(header):
        reason = f"{counted(len(values), 'field')} where the header has {len(header)}"
    elif not all(map(is_valid, values)):
        reason = not_valid(file)
    elif values == header:
        reason = "it repeats the header, as where files were put together"
    return Unreadable(reason, text) if reason else dict(zip(header, values, strict=True))
