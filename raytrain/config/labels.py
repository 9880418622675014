"""Labels and names of code, as several sections have them."""

import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _label(value: Any) -> Any:
    """An integer, which only Python can give, becomes its digits, as a text file has it. From YAML a label is what is
    written, in Unicode's normal form C, as the labels of the data are read."""
    if isinstance(value, bool):
        raise ValueError(f"task.labels: a label is text, so give '{str(value).lower()}' instead of {value}")
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    return str(value) if isinstance(value, int) else value


def _labels(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("task.labels is empty: name the labels, or leave it out to take those of the data")
    if len(set(value)) < len(value):
        raise ValueError(f"task.labels names {max(value, key=value.count)!r} twice; each label is one class")
    return value


Label = Annotated[str, BeforeValidator(_label)]
CodeName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Labels = Annotated[list[Label], AfterValidator(_labels)]
