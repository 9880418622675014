"""How large source files are cut into read tasks, and small ones are worked on together. No Ray, no torch.

Each read task writes its own parts, so the bytes of a store depend on where files are cut. That follows from the files
alone: a file is cut at the first row that begins in each of its blocks of equal size. How many read tasks a process
takes at once follows from the number of CPUs, and the store does not depend on it.

Text is cut after a pass over all blocks at once, which counts lines, so that rows keep their numbers. A CSV file is
cut where the quotes before are balanced, and stays whole if a record of one of its parts then needs lines of the next.
"""

import codecs
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raytrain.config import SourceFormat
from raytrain.data.parallel import in_threads
from raytrain.data.readers.base import SourceFile, Span, first_line
from raytrain.data.readers.conll import DOCUMENT_START, width_of
from raytrain.data.readers.delimited import ends_between_records
from raytrain.data.readers.opening import open_span
from raytrain.data.readers.text import COMPRESSIONS
from raytrain.errors import DataError, FailureCode

# A read task has a 512th of all bytes, within these bounds: enough of them for some hundred CPUs, and few enough that
# the files that they write for one another take less time than the rows.
LEAST_BYTES, MOST_BYTES, MOST_TASKS = 1 << 20, 16 << 20, 512
# Read tasks are worked on together up to these bytes, and so that each CPU has about this many such groups: with more
# the last one is shorter, which others wait for.
LEAST_GROUP_BYTES, MOST_GROUP_BYTES, GROUPS_PER_CPU = 1 << 20, 64 << 20, 8
FILE_BYTES = 16 << 10  # what opening a file and writing its parts costs, in bytes that could be read meanwhile
MOST_LINE_BYTES = 64 << 10  # of a line that crosses the end of a block of CoNLL
CUT_AT = (
    SourceFormat.JSONL,
    SourceFormat.TXT,
    SourceFormat.CSV,
    SourceFormat.TSV,
    SourceFormat.CONLL,
    SourceFormat.CONLLU,
)
"""Text formats that are cut."""
BLANK_LINE = re.compile(rb"\n\r?\n")
# The width of sentences is known again after a line with one word: such files stay whole.
ONE_COLUMN = re.compile(rb"^(?!(?:#| *-DOCSTART-) *\r?$) *[^ \t\r\n]+ *\r?$", re.MULTILINE)
NEW_DOCUMENT = {
    SourceFormat.CONLL: re.compile(rb"^.*-DOCSTART-.*$", re.MULTILINE),
    SourceFormat.CONLLU: re.compile(rb"^# newdoc", re.MULTILINE),
}
InParallel = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Like `in_threads`: what a function gives for each item, JSON-able."""


@dataclass(frozen=True)
class Block:
    """Bytes [start, stop) of a file, or a part of it that begins and ends between two rows."""

    file: SourceFile
    span: Span

    @property
    def num_bytes(self) -> int:
        """Bytes that are read."""
        return self.span.stop - self.span.start


@dataclass(frozen=True)
class Seen:
    """What a block has, JSON-able."""

    lines: int
    documents: int
    """That begin in it."""
    quotes: int
    cuts: list[list[int] | None]
    """(first byte of a row, lines and documents before it in the block), if the number of quotes in front of the block
    is even, and if it is odd."""
    begins_with_line_feed: bool
    ends_with_return: bool
    can_be_cut: bool = True


def bytes_per_task(files: Sequence[SourceFile]) -> int:
    """How large a read task should be, of all files together."""
    total = sum(file.num_bytes for file in files)
    return max(LEAST_BYTES, min(MOST_BYTES, total // MOST_TASKS))


def spans_of(files: Sequence[SourceFile], num_bytes: int, run: InParallel = in_threads) -> list[list[Span]]:
    """The parts into which each file is cut; none for one that stays whole.

    Args:
        num_bytes: Of a part.
        run: Applies a function to many items at once.
    """
    of_files = [_blocks_of(file, num_bytes) for file in files]
    seen = iter(run(look_at, [block for blocks in of_files for block in blocks]))
    spans = []
    for file, blocks in zip(files, of_files, strict=True):
        found = [Seen(**raw) for raw in itertools.islice(seen, len(blocks))]
        spans.append(_joined(file, found) if found and all(one.can_be_cut for one in found) else [])
    checks = [
        Block(file, span)
        for file, of_file in zip(files, spans, strict=True)
        if file.format in (SourceFormat.CSV, SourceFormat.TSV)
        for span in of_file[: -1 if file.format == SourceFormat.CSV else 1]
    ]
    broken = {check.file for check, is_good in zip(checks, run(is_complete, checks), strict=True) if not is_good}
    return [[] if file in broken else of_file for file, of_file in zip(files, spans, strict=True)]


def is_complete(part: Block) -> bool:
    """Whether the records of a part of a CSV or TSV file are those that the whole file has there."""
    try:
        return ends_between_records(part.file, part.span)
    except (ValueError, OSError):  # told by who reads the whole file
        return False


def _blocks_of(file: SourceFile, num_bytes: int) -> list[Block]:
    """The blocks of a file that is to be cut; the last one has up to half more."""
    if file.format not in CUT_AT or file.path.lower().endswith(tuple(COMPRESSIONS)):
        return []
    encoding = codecs.lookup(file.reading.encoding or "utf-8").name
    if encoding not in ("utf-8", "ascii") and not encoding.startswith(("iso8859", "cp125")):
        return []  # a byte that looks like a line end may be part of a character
    starts = range(0, max(1, file.num_bytes - num_bytes // 2), num_bytes)
    if len(starts) < 2:
        return []
    return [Block(file, Span(a, b)) for a, b in itertools.pairwise([*starts, file.num_bytes])]


def _joined(file: SourceFile, seen: Sequence[Seen]) -> list[Span]:
    """The parts of a file, from what its blocks have."""
    starts, lines, documents, quotes, after_return = [Span(0, 0)], 0, 0, 0, False
    for one in seen:
        lines -= after_return and one.begins_with_line_feed  # one line end, counted in both
        if one is not seen[0] and (cut := one.cuts[quotes % 2]) is not None and cut[0] < file.num_bytes:
            starts.append(Span(cut[0], 0, lines + cut[1], documents + cut[2]))
        lines, documents, quotes = lines + one.lines, documents + one.documents, quotes + one.quotes
        after_return = one.ends_with_return
    if len(starts) < 2:
        return []
    width = width_of(file) if file.format == SourceFormat.CONLL else 0
    stops = [*(span.start for span in starts[1:]), file.num_bytes]
    return [
        Span(span.start, stop, span.lines_before, span.documents_before, width)
        for span, stop in zip(starts, stops, strict=True)
    ]


def look_at(block: Block) -> dict[str, Any]:
    """What a block has, see `Seen`. Raises DataError when the file can't be read."""
    try:
        return asdict((_seen_of_conll if block.file.format in NEW_DOCUMENT else _seen)(block))
    except OSError as error:
        raise DataError(f"{block.file.path} can't be read: {first_line(error)}", FailureCode.STORAGE) from None


