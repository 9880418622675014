"""JSON Lines, and JSON files that hold a list of objects."""

import io
import json
from collections.abc import Iterator
from typing import Any

from raytrain.data.readers.base import Rows, SourceFile, Span, Unreadable
from raytrain.data.readers.text import first_line_number, is_valid, lines_of, not_valid, open_text

READ_CHARACTERS = 1 << 20  # how much of a JSON file is read at a time, at least
BLANK = " \t\r\n"


def jsonl_rows(file: SourceFile, span: Span | None = None) -> Rows:
    """A row per line; blank lines are passed over."""
    for number, line in enumerate(lines_of(file, span=span), first_line_number(span)):
        if line.strip():
            yield number, object_in(line, not_valid(file))


def json_rows(file: SourceFile) -> Rows:
    """A row per object of the list, numbered from 1; a file that does not begin with [ is read as JSON Lines.

    Raises ValueError where the next object can't be found.
    """
    with open_text(file) as source:
        buffer = _Buffer(source)
        if buffer.peek() == "[":
            for number, text in enumerate(_items(buffer), 1):
                yield number, object_in(text, not_valid(file))
            return
    yield from jsonl_rows(file)


class _Buffer:
    """A JSON text of which a part at a time is in memory."""

    def __init__(self, source: io.TextIOWrapper):
        self._source, self._decoder = source, json.JSONDecoder()
        self._text, self._place, self._is_complete = "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in BLANK + "\ufeff":
                self._place += 1
            if self._place < len(self._text) or self._is_complete:
                return self._text[self._place : self._place + 1]
            self._read()

    def take(self) -> str:
        """The same, which is then behind."""
        character = self.peek()
        self._place += len(character)
        return character

    def value(self) -> str:
        """The text of the next JSON value. Raises ValueError."""
        self.peek()
        while True:
            try:
                end = self._decoder.raw_decode(self._text, self._place)[1]
            except (ValueError, RecursionError):
                if self._is_complete:
                    raise
            else:
                if end < len(self._text) or self._is_complete:  # else a number may have more digits
                    text, self._place = self._text[self._place : end], end
                    return text
            self._read()

    def _read(self) -> None:
        more = self._source.read(max(READ_CHARACTERS, len(self._text)))  # doubled, so that it is parsed few times
        self._text, self._place, self._is_complete = self._text[self._place :] + more, 0, not more


def _items(buffer: _Buffer) -> Iterator[str]:
    """The text of each value of a list."""
    buffer.take()
    number = 0
    if buffer.peek() == "]":
        return
    mark = ","
    while mark == ",":
        try:
            yield buffer.value()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"after row {number}: malformed JSON ({error})") from None
        number, mark = number + 1, buffer.take()
    if mark != "]":
        raise ValueError(f"after row {number}: malformed JSON (a comma or ] is missing)")
    if buffer.peek():
        raise ValueError("text follows the list of objects")


def object_in(text: str, not_valid: str) -> dict[str, Any] | Unreadable:
    """The object in a text, or why it can't be read. `not_valid`: why, if it has bytes of another encoding."""
    if not is_valid(text):
        return Unreadable(not_valid, text)
    try:
        row = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"malformed JSON ({error})", text)
    if not isinstance(row, dict):
        return Unreadable("not a JSON object", text)
    # An escape can spell half a surrogate pair, which is not a character; texts cut by UTF-16 length contain such
    # halves.
    if "\\ud" in text.lower() and not is_valid(json.dumps(row, ensure_ascii=False)):
        return Unreadable("half a surrogate pair (a \\ud... escape without its partner)", text)
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} is there twice")
    return found
