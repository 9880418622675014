"""The words of the documentation: promises that code and tests refer to are described; phrases that read badly are out.

No Sphinx and no Ray; tests/shipped/test_docs.py checks what the pages quote.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROMISES = DOCS / "promises.md"

# Files whose prose a user reads, as globs below the root. In Python files the strings and docstrings count.
USER_FACING = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/*.md", "docs/clusters/*.md")
USER_FACING += ("raytrain/*/__init__.py",)
FILES = sorted(str(path.relative_to(ROOT)) for pattern in USER_FACING for path in ROOT.glob(pattern))
# Pattern -> what to write instead.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bfor ever\b": "forever, or without a limit",
    r"\b(go|goes|going|went|gone) on (with|from|where)\b": "continue, resume",
    r"(?<!there )\bis (no|none)\b(?! (longer|more|less|other))": "is not a, has no",
    r"\bso many\b": "that many, or the number",
    r"(^|[.:;] )Of (the|a|an|each) \w+(-\w+)* (that|which)\b": "name the noun: The size of ...",
    r"\bcome about\b": "happen",
    r"\b(stands|stand) (there|behind|before|beside) (it|them)\b": "follows, comes before",
    r"\bbeforehand\b": "in advance, before",
    r"\bmay be gone on\b": "can be resumed",
    r"\bnothing came of\b": "failed",
    r"\ba (line|field|trial|worker|step|node|process) a (step|trial|worker|node|group|line|run)\b": "one ... per ...",
}


def prose_of(path: Path) -> str:
    """The text without code blocks and inline code, one line per paragraph."""
    text = path.read_text()
    if path.suffix == ".py":
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        text = "\n\n".join(node.value for node in nodes if isinstance(node.value, str))
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "`code`", text)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


@pytest.mark.parametrize("path", FILES)
def test_prose_is_plain_english(path: str) -> None:
    prose = prose_of(ROOT / path)
    found = [
        f"{prose[max(0, match.start() - 30) : match.end() + 20]!r}: {advice}"
        for pattern, advice in PHRASES.items()
        for match in re.finditer(pattern, prose, re.IGNORECASE | re.MULTILINE)
    ]
    assert not found


def test_every_promise_that_is_named_is_described() -> None:
    headings = set(re.findall(r"^### (P\d+)$", PROMISES.read_text(), re.MULTILINE))
    files = [path for folder in ("raytrain", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    named = {number: path for path in files for number in re.findall(r"\bP\d{1,2}\b", path.read_text())}
    assert len(named) > 10, "code and tests name promises: does this test find them?"
    unknown = {number: path for number, path in named.items() if number not in headings}
    assert not unknown, f"no heading in {PROMISES.name}"


def test_what_the_promises_page_names_is_there() -> None:
    places = re.findall(r"`((?:raytrain|tests)/[\w./]+)`", PROMISES.read_text())
    assert places
    assert not [place for place in places if not (ROOT / place).exists()]
