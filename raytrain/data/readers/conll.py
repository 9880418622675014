"""CoNLL files, in which a line is a word and a blank line ends a sentence, and CoNLL-U."""

import itertools
import re
from collections.abc import Iterator

from raytrain.config import SourceFormat
from raytrain.data.readers.base import Rows, SourceFile, Span, Unreadable
from raytrain.data.readers.text import first_line_number, is_valid, lines_of, not_valid
from raytrain.errors import counted

DOCUMENT_START = "-DOCSTART-"
COLUMNS = ["tokens", "tags", "document"]
# Tags of entities in any of the schemes IOB, IOB2, IOBES and BILOU.
ENTITY_TAG = re.compile(r"O|[BIESLU]-\S+")
KEY_VALUE = re.compile(r"[A-Za-z_]\w* ?= *\S")  # in a comment, such as `# sent_id = 4`; a tab is between columns
FEW_TOKENS = 100  # too few to say that their tags are mostly unique
SENTENCES_TO_LOOK_AT = 200

_Line = tuple[int, str, list[str]]
"""(number, text, columns)."""


def conll_rows(file: SourceFile, span: Span | None = None) -> Rows:
    """A row per sentence, numbered by its first line. Columns are separated by tabs where a line has one, else by
    blanks."""
    width = 0 if span is None else span.width
    for document, sentence in _sentences(file, span):
        width = width or len(sentence[0][2])
        if len(sentence[0][2]) < 2:  # a broken line does not decide how many columns there are
            width = 0
        row = _row(file, document, sentence, width)
        text = "".join(line for _, line, _ in sentence) if isinstance(row, str) else ""
        yield sentence[0][0], Unreadable(row, text) if isinstance(row, str) else row


def conllu_rows(file: SourceFile, span: Span | None = None) -> Rows:
    """A row per sentence of CoNLL-U (universaldependencies.org/format.html): the word is FORM, its tag UPOS."""
    words: list[tuple[str, str]] = []
    first, document, reason, text = 0, 0 if span is None else span.documents_before, "", ""
    for number, line in enumerate(itertools.chain(lines_of(file, span=span), [""]), first_line_number(span)):
        if line.startswith("#"):
            document += line.startswith("# newdoc")
        elif line.strip():
            first, text = first or number, text + line
            columns = line.rstrip("\n").split("\t")
            wrong = _wrong_in_conllu(file, columns, line)
            reason = reason or (f"line {number} {wrong}" if wrong else "")
            if not wrong and columns[0].isdigit():  # 1-2 is a contraction of words that follow, 1.1 an empty node
                words.append((columns[1], columns[3]))
        elif first:
            tokens, tags = [word for word, _ in words], [tag for _, tag in words]
            row = {"tokens": tokens, "tags": tags, "document": document}
            yield first, Unreadable(reason, text) if reason else row
            words, first, reason, text = [], 0, "", ""


def wrong_columns(file: SourceFile) -> str:
    """Why the columns that are read can't be those of the words and of the tags, or an empty string.

    It is judged by the first sentences of a CoNLL file.
    """
    sentences = [lines for _, lines in itertools.islice(_sentences(file), SENTENCES_TO_LOOK_AT)]
    rows = [columns for lines in sentences for _, _, columns in lines]
    width = min((len(columns) for columns in rows if len(columns) > 1), default=0)
    values = [[columns[i] for columns in rows if len(columns) >= width] for i in range(width)]
    if not width or not _has(file, width):
        return ""
    word, tag = (place % width for place in _places(file))
    tagged = [i + 1 for i in range(width) if _are_entity_tags(values[i]) and set(values[i]) != {"O"}]
    if _are_entity_tags(values[word]):
        return f"column {word + 1}, read as the words, has tags such as {_one_tag(values[word])!r}"
    if _are_numbers_of_words(word, sentences):
        return f"column {word + 1}, read as the words, numbers the words of a sentence"
    seen = set(values[tag])
    if "O" not in seen and len(values[tag]) >= FEW_TOKENS and 2 * len(seen) > len(values[tag]):
        return f"column {tag + 1}, read as the tags, has mostly different values, such as {values[tag][0]!r}, and no O"
    if "O" not in seen and tagged:
        return f"column {tag + 1}, read as the tags, has no O, and column {tagged[0]} has tags"
    if file.reading.tag_column is None and seen == {"O"} and tagged:
        return f"column {tag + 1}, read as the tags, has nothing but O, and column {tagged[-1]} has other tags"
    return ""


def looks_like_conll(file: SourceFile) -> bool:
    """Whether a text file of another format has the lines of a CoNLL file: several sentences, between them blank lines,
    and the same number of columns in each line; or a last column of entity tags."""
    sentences = [lines for _, lines in itertools.islice(_sentences(file), SENTENCES_TO_LOOK_AT)]
    rows = [columns for lines in sentences for _, _, columns in lines]
    if {len(columns) for columns in rows} & {0, 1} or len({len(columns) for columns in rows}) != 1:
        return False
    return len(sentences) > 1 or _are_entity_tags([columns[-1] for columns in rows])


