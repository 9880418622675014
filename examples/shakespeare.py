"""The works of Shakespeare as passages: what `shakespeare_gpt` is trained on."""

import tarfile
from pathlib import Path

from registry import read_member

HELD_OUT = {"macbeth": "validation", "twelfth_night": "validation", "lear": "test", "tempest": "test"}
PASSAGE_CHARACTERS = 600  # from which on a passage ends at the next blank line


def read_shakespeare(path: Path) -> dict[str, list[str]]:
    """The passages of each work, in the modern spelling, by its name."""
    passages: dict[str, list[str]] = {}
    with tarfile.open(path) as archive:
        for name in sorted(archive.getnames()):
            if "/shksprdata/texts/" not in name or not name.endswith("_gut.txt"):
                continue
            text = read_member(archive, name).decode("utf-8-sig").replace("\r\n", "\n")
            texts, parts = [], []
            for paragraph in text.split("\n\n"):
                if paragraph.strip():
                    parts.append(paragraph.strip("\n"))
                if sum(map(len, parts)) >= PASSAGE_CHARACTERS:
                    texts.append("\n\n".join(parts))
                    parts = []
            passages[Path(name).name.removesuffix("_gut.txt")] = [*texts, *(["\n\n".join(parts)] if parts else [])]
    return passages
