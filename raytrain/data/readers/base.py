"""What all readers share: a source file, a part of it to read, and rows as chunks. No Ray, no torch."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import pyarrow as pa

from raytrain.config import SourceFormat
from raytrain.errors import DataError
from raytrain.tasks.base import RowError

ROW = "__row__"
TABLE_FORMATS = (SourceFormat.PARQUET, SourceFormat.ARROW, SourceFormat.IMAGES)
"""Formats whose files hold tables of Arrow's types, and are read at any place; and folders of images, which are read
so too."""
GROUPED = (SourceFormat.PARQUET, SourceFormat.IMAGES)
"""Formats whose rows come in groups, each of which can be read alone and whose numbers of rows are known before."""
CHUNK_ROWS = 4096
MOST_BYTES = 64  # of a value in what is told of a bad row


@dataclass(frozen=True)
class Reading:
    """How the files of a source are read: its options beside `path` and `format`; None: the default."""

    delimiter: str | None = None
    encoding: str | None = None
    word_column: int | None = None
    tag_column: int | None = None
    query: str | None = None
    order_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceFile:
    """One file of a split."""

    path: str
    format: SourceFormat
    num_bytes: int
    modified_at: str
    """ISO time of the last modification."""
    reading: Reading = Reading()
    content: str = ""
    """Hash of its bytes, or what the object store calls them (ETag); "" when neither is known."""
    source: int = 0
    """Index in data.train.sources; 0 without."""


@dataclass(frozen=True)
class Span:
    """A part of a text file that begins and ends between two rows."""

    start: int
    stop: int
    """Bytes [start, stop) of the file."""
    lines_before: int = 0
    documents_before: int = 0
    """In CoNLL and CoNLL-U files."""
    width: int = 0
    """Columns of the first sentence of a CoNLL file; 0 in other formats."""


@dataclass(frozen=True)
class ReadTask:
    """A part of a file that is read at once: the whole file, but large files are cut, see `data.cutting`."""

    split: str
    file_of_split: int
    """Index of the file in its split."""
    file: SourceFile
    row_groups: tuple[int, int] | None = None
    """Parquet row groups [start, stop); None: the whole file."""
    first_row: int = 1
    """1-based position in the file of the first row group's first row."""
    span: Span | None = None
    """Of a text file; None: the whole file."""
    num_bytes: int = 0
    """About how many bytes of the file it reads."""

    @classmethod
    def from_json(cls, text: str) -> "ReadTask":
        """What `json.dumps(asdict(task))` wrote."""
        raw = json.loads(text)
        file, groups, span = raw.pop("file"), raw.pop("row_groups"), raw.pop("span")
        reading = file.pop("reading")
        source = SourceFile(**file, reading=Reading(**{**reading, "order_by": tuple(reading["order_by"])}))
        return cls(
            file=source, row_groups=tuple(groups) if groups else None, span=Span(**span) if span else None, **raw
        )


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used."""

    path: str
    row: int
    reason: str
    code: RowError = RowError.UNREADABLE
    data: Any = None
    """The row itself: its columns, or the text that could not be parsed."""

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}"


@dataclass
class Chunk:
    """Rows of a file, and those that could not be parsed."""

    table: pa.Table
    bad_rows: list[BadRow] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows of both kinds."""
        return len(self.table) + len(self.bad_rows)


@dataclass(frozen=True)
class Unreadable:
    """A row that can't be parsed."""

    reason: str
    text: str
    """As it is in the file; bytes of another encoding are lone surrogates in it."""


class RowsChangedError(DataError):
    """The rows of a query are not those that were checked before."""