def _seen(block: Block) -> Seen:
    """Of a file in which rows end at line ends."""
    start, data = block.span.start, _read(block.file, block.span.start, block.span.stop)
    quotes = data.count(b'"') if block.file.format == SourceFormat.CSV else 0
    cuts = [None if at is None else [start + at, _num_lines(data[:at]), 0] for at in _line_ends(data, quotes)]
    return Seen(_num_lines(data), 0, quotes, cuts, data[:1] == b"\n", data[-1:] == b"\r")


def _line_ends(data: bytes, quotes: int) -> list[int | None]:
    """The end of the first line with an even number of quotes up to there, and with an odd number. `quotes`: in all."""
    found: list[int | None] = [None, None]
    begin, parity = 0, 0
    while None in found[: 2 if quotes else 1] and (end := data.find(b"\n", begin) + 1):
        parity = (parity + data.count(b'"', begin, end)) % 2 if quotes else 0
        found[parity] = end if found[parity] is None else found[parity]
        begin = end
    return found


def _seen_of_conll(block: Block) -> Seen:
    """Of a file in which rows end at blank lines. The lines that begin after the block's first line end, up to the one
    that its end is in, are its own."""
    start, size = block.span.start, block.num_bytes
    longer = _read(block.file, start, min(block.file.num_bytes, block.span.stop + MOST_LINE_BYTES))
    begin = longer.find(b"\n") + 1 if start else 0
    end = longer.find(b"\n", size) + 1
    if not end and start + len(longer) == block.file.num_bytes:
        end = len(longer)
    own = _without_mark(block, longer[begin:end])
    is_odd = begin > size or not end or (start > 0 and not begin) or own.count(b"\r") != own.count(b"\r\n")
    if block.file.format == SourceFormat.CONLL:
        is_odd = is_odd or ONE_COLUMN.search(own) is not None
    data, cut = longer[:size], None
    if match := BLANK_LINE.search(data):
        at = match.end()
        cut = [start + at, _num_lines(data[:at]), _num_documents(block.file, _without_mark(block, longer[begin:at]))]
    num_documents = _num_documents(block.file, own)
    return Seen(_num_lines(data), num_documents, 0, [cut, None], data[:1] == b"\n", data[-1:] == b"\r", not is_odd)


def _without_mark(block: Block, text: bytes) -> bytes:
    """The first lines of a block as `lines_of` reads them: without the byte order mark, or two, that a UTF-8 file may
    begin with."""
    if block.span.start or codecs.lookup(block.file.reading.encoding or "utf-8").name != "utf-8":
        return text
    return text.removeprefix(codecs.BOM_UTF8).removeprefix(codecs.BOM_UTF8)


def _num_documents(file: SourceFile, text: bytes) -> int:
    """Documents that begin in some lines."""
    lines: Iterator[bytes] = (match[0] for match in NEW_DOCUMENT[file.format].finditer(text))
    if file.format == SourceFormat.CONLLU:
        return sum(1 for _ in lines)
    encoding = file.reading.encoding or "utf-8"
    return sum(line.decode(encoding, "surrogateescape").split()[:1] == [DOCUMENT_START] for line in lines)


def _num_lines(data: bytes) -> int:
    """Line ends as Python counts them: \\n, \\r, or both."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def _read(file: SourceFile, start: int, stop: int) -> bytes:
    with open_span(file, Span(start, stop)) as opened:
        data: bytes = opened.read()
    return data


def groups(sizes: Sequence[int], num_cpus: float) -> list[range]:
    """Read tasks that are worked on together, as ranges of their positions: of about equal bytes, and those with many
    more than others first.

    Args:
        sizes: Bytes of each read task.
    """
    weights = [size + FILE_BYTES for size in sizes]
    total = sum(weights)
    wanted = max(LEAST_GROUP_BYTES, min(MOST_GROUP_BYTES, total / (GROUPS_PER_CPU * num_cpus)))
    number = max(1, round(total / wanted))
    middles = [before - weight / 2 for before, weight in zip(itertools.accumulate(weights), weights, strict=True)]
    found, begin = [], 0
    for _, same in itertools.groupby(int(middle / total * number) for middle in middles):
        end = begin + len(list(same))
        found.append(range(begin, end))
        begin = end
    bytes_of = {group: sum(weights[group.start : group.stop]) for group in found}
    return sorted(found, key=lambda group: -bytes_of[group] if bytes_of[group] > 2 * wanted else 0)
