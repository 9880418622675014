"""What all parts of the config stand on, and what a field declares of itself beside its type.

Each field that holds a value declares what it affects, and what else is special about it:

    storage_path: Annotated[str, Affects.NOTHING, Mark.SHARED, Mark.PATH] = "runs"

Whoever has to know which fields may change when a run is resumed, which decide what the prepared data are, or which
name a path, asks `config.fields`; no other module lists fields.
"""

from enum import Enum, Flag, auto
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Affects(Flag):
    """What comes out differently when a field has another value. Members combine: `Affects.DATA | Affects.SPEED`."""

    NOTHING = 0
    """None of the others: names, places, what is kept and reported, how many workers there are."""
    DATA = auto()
    """The prepared data, which are then prepared again. The fingerprint of prepared data takes the field's value."""
    RESULT = auto()
    """The weights after a given step, or the numbers that an evaluation of them gives."""
    EVALUATION = auto()
    """When the model is evaluated, which model is the best, and when training stops early. Needs data.validation."""
    SPEED = auto()
    """How long a step takes at a given number of workers."""


class Mark(Enum):
    """What else is special about a field."""

    MID_RUN = auto()
    """May get another value in the middle: of a run, between two generations of a population; of a sweep, when it is
    resumed."""
    SHARED = auto()
    """All trials of a sweep share it: it belongs to their workers, or to the sweep's folder."""
    PATH = auto()
    """Names files or a folder: a path, or a list of them."""
    PATH_OR_HUB_ID = auto()
    """Names a folder, or else a repository of the hub."""
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
