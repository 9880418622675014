"""The base class of all sections of the config, and what fields declare besides their type.

Each field that holds a value declares what it affects, and other special properties:

    storage_path: Annotated[str, Affects.NOTHING, Mark.SHARED, Mark.PATH] = "runs"

`config.fields` answers which fields may change when a run is resumed, which ones determine the prepared data, and which
ones name a path. No other module lists fields.
"""

from enum import Enum, Flag, auto
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Affects(Flag):
    """What changes if a field has another value. Members combine: `Affects.DATA | Affects.SPEED`."""

    NOTHING = 0
    """None of the others: names, paths, what is kept and reported, the number of workers."""
    DATA = auto()
    """The prepared data. Their fingerprint includes the value, and with another value they are prepared again."""
    RESULT = auto()
    """The weights after a given step, or the metrics of an evaluation."""
    EVALUATION = auto()
    """When the model is evaluated, which model is the best, or when training stops early. Needs data.validation."""
    SPEED = auto()
    """The duration of a step at a given number of workers."""


class Mark(Enum):
    """A special property of a field."""

    MID_RUN = auto()
    """The value may change in the middle of a run, between two generations of a population, or of a sweep, when it is
    resumed."""
    SHARED = auto()
    """All trials of a sweep have the same value, which concerns their workers or the sweep's folder."""
    PATH = auto()
    """Names files or a folder: a path, or a list of them."""
    PATH_OR_HUB_ID = auto()
    """Names a folder or a repository of the hub."""
    DATABASE = auto()
    """A URI, which may name a SQLite file."""


class Section(BaseModel):
    """Base of every part of the config: frozen, and unknown keys and numbers that are not finite are refused, since
    JSON can't hold them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
