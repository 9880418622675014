"""Rules that change or drop rows before they are encoded."""

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from raytrain.config.base import Affects, PositiveInt, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Placeholder(StrEnum):
    """What can be replaced by a placeholder, the same one wherever it occurs."""

    URL = "url"  # by <url>: what begins with http://, https://, ftp:// or www.
    EMAIL = "email"  # by <email>
    IP = "ip"  # by <ip>: IPv4 and IPv6; a version such as 1.2.3.4 looks the same


class CleanPreset(StrEnum):
    """Rules for web pages, with the numbers of the paper that introduced them."""

    GOPHER = "gopher"  # quality and repetition, arXiv:2112.11446, appendix A
    C4 = "c4"  # lines that are not sentences go, then pages with fewer than five, arXiv:1910.10683
    FINEWEB = "fineweb"  # gopher, c4 without its rule on line ends, and FineWeb's own three, arXiv:2406.17557


def _language(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}", value):
        raise ValueError(f"a language is two or three lower-case letters, as in ISO 639 (en, de, zh): got {value!r}")
    return value


def _languages(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("data.clean.languages is empty: name the languages to keep, or leave it out")
    return value


Languages = Annotated[list[Annotated[str, AfterValidator(_language)]], AfterValidator(_languages)]


class CleanConfig(Section):
    """Rules that change or drop rows before they are encoded, in the order in which they are listed here, whatever the
    order in the file. Each is off unless it is given."""

    nfc: Annotated[bool, Affects.DATA] = False
    """True: Unicode normal form C, in which a letter and its accent are one character."""
    mojibake: Annotated[bool, Affects.DATA] = False
    """True: repairs text that was decoded in the wrong encoding, by ftfy. Needs `raytrain[clean]`."""
    html: Annotated[bool, Affects.DATA] = False
    """True: a text with HTML elements becomes the text in them; others stay as they are. Needs `raytrain[clean]`."""
    placeholders: Annotated[list[Placeholder], Affects.DATA] = []
    """What is replaced by `<url>`, `<email>` and `<ip>`."""
    control_characters: Annotated[bool, Affects.DATA] = False
    """True: removes control characters, terminal colours, and characters without width."""
    white_space: Annotated[bool, Affects.DATA] = False
    """True: one blank between words, none at the ends of lines, and at most one empty line in a row."""
    min_characters: Annotated[PositiveInt | None, Affects.DATA] = None
    """Drops training rows whose text has fewer characters."""
    max_characters: Annotated[PositiveInt | None, Affects.DATA] = None
    """Drops training rows whose text has more characters."""
    min_words: Annotated[PositiveInt | None, Affects.DATA] = None
    """Drops training rows whose text has fewer words, separated by blanks."""
    max_words: Annotated[PositiveInt | None, Affects.DATA] = None
    """Drops training rows whose text has more words."""
    languages: Annotated[Languages | None, Affects.DATA] = None
    """Drops training rows in other languages than these, such as [en, de], as py3langid tells them by the first 200
    characters. Texts of fewer than 40 bytes of letters are kept: they are too short to tell. Needs
    `raytrain[clean]`."""
    preset: Annotated[CleanPreset | None, Affects.DATA] = None
    """Drops training rows by rules for web pages."""
    custom: Annotated[str | None, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Affects.DATA] = None
    """package.module:function that is given a row as a dict, and returns the row, changed or not, or None to drop it
    from the training data. It is found as `task.target` is."""
    custom_source: Annotated[str | None, Affects.DATA] = None
    """SHA-256 of the Python files of the function's package. raytrain fills it in. If one of them changes, the data is
    prepared again, and a run that was started with the old ones is not resumed."""
    max_dropped: Annotated[Share, Affects.NOTHING] = 0.5
    """Share of a split's source that may be dropped. Beyond it the command ends and says which rule dropped how
    much."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not any(self.is_given(name) for name in RULES):
            raise ValueError(f"data.clean names no rule: give one of {', '.join(RULES)}, or data.clean=null")
        for unit in ("characters", "words"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"data.clean.min_{unit} {low} is above data.clean.max_{unit} {high}: no row would be kept"
                )
        return self

    def is_given(self, rule: str) -> bool:
        """Whether the field of a rule turns it on."""
        return getattr(self, rule) not in (None, False, [])


RULES = tuple(name for name in CleanConfig.model_fields if name not in ("custom_source", "max_dropped"))
"""Fields of the rules, in the order in which they are applied."""
