"""The data, and how it is distributed to the steps."""

import codecs
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from raytrain.config.base import Affects, Fraction, Mark, PositiveInt, Section
from raytrain.config.cleaning import CleanConfig, Share

SPLITS = ("train", "validation", "test")


class SourceFormat(StrEnum):
    """File format of a source; `auto` goes by the file name's ending."""

    AUTO = "auto"
    PARQUET = "parquet"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    TXT = "txt"
    CONLL = "conll"
    CONLLU = "conllu"


class OnError(StrEnum):
    """What happens at a row that can't be used (unparsable, empty text)."""

    FAIL = "fail"  # stop before training and name the file and the row
    QUARANTINE = "quarantine"  # write it to quarantine/ in the prepared data, count it and continue


class LeakagePolicy(StrEnum):
    """What happens to a training row that nearly equals a validation or test row."""

    REMOVE = "remove"  # leave it out of the training data, and list it in removed.parquet
    REPORT = "report"  # keep it, and list it in leaks.parquet
    OFF = "off"  # do not look


def _delimiter(value: Any) -> Any:
    """A tab can be spelled out, since a shell passes `\\t` as two characters."""
    return "\t" if value in ("\\t", "tab") else value


def _one_character(value: str) -> str:
    if len(value) != 1 or value.isalnum() or value in '"\r\n':
        raise ValueError(
            f"a delimiter is one character and not a letter, a digit, a quote or a line end: got {value!r}; give , ; | "
            "or tab, for example"
        )
    return value


def _encoding(value: str) -> str:
    try:
        is_known = codecs.lookup(value)._is_text_encoding
    except LookupError:
        is_known = False
    if not is_known:
        raise ValueError(
            f"unknown encoding {value!r}; give a name that Python knows: utf-8, utf-16, cp1252, gb18030, ..."
        )
    return value


def _column(value: int) -> int:
    if value == 0:
        raise ValueError("columns are counted from 1, or from -1 backwards: there is no column 0")
    return value


Delimiter = Annotated[str, BeforeValidator(_delimiter), AfterValidator(_one_character)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Column = Annotated[int, AfterValidator(_column)]


class FilesConfig(Section):
    """Files, and how they are read."""

    path: Annotated[str | list[str] | None, Affects.RESULT, Mark.PATH] = None
    """A file, a folder, a glob, or a list of these; local, or s3://, gs://, abfs://."""
    format: Annotated[SourceFormat, Affects.RESULT] = SourceFormat.AUTO
    """File format; auto goes by the ending."""
    delimiter: Annotated[Delimiter | None, Affects.RESULT] = None
    """Separator of the columns of CSV files, one character; null: a comma."""
    encoding: Annotated[Encoding | None, Affects.RESULT] = None
    """Encoding of text files, such as utf-16 or cp1252; null: UTF-8."""
    word_column: Annotated[Column | None, Affects.RESULT] = None
    """Column of CoNLL files that has the words, counted from 1, or from the end with -1; null: the first."""
    tag_column: Annotated[Column | None, Affects.RESULT] = None
    """Column of CoNLL files that has the tags, counted like `word_column`; null: the last."""


class SourceConfig(FilesConfig):
    """The files of a split."""

    path: Annotated[str | list[str], Affects.RESULT, Mark.PATH]
    """A file, a folder, a glob, or a list of these; local, or s3://, gs://, abfs://."""


class ValidationConfig(FilesConfig):
    """The validation split: separate files, or a fraction of the training data."""

    fraction: Annotated[Fraction | None, Affects.DATA] = None
    """Fraction of the training rows to hold out, chosen by a hash of the row's text and the seed: rows whose texts are
    nearly equal are on the same side."""
    group_column: Annotated[str | None, Affects.DATA] = None
    """With `fraction`: column of the training files with the group of a row, such as its document or author; rows of
    one group are on the same side. null: rows whose texts are nearly equal are a group."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and self.fraction is None:
            raise ValueError(
                "data.validation: give data.validation.path=FILE, or data.validation.fraction=0.1 to hold out a part "
                "of the training data; data.validation=null trains without evaluation"
            )
        if self.path is not None and self.fraction is not None:
            raise ValueError(
                "data.validation.path and data.validation.fraction are both given: add data.validation.fraction=null "
                "to use the files, or data.validation.path=null to hold out a part of the training data"
            )
        if self.group_column is not None and self.fraction is None:
            raise ValueError(
                "data.validation.group_column needs data.validation.fraction: validation files of their own are not "
                "divided by groups, so leave it out"
            )
        return self


class DedupConfig(Section):
    """Training rows that occur again: in the validation or test split, or among the training rows."""

    leakage: Annotated[LeakagePolicy, Affects.DATA] = LeakagePolicy.REMOVE
    """What to do with training rows that nearly equal a validation or test row; shorter than 40 characters, they are
    only counted."""
    exact: Annotated[bool, Affects.DATA] = False
    """True: of training rows with the same text (letter case and white space aside) only the first is kept."""
    near: Annotated[bool, Affects.DATA] = False
    """True: a training row of 40 characters or more is left out if it nearly equals one before it that is kept."""


class DataConfig(Section):
    """The data, and how it is distributed to the steps."""

    train: SourceConfig
    """Training files."""
    validation: Annotated[ValidationConfig | None, Affects.RESULT] = None
    """Validation files or a fraction; null: no evaluation while training."""
    test: Annotated[SourceConfig | None, Affects.RESULT] = None
    """Test files, evaluated once at the end with the best model."""
    max_length: Annotated[PositiveInt, Affects.DATA | Affects.SPEED] = 128
    """Longest sample in tokens, special tokens included; longer ones are truncated and counted."""
    on_error: Annotated[OnError, Affects.DATA] = OnError.FAIL
    """What to do at a row that can't be used."""
    max_quarantined: Annotated[Share, Affects.NOTHING] = 0.01
    """With `on_error: quarantine`: share of a split's source that may be quarantined. Beyond it the command ends."""
    clean: Annotated[CleanConfig | None, Affects.DATA] = None
    """Rules that change or drop rows before they are encoded; null: rows are taken as they are."""
    dedup: DedupConfig = DedupConfig()
    drop_last: Annotated[bool, Affects.RESULT] = False
    """True: leave out the last, smaller step of each epoch."""
    group_by_length: Annotated[bool, Affects.RESULT | Affects.SPEED] = True
    """True: a step consists of samples of similar length, so that little time is spent on padding."""
    shuffle_window_samples: Annotated[PositiveInt, Affects.RESULT] = 32768
    """Samples that are shuffled together, over all workers. A larger window mixes better and needs more memory."""
    canonical_shards: Annotated[PositiveInt | None, Affects.RESULT] = None
    """Most ordered streams (lanes) that an epoch is split into, so that workers read different row groups. It divides
    `training.global_batch_size`. null: the smallest divisor that is at least min(global_batch_size, 256)."""
    record_samples: Annotated[bool, Affects.NOTHING] = False
    """True: write the sample ids of every step to `samples/`."""
    prepared_path: Annotated[str | None, Affects.NOTHING, Mark.SHARED, Mark.PATH] = None
    """Folder of the cache of prepared data; null: `<storage_path>/_prepared`."""
