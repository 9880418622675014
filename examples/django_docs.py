"""Documentation of a Python web framework as passages: what `docs_bert` is trained on.

The texts are the pages of Django's documentation (BSD license) inside its source archive.
"""

import tarfile
from pathlib import Path

PASSAGE_CHARACTERS = 400  # from which on a passage ends at the next blank line
HELD_OUT = 20
"""One page of so many is held out for validation, and another for the test."""


def read_pages(archive: Path) -> dict[str, list[str]]:
    """The passages of each page, by its name, in the order of the names."""
    pages: dict[str, list[str]] = {}
    with tarfile.open(archive) as files:
        members = {one.name.partition("/docs/")[2]: one for one in files.getmembers() if "/docs/" in one.name}
        for name in sorted(members):
            # Release notes repeat each other.
            if name.endswith(".txt") and not name.startswith(("releases/", "_theme/")):
                file = files.extractfile(members[name])
                assert file is not None, name
                pages[name] = _passages(file.read().decode("utf-8"))
    return pages


def split_pages(pages: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """The pages of train, validation and test."""
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}, "test": {}}
    for place, (name, passages) in enumerate(pages.items()):
        split = {7: "validation", 14: "test"}.get(place % HELD_OUT, "train")
        splits[split][name] = passages
    return splits


def _passages(text: str) -> list[str]:
    """Neighbouring paragraphs, together at least PASSAGE_CHARACTERS but for the last."""
    passages, parts = [], []
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            parts.append(paragraph.strip("\n"))
        if sum(map(len, parts)) >= PASSAGE_CHARACTERS:
            passages.append("\n\n".join(parts))
            parts = []
    return [*passages, *(["\n\n".join(parts)] if parts else [])]
