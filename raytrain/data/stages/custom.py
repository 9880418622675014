"""data.clean.custom: a function of the user's own, which is given a row and returns it, or None to drop it."""

import copy
from typing import Any

from raytrain.config import CleanConfig
from raytrain.data.readers.base import unfit
from raytrain.tasks.imported import check_source, file_of, import_function
from raytrain.tasks.nested import is_unicode
from raytrain.tasks.user_code import is_out_of_memory, told

OPTION = "data.clean.custom"


class CustomRowError(Exception):
    """The function failed, or returned something that is not a row; the message is for the user."""


class CustomRule:
    """The function, and what it may return."""

    def __init__(self, target: str, source: str | None):
        """Raises ConfigError: it can't be imported, is not a function, or its files are others than `source` says."""
        self._target, self._file = target, file_of(target, OPTION)
        self._function = import_function(target, OPTION)
        check_source(target, source, OPTION, "data.clean.custom_source")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row that the function returns for a copy of this one; None: it is to be dropped. Raises
        CustomRowError."""
        try:
            found = self._function(copy.deepcopy(row))  # what it does to a list must not change the row itself
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise CustomRowError(f"{OPTION} {self._target} failed: {told(error, self._file)}") from error
        if found is None:
            return None
        if reason := _why_not_a_row(found, row):
            raise CustomRowError(f"{OPTION} {self._target} returned {reason}")
        return {name: found[name] for name in row}


def _why_not_a_row(found: Any, row: dict[str, Any]) -> str:
    """What is wrong with what the function returned for a row, or an empty string."""
    if not isinstance(found, dict):
        return f"a {type(found).__name__} where a row (a dict) or None is expected"
    if missing := [name for name in row if name not in found]:
        return f"a row without the column {missing[0]!r}"
    if added := [name for name in found if name not in row]:
        return f"a row with another column, {added[0]!r}; its columns: {', '.join(map(repr, row))}"
    for name, value in found.items():
        is_the_same = value is row[name] and not isinstance(value, (list, dict))  # those may be changed in place
        if not is_the_same and (reason := _odd(value) or unfit(value)):
            return f"a row whose {name} {reason}"
    return ""


def _odd(value: Any) -> str:
    """Why a value can't be that of a column of a file, or an empty string."""
    if isinstance(value, (list, tuple)):
        return next((reason for item in value if (reason := _odd(item))), "")
    if isinstance(value, str):
        return "" if value.isascii() or is_unicode(value) else "has half a surrogate pair, which is not a character"
    if value is None or isinstance(value, (bool, int, float, dict)):
        return ""
    return f"is of type {type(value).__name__}; a value is text, a number, true or false, a list of these, or None"


def custom_rule(clean: CleanConfig) -> CustomRule | None:
    """The rule that a config names. Raises ConfigError."""
    return None if clean.custom is None else CustomRule(clean.custom, clean.custom_source)
