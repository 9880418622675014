"""The prepared store: read as it was written, or refused as damaged or as another version's. No Ray."""

import hashlib
import json
import os
import resource
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data.lengths import BLOCK_SAMPLES, Lengths, encode_index
from raytrain.data.prepared import FORMAT_VERSION, MOST_OPEN_PARTS, Manifest, Part, PreparedStore, SourceInfo, SplitInfo
from raytrain.errors import DataError
from raytrain.storage import Storage

MANIFEST = Manifest(
    "f",
    {"labels": ["a", "b"]},
    0,
    {
        "train": SplitInfo(
            3,
            9,
            1,
            2,
            [Part("p.parquet", [2, 1], 99, "h")],
            "i",
            {"a": 3},
            labels_sha256="l",
            sources=[SourceInfo(3, {"a": 3})],
        )
    },
    "c",
)


def test_read_as_written():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_what_is_stored_belongs_to_the_version():
    """Whoever changes the fields, or what tasks write, must raise FORMAT_VERSION: caches of users are found by it."""
    names = {kind.__name__: [field.name for field in fields(kind)] for kind in (Manifest, SplitInfo, Part, SourceInfo)}
    assert (FORMAT_VERSION, names) == (
        7,
        {
            "Manifest": ["fingerprint", "task_state", "pad_token_id", "splits", "content", "sources", "format_version"],
            "SplitInfo": [
                "num_samples",
                "num_tokens",
                "num_truncated",
                "num_quarantined",
                "parts",
                "index_sha256",
                "label_counts",
                "num_removed",
                "num_leaks",
                "num_short_leaks",
                "rows",
                "labels_sha256",
                "sources",
                "class_counts",
            ],
            "Part": ["name", "row_group_rows", "num_bytes", "sha256", "index_bytes", "index_sha256", "file"],
            "SourceInfo": ["num_samples", "label_counts", "rows", "class_counts"],
        },
    )


@pytest.mark.parametrize("version", [3, FORMAT_VERSION + 1])
def test_a_store_of_another_version(tmp_path, version):
    raw: dict[str, Any] = {"format_version": version, "fingerprint": "f", "labels": [], "splits": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=rf"format {version}, this version reads {FORMAT_VERSION}"):
        PreparedStore(str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> PreparedStore:
    """A store of one split with a part of two row groups."""
    lengths = [3, 3, 3]
    table = pa.table({"input_ids": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "labels": [0, 1, 0]})
    (tmp_path / "train").mkdir()
    part = tmp_path / "train" / "part.parquet"
    pq.write_table(table, part, row_group_size=2, write_page_checksum=True)
    index, index_sha256 = encode_index(np.array(lengths))
    (tmp_path / "lengths-train.bin").write_bytes(index)
    parts = [Part("train/part.parquet", [2, 1], part.stat().st_size, hashlib.sha256(part.read_bytes()).hexdigest())]
    manifest = Manifest("f", {}, 0, {"train": SplitInfo(3, 9, 0, 0, parts, index_sha256)}, "c")
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    return PreparedStore(str(tmp_path))


def damage(path: Path, place: int, bit: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= bit
    path.write_bytes(raw)


def test_a_whole_store_passes(store):
    store.verify()
    assert store.lengths("train")[np.arange(3)].tolist() == [3, 3, 3]
    assert store.read_row_group("train", 1).to_pylist() == [{"input_ids": [7, 8, 9], "labels": 0}]


@pytest.mark.parametrize("name", ["train/part.parquet", "lengths-train.bin"])
def test_one_flipped_bit_anywhere(store, name):
    path = Path(store.root, name)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7 if len(whole) > 100 else 1):
        damage(path, place, 1 << place % 8)
        with pytest.raises(DataError, match=rf"{name} is not what was written.*delete the folder"):
            PreparedStore(store.root).verify()
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["train/part.parquet", "lengths-train.bin"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_file_that_is_cut_or_gone(store, name, how):
    path = Path(store.root, name)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    with pytest.raises(DataError, match=rf"{name} is not what was written"):
        PreparedStore(store.root).verify()


def test_an_index_of_another_store(store):
    """Whole in itself, but not what the manifest says."""
    Path(store.root, "lengths-train.bin").write_bytes(encode_index(np.array([3, 3, 4]))[0])
    with pytest.raises(DataError, match=r"lengths-train\.bin is not what was written"):
        store.lengths("train")


def test_who_reads_a_page_notices_a_flipped_bit(tmp_path):
    """Where the store is too large to be read whole before a run."""
    values = np.random.default_rng(0).integers(0, 2**62, 500)
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"v": values}), path, compression="none", use_dictionary=False, write_page_checksum=True)
    part = Part("part.parquet", [500], path.stat().st_size, "")
    manifest = Manifest("f", {}, 0, {"train": SplitInfo(500, 500, 0, 0, [part], "")}, "c")
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    assert PreparedStore(str(tmp_path)).read_row_group("train", 0)["v"].to_numpy().tolist() == values.tolist()
    start = path.read_bytes().index(values.tobytes())
    for place in range(start, start + 4_000, 97):
        damage(path, place)
        with pytest.raises(OSError, match=r"part\.parquet can't be read"):
            PreparedStore(str(tmp_path)).read_row_group("train", 0)
        damage(path, place)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}"])
