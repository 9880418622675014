"""Rules of data.clean that drop training rows by length, language, or one of the presets for web pages.

Each is a function of a text that gives the name of the first rule that it breaks, or an empty string. The presets take
their numbers from the papers. Where a paper leaves open how something is counted, it is counted as datatrove does,
which made FineWeb (github.com/huggingface/datatrove).
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from raytrain.config import CleanConfig
from raytrain.data.stages.packages import needed
from raytrain.errors import ConfigError

Filter = Callable[[str], str]

# Characters that are looked at to tell a language: more take longer and hardly make it more certain.
LANGUAGE_CHARACTERS = 200
# Bytes of letters that a language can be told by. Of English movie reviews with fewer, 57 of 943 were taken for another
# language ("Spiderman ROCKS" for Swedish), of longer ones 2 of 7,511.
LANGUAGE_BYTES = 40

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
TOP_N_GRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
REPEATED_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
ELLIPSES = ("...", "\u2026")

SENTENCE_ENDS = (".", "?", "!", '"')
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SENTENCE = re.compile(r"[.?!]+[\"')\]]*(?=\s|$)")
LONGEST_WORD = 1000
FEWEST_WORDS_OF_A_LINE, FEWEST_SENTENCES = 3, 5

LINE_ENDS = (".", "?", "!", '"', "'", "\u201d", "\u2019", "\u2026", "\u3002", "\uff01", "\uff1f")
FEWEST_ENDED_LINES, MOST_SHORT_LINES, SHORT_LINE = 0.12, 0.67, 30
MOST_REPEATED_CHARACTERS, MOST_LINES_PER_WORD = 0.01, 0.3


def length(clean: CleanConfig) -> Filter:
    """The bounds on characters and on words, which blanks separate."""

    def broken(text: str) -> str:
        num_characters = len(text)
        num_words = len(text.split()) if clean.min_words or clean.max_words else 0
        bounds = {
            "min_characters": clean.min_characters is not None and num_characters < clean.min_characters,
            "max_characters": clean.max_characters is not None and num_characters > clean.max_characters,
            "min_words": clean.min_words is not None and num_words < clean.min_words,
            "max_words": clean.max_words is not None and num_words > clean.max_words,
        }
        return next((name for name, is_broken in bounds.items() if is_broken), "")

    return broken


def language(languages: Sequence[str]) -> Filter:
    """Texts in other languages break `languages.<code>`. A text with few letters is kept, whatever it seems to be in.

    Raises ConfigError for a language that py3langid does not know.
    """
    identify = _identifier()
    known = sorted(set(identify.nb_classes))
    if unknown := [code for code in languages if code not in known]:
        raise ConfigError(f"data.clean.languages: {unknown[0]!r} is not known; allowed: {', '.join(known)}")

    def broken(text: str) -> str:
        head = " ".join(text[: 8 * LANGUAGE_CHARACTERS].split())[:LANGUAGE_CHARACTERS]  # indentation tells nothing
        if len("".join(filter(str.isalpha, head)).encode()) < LANGUAGE_BYTES:
            return ""
        found = identify.classify(head)[0]
        return "" if found in languages else f"languages.{found}"

    return broken


@functools.cache
def _identifier():  # type: ignore[no-untyped-def]  # of a package without types
    langid = needed("py3langid.langid", "data.clean.languages")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def gopher(text: str) -> str:
    """Quality, then repetition (Rae et al., 2021, appendix A.1.1)."""
    rules = itertools.chain(_quality(text), _repetition(text))  # the later ones are computed where the first ones hold
    return next((f"gopher.{name}" for name, is_broken in rules if is_broken), "")


def _quality(text: str) -> Iterable[tuple[str, bool]]:
    words = text.split()
    spelled = [word for word in words if any(map(str.isalnum, word))]
    num_words, lines = max(1, len(words)), text.splitlines() or [""]
    yield "words", not 50 <= len(spelled) <= 100_000
    yield "mean_word", not 3 <= sum(map(len, spelled)) / max(1, len(spelled)) <= 10
    yield "symbols", max(text.count("#"), sum(map(text.count, ELLIPSES))) / num_words > 0.1
    yield "bullets", _share(lines, lambda line: line.lstrip().startswith(("\u2022", "-"))) > 0.9
    yield "ellipses", _share(lines, lambda line: line.rstrip().endswith(ELLIPSES)) > 0.3
    yield "letters", _share(words, lambda word: any(map(str.isalpha, word))) < 0.8
    yield "stop_words", len(STOP_WORDS & {word.lower().strip(".,;:!?\"'()") for word in words}) < 2


def _repetition(text: str) -> Iterable[tuple[str, bool]]:
    words, num_characters = text.split(), max(1, len(text))
    for name, pieces in (("lines", re.split(r"\n+", text)), ("paragraphs", re.split(r"\n{2,}", text.strip()))):
        count, characters = _repeated(pieces)
        yield f"repeated_{name}", count / len(pieces) > 0.30
        yield f"repeated_{name}", characters / num_characters > 0.20
    for n, most in TOP_N_GRAMS:
        yield f"top_{n}_grams", _top(words, n) / num_characters > most
    for n, most in REPEATED_N_GRAMS:
        yield f"repeated_{n}_grams", _repeated_in(words, n) / num_characters > most


def _share(items: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, items)) / max(1, len(items))


def _repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """Number and characters of the pieces that have come before."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count, characters = count + 1, characters + len(piece)
        seen.add(piece)
    return count, characters


