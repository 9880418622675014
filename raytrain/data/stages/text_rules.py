"""Rules of data.clean that change a text: each a function of the text alone, so that a text comes out the same in every
split, in every run, and at prediction time."""

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from raytrain.config import Placeholder
from raytrain.data.stages.packages import needed

TextRule = Callable[[str], str]

LEXBOR = "selectolax.lexbor"
# ftfy with these off changes wrong encodings alone: quotes, ligatures and letter widths are the writer's.
FTFY_OFF = dict.fromkeys(("uncurl_quotes", "fix_latin_ligatures", "fix_character_width", "unescape_html"), False)

VOID_ELEMENT = re.compile(r"<(?:br|hr)\s*/?>|<img\s[^<>]*\bsrc=[^<>]*>", re.IGNORECASE)
ELEMENTS = (
    "a abbr address article aside b blockquote body button caption center cite code dd del div dl dt em figcaption "
    "figure font footer form h1 h2 h3 h4 h5 h6 head header html i iframe ins label li main mark nav ol option p pre q "
    "s script section select small span strike strong style sub sup table tbody td textarea tfoot th thead title tr tt "
    "u ul video"
)
START_TAG = re.compile(rf"<({'|'.join(ELEMENTS.split())})(?:\s+[a-z][^<>]*)?>", re.IGNORECASE)
END_TAG = re.compile(rf"</({'|'.join(ELEMENTS.split())})\s*>", re.IGNORECASE)
INVISIBLE = ["head", "iframe", "noscript", "script", "style", "template", "textarea"]
BLOCKS = "address, article, aside, blockquote, dd, div, dl, dt, figure, footer, form, h1, h2, h3, h4, h5, h6, header, "
BLOCKS += "li, main, nav, ol, p, pre, section, table, tr, ul"

URL = re.compile(r"\b(?:(?:https?|ftp)://|www\.(?=[\w-]+\.))[^\s<>\"`]+", re.IGNORECASE)
EMAIL = re.compile(r"(?:\bmailto:)?(?<![\w.+%-])[\w.+%-]+@(?:[a-z0-9-]+\.)+[a-z]{2,}\b", re.IGNORECASE)
IP_V4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)")
IP_V6 = re.compile(r"(?<![\w:.])(?=[^\s]*\d)[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:.]*[0-9a-f:](?![\w:])", re.IGNORECASE)

TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Controls but for tab and line ends; soft hyphen, zero-width space and joiners of lines, marks of byte order, and marks
# of direction. The zero-width joiner and non-joiner stay: Persian, Indic scripts and emoji are spelled with them.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
BLANKS = re.compile(r"[^\S\n]+")
AROUND_LINE_END = re.compile(r" ?\n ?")
EMPTY_LINES = re.compile(r"\n{3,}")


def check_packages(rule: str) -> None:
    """Raises ConfigError when the package that a rule needs is not installed."""
    if rule == "mojibake":
        _ftfy()
    elif rule == "html":
        needed(LEXBOR, "data.clean.html")


def nfc(text: str) -> str:
    """Unicode normal form C."""
    return unicodedata.normalize("NFC", text)


def mojibake(text: str) -> str:
    """The text that was meant where it was decoded in the wrong encoding. ASCII has nothing to repair."""
    return text if text.isascii() else str(_ftfy()(text))


@functools.cache
def _ftfy() -> Callable[[str], str]:
    ftfy = needed("ftfy", "data.clean.mojibake")
    off = dict.fromkeys(("remove_terminal_escapes", "fix_line_breaks", "remove_control_chars"), False)
    config = ftfy.TextFixerConfig(**FTFY_OFF, **off, normalization=None, explain=False)  # other rules do these
    return functools.partial(ftfy.fix_text, config=config)


def html(text: str) -> str:
    """The text of HTML elements. A text without an element that begins and ends, such as `a<b and c>d`, stays."""
    ends = {name.lower() for name in END_TAG.findall(text)}
    if not ends or not any(name.lower() in ends for name in START_TAG.findall(text)):
        return VOID_ELEMENT.sub("\n", text).strip() if VOID_ELEMENT.search(text) else text
    parsed = needed(LEXBOR, "data.clean.html").LexborHTMLParser(text)
    parsed.strip_tags(INVISIBLE)
    for node in parsed.css("br, hr"):
        node.replace_with("\n")
    for node in parsed.css(BLOCKS):
        node.insert_before("\n")
        node.insert_after("\n")
    for node in parsed.css("td, th"):
        node.insert_after(" ")
    found = parsed.body.text(separator="") if parsed.body is not None else ""
    return re.sub(r"\s*\n\s*", "\n", found).strip()


def placeholders(kinds: Sequence[Placeholder]) -> TextRule:
    """A rule that replaces URLs first, since they may hold the others, then e-mail addresses, then IP addresses."""
    rules = {Placeholder.URL: _urls, Placeholder.EMAIL: _emails, Placeholder.IP: _ips}
    chosen = [rule for kind, rule in rules.items() if kind in kinds]
    return lambda text: functools.reduce(lambda found, rule: rule(found), chosen, text)


def _urls(text: str) -> str:
    return URL.sub(_without_tail, text) if "://" in text or "www." in text.lower() else text


def _without_tail(match: re.Match[str]) -> str:
    """The placeholder, and the punctuation at the end of a URL, which belongs to the sentence."""
    url = match.group()
    end = len(url)
    while end and (url[end - 1] in ".,;:!?'*" or (url[end - 1] in ")]}" and not _is_balanced(url[:end]))):
        end -= 1
    return "<url>" + url[end:]


def _is_balanced(url: str) -> bool:
    """Whether the closing bracket at the end of a URL was opened in it, as in Wikipedia's addresses."""
    closing = url[-1]
    return url.count("([{"[")]}".index(closing)]) >= url.count(closing)


def _emails(text: str) -> str:
    return EMAIL.sub("<email>", text) if "@" in text else text


def _ips(text: str) -> str:
    text = IP_V4.sub("<ip>", text) if text.count(".") > 2 else text
    return IP_V6.sub(_ip_or_same, text) if text.count(":") > 1 else text


def _ip_or_same(match: re.Match[str]) -> str:
    found = match.group()
    try:
        ipaddress.IPv6Address(found.rstrip("."))
    except ValueError:
        return found
    return "<ip>" + "." * (len(found) - len(found.rstrip(".")))


def control_characters(text: str) -> str:
    """Without control characters and others that nobody sees."""
    return text if text.isascii() and text.isprintable() else CONTROL.sub("", TERMINAL_ESCAPE.sub("", text))


def white_space(text: str) -> str:
    """One blank between words, none at the ends of lines, at most one empty line in a row."""
    text = AROUND_LINE_END.sub("\n", BLANKS.sub(" ", LINE_END.sub("\n", text)))
    return EMPTY_LINES.sub("\n\n", text).strip()


def word_by_word(rule: TextRule) -> Callable[[Any], Any]:
    """A rule for a list of words: each is changed alone, and one of which nothing would be left stays, so that tags
    keep their words."""

    def apply(words: Any) -> Any:
        if not isinstance(words, list):
            return words
        return [(rule(word).strip() or word) if isinstance(word, str) else word for word in words]

    return apply
