"""The data, and how it is distributed to the steps."""

import codecs
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from raytrain.config.base import Affects, Fraction, Mark, NonNegativeInt, PositiveInt, Section
from raytrain.config.cleaning import CleanConfig, Share
from raytrain.config.labels import Label
from raytrain.config.task import check_keys

SPLITS = ("train", "validation", "test")


class SourceFormat(StrEnum):
    """File format of a source; `auto` goes by the file name's ending."""

    AUTO = "auto"
    PARQUET = "parquet"
    ARROW = "arrow"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    TXT = "txt"
    CONLL = "conll"
    CONLLU = "conllu"
    IMAGES = "images"
    SQL = "sql"


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
    """A file, a folder, a glob, or a list of these; local, or s3://, gs://, abfs://. Or a database: sqlite:///FILE,
    postgresql://USER@HOST/NAME."""
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
    query: Annotated[str | None, Affects.RESULT] = None
    """Of a database: the SELECT whose rows are the data."""
    order_by: Annotated[str | list[str] | None, Affects.RESULT] = None
    """Of a database: the column, or a list of columns, that order the rows. No two rows have the same values there."""

    @property
    def paths(self) -> list[str]:
        """The paths as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path or [])


class SourceConfig(FilesConfig):
    """The files of a split."""

    path: Annotated[str | list[str], Affects.RESULT, Mark.PATH]
    """A file, a folder, a glob, or a list of these; local, or s3://, gs://, abfs://. Or a database: sqlite:///FILE,
    postgresql://USER@HOST/NAME."""


class WeightedSource(SourceConfig):
    """One of several sources of training data."""

    weight: Annotated[PositiveFloat | None, Affects.RESULT] = None
    """Its part of an epoch's samples, in proportion to the other weights: those of 3 and 1 make an epoch of three
    quarters and one quarter, however large the sources are. null in all sources: each sample comes once."""


class TrainConfig(FilesConfig):
    """The training data: files, or several sources of them."""

    sources: Annotated[list[WeightedSource] | None, Affects.RESULT, Mark.PATH] = None
    """Instead of `path`: a list of sources, each with files, with how they are read, and with a weight."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.sources is None):
            given = "none is given" if self.path is None else "both are given"
            raise ValueError(
                f"data.train.path and data.train.sources: {given}. Give data.train.path=FILE, or a list "
                "data.train.sources=[{path: FILE, weight: 1}, {path: FILE, weight: 1}], and leave the other out"
            )
        if self.sources is None:
            return self
        defaults = {name: field.default for name, field in FilesConfig.model_fields.items()}
        options = [name for name, default in defaults.items() if getattr(self, name) != default]
        if options:
            raise ValueError(f"data.train.{options[0]} is for data.train.path: give it in each of data.train.sources")
        if not self.sources:
            raise ValueError("data.train.sources is empty: list at least one, with a path")
        without = [place for place, source in enumerate(self.sources) if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"data.train.sources.{without[0]} has no weight, and others have one: give one in each, or in none"
            )
        return self

    @property
    def paths(self) -> list[str]:
        """The paths of all sources."""
        return super().paths + [path for source in self.sources or [] for path in source.paths]

    @property
    def weights(self) -> list[float] | None:
        """The weight of each source; None without weights."""
        weights = [source.weight for source in self.sources or [] if source.weight is not None]
        return weights or None


class ValidationConfig(FilesConfig):
    """The validation split: separate files, or a fraction of the training data."""

    fraction: Annotated[Fraction | None, Affects.DATA] = None
    """Fraction of the training rows to hold out, chosen by a hash of the row's text and the seed: rows whose texts are
    nearly equal are on the same side."""
    group_column: Annotated[str | None, Affects.DATA] = None
    """With `fraction`: column of the training files with the group of a row, such as its document or author; rows of
    one group are on the same side. null: rows whose texts are nearly equal are a group."""
    stratify: Annotated[bool, Affects.DATA] = False
    """With `fraction`: True holds out that fraction of the rows of each label, to within a group of rows that stay
    together."""

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
        if self.stratify and self.fraction is None:
            raise ValueError(
                "data.validation.stratify needs data.validation.fraction: validation files of their own are taken as "
                "they are, so leave it out"
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


class BalanceConfig(Section):
    """How many samples of each label an epoch has. Samples of rare labels come several times, those of frequent ones
    not in every epoch."""

    by: Annotated[str, Field(min_length=1), Affects.DATA] = "label"
    """What is balanced: `label`, the label of a sample, or a column of the training files, such as its language or its
    domain; what is said of labels below then means the column's values."""
    to: Annotated[Literal["uniform"] | PositiveFloat | dict[Label, NonNegativeInt], Affects.RESULT] = "uniform"
    """uniform: equally many samples of each label. A number T, the temperature: in proportion to n^(1/T), where a label
    has n samples; 1 keeps the proportions of the data, and a large T is nearly uniform. A mapping: the samples of each
    label in an epoch."""

    @model_validator(mode="after")
    def _some_samples(self) -> Self:
        if isinstance(self.to, dict) and not any(self.to.values()):
            raise ValueError(
                "data.balance.to has no sample of any label: give the samples of each label in an epoch, or uniform"
            )
        return self

    @property
    def column(self) -> str | None:
        """The column of the training files that is balanced; None: the label."""
        return None if self.by == "label" else self.by

    def check_labels(self, labels: list[str]) -> None:
        """Raises ValueError when `to` is a mapping and its keys are not these labels, or values of the column."""
        if isinstance(self.to, dict):
            kind = "label" if self.column is None else f"value of {self.by!r}"
            check_keys("data.balance.to", "count", self.to, labels, kind)