def test_a_manifest_that_is_none(store, content):
    Path(store.root, "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        PreparedStore(store.root)


def test_a_manifest_with_another_digit(store):
    path = Path(store.root, "manifest.json")
    path.write_text(path.read_text().replace('"num_truncated": 0', '"num_truncated": 1'))
    with pytest.raises(DataError, match="damaged"):
        PreparedStore(store.root)


NUM_LENGTHS = 3 * BLOCK_SAMPLES + 5


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 2**31, NUM_LENGTHS)


@pytest.fixture
def index(tmp_path: Path, values: np.ndarray) -> tuple[Path, str]:
    """The file of an index of several blocks, and its hash."""
    data, sha256 = encode_index(values)
    path = tmp_path / "lengths-train.bin"
    path.write_bytes(data)
    return path, sha256


def opened(index: tuple[Path, str]) -> Lengths:
    return Lengths(Storage(str(index[0].parent)), index[0].name, NUM_LENGTHS, index[1])


@pytest.mark.parametrize(
    "ids", [[], [0], [NUM_LENGTHS - 1], [5000, 3, 5000, 12290, 4096, 4095], list(range(NUM_LENGTHS))[::-1]]
)
def test_lengths_are_found_by_sample_id(index, values, ids):
    """In any order, more than once, over the borders of blocks."""
    assert opened(index)[np.array(ids, dtype=np.int64)].tolist() == values[ids].tolist()


def test_who_reads_a_block_of_the_index_notices_a_flipped_bit(index):
    """Also where the index was opened before, and only there."""
    lengths = opened(index)
    damage(index[0], 4 * (BLOCK_SAMPLES + 7))
    assert len(lengths[np.array([0, 3 * BLOCK_SAMPLES])]) == 2
    with pytest.raises(DataError, match=r"lengths-train\.bin is not what was written"):
        lengths[np.array([BLOCK_SAMPLES])]


def test_more_parts_than_may_be_open(tmp_path):
    """Each part is read twice, with far fewer file descriptors than parts."""
    num_parts = 4 * MOST_OPEN_PARTS
    parts = []
    for number in range(num_parts):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"v": [2 * number, 2 * number + 1]}), path, row_group_size=1)
        parts.append(Part(path.name, [1, 1], path.stat().st_size, ""))
    manifest = Manifest("f", {}, 0, {"train": SplitInfo(2 * num_parts, 0, 0, 0, parts, "")}, "c")
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    store = PreparedStore(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + MOST_OPEN_PARTS + 20, hard))
    try:
        for group in [*range(0, 2 * num_parts, 2), *range(1, 2 * num_parts, 2)]:
            assert store.read_row_group("train", group)["v"].to_pylist() == [group]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