Rows = Iterator[tuple[int, dict[str, Any] | Unreadable]]
"""(row, its columns, or the reason why it has none)."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; Arrow appends the place in its source that raised it."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def in_chunks(rows: Rows, path: str, columns: Collection[str] | None) -> Iterator[Chunk]:
    """Rows as chunks of at most CHUNK_ROWS.

    Args:
        columns: Those that are kept, and that each chunk has, with nulls where a row has no value. None: all that were
            found so far in the file.
    """
    names: dict[str, None] = dict.fromkeys(columns or ())
    good: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for row, values in rows:
        if isinstance(values, Unreadable):
            bad.append(BadRow(path, row, values.reason, data=values.text))
        else:
            if columns is None:
                names.update(dict.fromkeys(values))
            good.append({**values, ROW: row})
        if len(good) + len(bad) >= CHUNK_ROWS:
            yield _chunk(good, [*names, ROW], bad, path)
            good, bad = [], []
    if good or bad:
        yield _chunk(good, [*names, ROW], bad, path)


def _chunk(rows: list[dict[str, Any]], names: list[str], bad: list[BadRow], path: str) -> Chunk:
    """Rows as a table. A row with a value that no column of Arrow can hold is a bad row; the others are not."""
    for name in names:
        odd = {i: reason for i, row in enumerate(rows) if (reason := unfit(row.get(name)))}
        bad += [BadRow(path, rows[i][ROW], f"{name} {why}", data=row_itself(rows[i])) for i, why in odd.items()]
        rows = [row for i, row in enumerate(rows) if i not in odd]
    bad.sort(key=lambda one: one.row)
    return Chunk(pa.table({name: as_column([row.get(name) for row in rows]) for name in names}), bad)


def row_itself(values: dict[str, Any]) -> dict[str, Any]:
    """The user's columns of a row. Of bytes, such as an image's, their number: they are in the source."""
    return {name: _without_bytes(value) for name, value in values.items() if name != ROW}


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes) and len(value) > MOST_BYTES:
        return f"({len(value):,} bytes)"
    return {key: _without_bytes(one) for key, one in value.items()} if isinstance(value, dict) else value


def unfit(value: Any) -> str:
    """Why a value can't be one of a column, or an empty string."""
    if not isinstance(value, list):
        return ""
    types = set(map(type, value)) - {NoneType}
    if len(types) > 1 and types != {int, float}:
        common = max(types, key=lambda one: sum(type(item) is one for item in value))
        odd = next(item for item in value if type(item) not in (common, NoneType))
        kind = _kind(next(item for item in value if type(item) is common))
        return f"holds {json.dumps(odd)} among items of type {kind}"
    bits = 53 if float in types else 63
    if int in types and (large := next((i for i in value if type(i) is int and i.bit_length() > bits), None)):
        return f"holds {large}, an integer of more than {bits} bits" + " beside decimal numbers" * (float in types)
    return next((reason for item in value if (reason := unfit(item))), "") if list in types else ""


def _kind(value: Any) -> str:
    """A value's type; the fields of an object are not looked at."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer" if -(2**63) <= value < 2**63 else "text"
        case float():
            return "decimal number"
        case str():
            return "text"
        case list():
            return f"list of {next((_kind(item) for item in value if item is not None), 'null')}"
    return "object"


def whole(value: Any) -> Any:
    """7 for 7.0: beside missing values, pandas and Arrow's reader of JSON make decimals of integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_column(values: list[Any]) -> pa.Array:
    """Values as Arrow. Where they have several types, each keeps its own, in a union: what a row means must not depend
    on the rows beside it. Integers beyond 64 bits become text."""
    types = set(map(type, values)) - {NoneType}
    if types <= {int, float} or (len(types) == 1 and (list not in types or _are_alike(values))):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    by_kind: dict[str, list[Any]] = defaultdict(list)
    kinds, offsets = [], []
    for value in values:
        kind = _kind(value)
        kinds.append(kind)
        offsets.append(len(by_kind[kind]))
        by_kind[kind].append(str(value) if kind == "text" else value)
    names = list(by_kind)
    tags = pa.array([names.index(kind) for kind in kinds], pa.int8())
    children = [_child(by_kind[name]) for name in names]
    return pa.UnionArray.from_dense(tags, pa.array(offsets, pa.int32()), children, names)


def _are_alike(lists: list[Any]) -> bool:
    """Whether the lists have items of one type; Arrow would make numbers of booleans."""
    return len({_kind(value) for value in lists} - {"null", "list of null"}) <= 1


def _child(values: list[Any]) -> pa.Array:
    """Values of one kind as Arrow; those of objects whose fields differ in type as their JSON text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([json.dumps(value) for value in values])
