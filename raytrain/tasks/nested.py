"""The texts in a cell that holds lists and objects."""

from collections.abc import Iterator
from typing import Any

HALF_CHARACTER = "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character"


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which Arrow and tokenizers do not take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts_in(value: Any) -> Iterator[str]:
    """The texts in a cell; a turn of a conversation is an object with one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)