class AugmentConfig(Section):
    """Changes of the training samples, others in each epoch and for each copy. Words keep their tags, and tagged
    entities stay as they are. Evaluations are not changed."""

    word_drop: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT] = 0.0
    """Probability that a word is dropped; a text keeps one at least."""
    word_swap: Annotated[float, Field(ge=0.0, le=1.0), Affects.RESULT] = 0.0
    """Probability that a word changes places with the next one, if that is not part of another exchange."""
    span_mask: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT] = 0.0
    """About the fraction of the words that is masked, in spans of neighboring words, by the tokenizer's mask token, or
    where it has none by the one for unknown words."""
    span_words: Annotated[PositiveInt, Affects.RESULT] = 3
    """Words of the longest span that is masked; lengths from 1 on are equally likely."""
    token_replacement: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT] = 0.0
    """Probability that a token is replaced by a random one of the vocabulary."""
    case: Annotated[float, Field(ge=0.0, le=1.0), Affects.RESULT] = 0.0
    """Probability that a word is written in another letter case: lower, upper or capitalized. For tokenizers that keep
    the case."""
    typo: Annotated[float, Field(ge=0.0, le=1.0), Affects.RESULT] = 0.0
    """Probability that a word of three letters or more has a slip: two letters exchanged, or one left out, doubled or
    another."""
    custom: Annotated[str | None, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Affects.RESULT] = None
    """package.module:function, a function of your own that changes a sample after all others: it takes the sample, a
    dict of its stored columns, and a numpy generator, and returns a dict like it."""
    custom_source: Annotated[str | None, Affects.RESULT] = None
    """SHA-256 of the Python files of its top-level package. raytrain fills it in. If they change, a run that was
    started with the old ones is not resumed."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        rates = ("word_drop", "word_swap", "span_mask", "token_replacement", "case", "typo", "custom")
        if not any(getattr(self, name) for name in rates):
            raise ValueError(
                f"data.augment changes nothing: set one of {', '.join(f'data.augment.{name}' for name in rates)}, "
                "or leave data.augment out"
            )
        return self


class DataConfig(Section):
    """The data, and how it is distributed to the steps."""

    train: TrainConfig
    """Training data."""
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
    balance: Annotated[BalanceConfig | None, Affects.RESULT] = None
    """How many samples of each label an epoch has; null: each sample comes once. `{}` stands for equally many of each
    label."""
    epoch_samples: Annotated[PositiveInt | None, Affects.RESULT] = None
    """Samples in an epoch, copies counted; null: as many as the training data has. Fewer: each epoch takes others, so
    that all samples come equally often."""
    augment: Annotated[AugmentConfig | None, Affects.RESULT] = None
    """How training samples are changed before each epoch; null: not at all."""
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

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.balance is None or not isinstance(self.balance.to, dict):
            return self
        others = {"data.epoch_samples": self.epoch_samples, "the weights of data.train.sources": self.train.weights}
        for what, value in others.items():
            if value is not None:
                raise ValueError(
                    f"{what} and the counts of data.balance.to both set the samples in an epoch: leave the first out, "
                    "or set data.balance.to=uniform"
                )
        return self

    @property
    def has_copies(self) -> bool:
        """Whether an epoch is anything but each sample once."""
        return self.balance is not None or self.epoch_samples is not None or self.train.weights is not None

    @property
    def fixed_epoch_samples(self) -> int | None:
        """Samples in an epoch where the config says it; None: as many as the training data has."""
        if self.balance is not None and isinstance(self.balance.to, dict):
            return sum(self.balance.to.values())
        return self.epoch_samples

    def samples_per_epoch(self, num_samples: int) -> int:
        """Samples in an epoch, copies counted. `num_samples`: of the training data."""
        return self.fixed_epoch_samples or num_samples