def _top(words: Sequence[str], n: int) -> int:
    """Characters of the most frequent n-gram, all its places together; 0 when each is there once."""
    if len(words) < n:
        return 0
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    text, count = counts.most_common(1)[0]
    return len(text) * count if count > 1 else 0


def _repeated_in(words: Sequence[str], n: int) -> int:
    """Characters in n-grams that have come before, which are not counted twice where they overlap."""
    seen: set[str] = set()
    place = characters = 0
    while place <= len(words) - n:
        text = "".join(words[place : place + n])
        characters += len(text) * (text in seen)
        place += n if text in seen else 1
        seen.add(text)
    return characters


def c4(text: str, *, line_ends: bool = True) -> tuple[str, str]:
    """(the lines that are kept, the rule that the text breaks or an empty string), as of Raffel et al. (2019), section
    2.2. `line_ends`: whether a line must end as a sentence does."""
    lines, num_sentences, lower = [], 0, text.lower()
    if "lorem ipsum" in lower:
        return text, "c4.lorem_ipsum"
    if "{" in text:
        return text, "c4.curly_bracket"
    for line in map(str.strip, text.splitlines()):
        line = CITATION.sub("", line)
        words, low = line.split(), line.lower()
        if len(words) < FEWEST_WORDS_OF_A_LINE or any(len(word) > LONGEST_WORD for word in words):
            continue
        if line_ends and (not line.endswith(SENTENCE_ENDS) or line.endswith(ELLIPSES)):
            continue
        if "javascript" in low or any(policy in low for policy in POLICIES):
            continue
        num_sentences += max(1, len(SENTENCE.findall(line)))
        lines.append(line)
    return "\n".join(lines), "c4.sentences" if num_sentences < FEWEST_SENTENCES else ""


def fineweb_lines(text: str) -> str:
    """The three rules that FineWeb adds (Penedo et al., 2024, section 3.6), and new lines per word."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    num_characters = max(1, len(text.replace("\n", "")))
    rules = (
        ("line_ends", _share(lines, lambda line: line.endswith(LINE_ENDS)) < FEWEST_ENDED_LINES),
        ("short_lines", _share(lines, lambda line: len(line) <= SHORT_LINE) > MOST_SHORT_LINES),
        ("repeated_lines", _repeated(lines)[1] / num_characters > MOST_REPEATED_CHARACTERS),
        ("new_lines", text.count("\n") / max(1, len(text.split())) > MOST_LINES_PER_WORD),
    )
    return next((f"fineweb.{name}" for name, is_broken in rules if is_broken), "")


def fineweb(text: str) -> tuple[str, str]:
    """(the lines that are kept, the rule that the text breaks): Gopher's rules, C4's without that on line ends, and
    FineWeb's own."""
    if broken := gopher(text):
        return text, broken
    text, broken = c4(text, line_ends=False)
    return text, broken or fineweb_lines(text)
