"""Messages, docstrings and comments are plain technical English: phrases that read foreign do not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import raytrain

PACKAGE = Path(raytrain.__file__).parent
# Packages and files whose texts are checked.
PACKAGES = (
    "checkpoint",
    "cli",
    "config",
    "data",
    "doctor",
    "elastic",
    "engine",
    "inference",
    "launch",
    "models",
    "monitoring",
    "ray_core",
    "reclaim",
    "runs",
    "serving",
    "steps",
    "storage.py",
    "api.py",
    "errors.py",
    "redaction.py",
    "planning",
    "reports",
    "sizing",
    "terminal",
    "tracking",
    "training",
    "tasks",
    "tuning",
    "watching",
)
# Phrase -> what to write instead.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix or repair",
    r"\bfor ever\b": "forever or indefinitely",
    r"\bgo(es|ing|ne)? on (with|from)\b": "resume or continue",
    r"(?<!\bthere )\b(is|are) no (?!longer\b|more than\b)": "is not a, or has no",
    r"\bso many\b": "the count itself: this many, `number`",
    r"\b(come|comes|came) about\b": "happen or succeed",
}


def sources() -> list[Path]:
    """The files to check."""
    paths = [PACKAGE / name for name in PACKAGES]
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each string and of each block of comments. Placeholders of f-strings become {}."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
    yield from comments(source)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each block of comments on consecutive lines."""
    last, block = -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and block:
                yield last, " ".join(block)
                block = []
            last = token.start[0]
            block.append(token.string.lstrip("# "))
    if block:
        yield last, " ".join(block)


def foreign(source: str) -> list[str]:
    """A line for each phrase that should not be in a source text."""
    found = []
    for line, text in texts(source):
        for pattern, instead in PHRASES.items():
            for match in re.finditer(pattern, " ".join(text.split()), re.IGNORECASE):
                found.append(f"line {line}: {match.group()!r}; write {instead}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_phrases_that_read_foreign_do_not_come_back(path: Path) -> None:
    assert foreign(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What to mend."""',
        'raise ValueError(f"{name} is no metric")',
        "# Ray Data waits for\n# ever for a CPU.",
        'def f():\n    """The same command goes\n    on from there."""',
        "x = 1  # a crash costs so many seconds",
        'print("a growth did not "\n      "come about")',
    ],
)
def test_each_kind_of_text_is_read(source: str) -> None:
    assert len(foreign(source)) == 1


@pytest.mark.parametrize(
    "text",
    ["there is no GPU", "It is no longer\nthere.", "If there are no files", "a recommendation"],
)
def test_right_english_passes(text: str) -> None:
    assert foreign(repr(text)) == []


def test_all_listed_files_exist() -> None:
    assert [name for name in PACKAGES if not (PACKAGE / name).exists()] == []
