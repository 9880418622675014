"""The prepared store's manifest: read as it was written, and never mistaken for another version's. No Ray."""

import json
from dataclasses import fields
from typing import Any

import pytest

from raytrain.data.prepared import FORMAT_VERSION, Manifest, Part, PreparedStore, SplitInfo
from raytrain.errors import DataError

MANIFEST = Manifest(
    "f", {"labels": ["a", "b"]}, 0, {"train": SplitInfo(3, 9, 1, 2, [Part("p.parquet", [2, 1], 99, "h")], "i")}, "c"
)


def test_read_as_written():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_what_is_stored_belongs_to_the_version():
    """Whoever changes the fields, or what tasks write, must raise FORMAT_VERSION: caches of users are found by it."""
    names = {kind.__name__: [field.name for field in fields(kind)] for kind in (Manifest, SplitInfo, Part)}
    assert (FORMAT_VERSION, names) == (
        4,
        {
            "Manifest": ["fingerprint", "task_state", "pad_token_id", "splits", "content", "format_version"],
            "SplitInfo": ["num_samples", "num_tokens", "num_truncated", "num_set_aside", "parts", "index_sha256"],
            "Part": ["name", "row_group_rows", "num_bytes", "sha256"],
        },
    )


@pytest.mark.parametrize("version", [3, FORMAT_VERSION + 1])
def test_a_store_of_another_version(tmp_path, version):
    raw: dict[str, Any] = {"format_version": version, "fingerprint": "f", "labels": [], "splits": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=rf"format {version}, this version reads {FORMAT_VERSION}"):
        PreparedStore(str(tmp_path))