def width_of(file: SourceFile) -> int:
    """Columns of the first line of the first sentence of a CoNLL file; 0: there is none."""
    return next((len(lines[0][2]) for _, lines in _sentences(file)), 0)


def _sentences(file: SourceFile, span: Span | None = None) -> Iterator[tuple[int, list[_Line]]]:
    """(document, lines) of each sentence, without comments."""
    lines: list[_Line] = []
    document = 0 if span is None else span.documents_before
    for number, line in enumerate(itertools.chain(lines_of(file, span=span), [""]), first_line_number(span)):
        is_boundary = line.split()[:1] == [DOCUMENT_START]
        if line.strip() and not is_boundary:
            lines.append((number, line, _columns(line)))
            continue
        if words := _without_comments(lines):
            yield document, words
        lines = []
        document += is_boundary


def _columns(line: str) -> list[str]:
    """At tabs, a word may have blanks. Only ASCII blanks separate, since a no-break space is part of its word."""
    bare = line.strip("\r\n")
    return bare.split("\t") if "\t" in bare else re.split(" +", bare.strip(" "))


def _without_comments(lines: list[_Line]) -> list[_Line]:
    """The lines without the comments that stand before the first word.

    A line that begins with # may also be a word: it is one when it has as many columns as the words, separated like
    theirs, and no `key=value` as comments have.
    """
    first = next((i for i, (_, line, _) in enumerate(lines) if not line.startswith("#")), len(lines))
    width = len(lines[first][2]) if first < len(lines) else max((len(columns) for _, _, columns in lines), default=0)
    for i, (_, line, columns) in enumerate(lines[:first]):
        is_marked = line.startswith(("# ", "#\t", "#begin ", "#end ")) or line.strip() == "#"
        is_like_words = first == len(lines) or ("\t" in line) == ("\t" in lines[first][1])
        if not is_marked or (is_like_words and len(columns) == width > 1 and not KEY_VALUE.search(line)):
            return lines[i:]
    return lines[first:]


def _row(file: SourceFile, document: int, sentence: list[_Line], width: int) -> dict[str, list[str] | int] | str:
    """A sentence as a row. `width`: the number of columns; 0 while it is not known."""
    for number, line, columns in sentence:
        if len(columns) < 2 or (width and len(columns) != width):
            return f"line {number} has {counted(len(columns), 'column')}, and should have {width or 'at least 2'}"
        if not is_valid(line):
            return f"line {number}: {not_valid(file)}"
        if not _has(file, len(columns)):
            width_here = counted(len(columns), "column")
            return f"line {number} has {width_here}: word_column or tag_column names one that is not there"
    word, tag = _places(file)
    rows = [columns for _, _, columns in sentence]
    return {"tokens": [row[word] for row in rows], "tags": [row[tag] for row in rows], "document": document}


def _places(file: SourceFile) -> tuple[int, int]:
    """Indices of the columns with the words and the tags."""
    options = (file.reading.word_column or 1, file.reading.tag_column or -1)
    word, tag = (place - 1 if place > 0 else place for place in options)
    return word, tag


def _has(file: SourceFile, width: int) -> bool:
    return all(-width <= place < width for place in _places(file))


def _are_entity_tags(values: list[str]) -> bool:
    return all(ENTITY_TAG.fullmatch(value) for value in values) and "O" in values


def _one_tag(values: list[str]) -> str:
    return next((value for value in values if value != "O"), "O")


def _are_numbers_of_words(word: int, sentences: list[list[_Line]]) -> bool:
    """Whether a column counts 1, 2, 3 (or from 0) in each of several sentences."""
    columns = [[line[2][word] for line in lines if len(line[2]) > word] for lines in sentences]
    counted = [found in ([str(i + start) for i in range(len(found))] for start in (0, 1)) for found in columns]
    return len(sentences) > 1 and all(counted) and any(len(found) > 1 for found in columns)


def _wrong_in_conllu(file: SourceFile, columns: list[str], line: str) -> str:
    """Why a line of CoNLL-U can't be used, or an empty string."""
    if len(columns) != 10:
        return f"has {counted(len(columns), 'column')}, and CoNLL-U has 10, separated by tabs"
    if not re.fullmatch(r"\d+([-.]\d+)?", columns[0]):
        return f"begins with {columns[0]!r} and not with the number of a word"
    if columns[0].isdigit() and columns[3] == "_":
        return "has no tag (UPOS, the fourth column, is _)"
    return "" if is_valid(line) else f"has {not_valid(file)}"


def has_sentence(file: SourceFile) -> bool:
    """Whether there is a word in a CoNLL or CoNLL-U file."""
    if file.format == SourceFormat.CONLLU:
        return any(line.strip() and not line.startswith("#") for line in lines_of(file))
    return next(_sentences(file), None) is not None
