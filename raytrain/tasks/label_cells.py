"""Reads the labels in the cells of a source: each has one spelling, and a value that can't be a label is refused."""

import ast
import math
import re
import unicodedata
from collections.abc import Collection
from typing import Any

from raytrain.errors import counted

# How programs write a missing value as text. A label that is really called so has to be declared.
MISSING = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT", "#N/A"})
DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
MOST_SHOWN = 40  # characters of a value in a message
SEPARATORS = "|;,"  # which a cell with several labels is likely to use
_ITEM = r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+)\s*"""
# A list as Python and JSON write it. Without commas, as numpy writes it, Python would read one long text.
LIST = re.compile(rf"\[({_ITEM}(,{_ITEM})*,?)?\s*\]", re.DOTALL)


class LabelReader:
    """Reads the labels of cells.

    A label is text in Unicode's normal form C, an integer, or a boolean, which is spelled true or false. What a label
    may not be (a decimal number, a missing value) is accepted when it is declared.
    """

    def __init__(self, known: Collection[str] = (), separator: str | None = None):
        """`known`: the declared labels. `separator`: stands between the labels of a cell."""
        self._known, self._separator = frozenset(known), separator
        self._read: dict[tuple[type, Any], tuple[str, str]] = {}

    def one(self, value: Any) -> tuple[str, str]:
        """(label, ""), or ("", the reason why the value isn't one)."""
        try:
            if (type(value), value) not in self._read:
                self._read[type(value), value] = self._one(value)
            return self._read[type(value), value]
        except TypeError:  # a list or an object
            return "", f"is {described(value)}, and not a label"

    def only(self, cell: Any) -> tuple[list[str], str]:
        """([label], "") of a cell that holds one label, or ([], the reason)."""
        if isinstance(cell, (list, tuple)) and len(cell) != 1:
            return [], f"holds {counted(len(cell), 'label')}; set task.multi_label=true for several"
        value = cell[0] if isinstance(cell, (list, tuple)) else cell
        label, reason = self.one(value)
        if not reason and label not in self._known and LIST.fullmatch(label):
            reason = f"{label!r} is a list of labels; set task.multi_label=true"
        return ([], reason) if reason else ([label], "")

    def several(self, cell: Any) -> tuple[list[str], str]:
        """(labels, "") of a cell that holds any number of labels, or ([], the reason)."""
        values = cell
        if isinstance(cell, str):
            values, reason = self._split(cell)
            if reason:
                return [], reason
        elif not isinstance(cell, (list, tuple)):
            values = [cell]
        read = [self.one(value) for value in values]
        reason = next((reason for _, reason in read if reason), "")
        return ([], reason) if reason else (list(dict.fromkeys(label for label, _ in read)), "")

    def _split(self, cell: str) -> tuple[list[Any], str]:
        """The values in a text."""
        if cell in self._known:
            return [cell], ""
        if LIST.fullmatch(cell.strip()):
            return ast.literal_eval(cell.strip()), ""
        if not cell.strip():
            return [], "is missing; [] stands for no label"
        if self._separator is not None:
            return [part.strip() for part in cell.split(self._separator)], ""
        if cell.strip().startswith("["):
            return [], f"{cell!r} can't be read as a list, such as ['a', 'b']"
        found = next((mark for mark in SEPARATORS if mark in cell), None)
        if found is not None:
            return [], f"{cell!r} seems to hold several labels: set task.label_separator={found!r}, or declare it"
        return [cell], ""

    def _one(self, value: Any) -> tuple[str, str]:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "", "is missing"
        if isinstance(value, bool):
            return (str(value) if str(value) in self._known else str(value).lower()), ""
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return str(int(value)), ""
        if isinstance(value, float):
            value = str(value)
        if not isinstance(value, str):
            return "", f"is {described(value)}, and not a label"
        label = value if value.isascii() else unicodedata.normalize("NFC", value)
        if label in self._known:
            return label, ""
        if not label.strip():
            return "", "is missing"
        if label in MISSING:
            return "", f"is {label!r}, which stands for a missing value; if it is a label, declare it in task.labels"
        if DECIMAL.fullmatch(label):
            return "", f"is {label}, a decimal number and not a class; if it is one, declare it in task.labels"
        return label, ""


def described(value: Any) -> str:
    """A value and its type, for messages: `1900, which is a number`."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", bytes: "bytes", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    kind: str = kinds.get(type(value), type(value).__name__)
    text = repr(value)
    return f"{text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + '...'}, which is {kind}"
