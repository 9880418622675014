"""The parts that a read task writes: few files, with the row groups that the chunks have. No Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data import parts as parts_module
from raytrain.data.lengths import encode_index
from raytrain.data.parts import Parts
from raytrain.data.prepared import Manifest, Part, PreparedStore, SplitInfo
from raytrain.storage import Storage
from raytrain.tasks.base import Encoded

ROWS_PER_GROUP = 4
CHUNKS = [10, 7, 1, 12, 4, 3]  # rows of each


def chunk(first: int, rows: int) -> Encoded:
    return Encoded(pa.table({"v": np.arange(first, first + rows)}), num_truncated=1, rejected=[])


def write(folder: Path, *, split_of: list[str]) -> PreparedStore:
    """A store of one read task whose chunks are of these splits."""
    parts = Parts(Storage(str(folder)), 0, ROWS_PER_GROUP)
    for number, (rows, split) in enumerate(zip(CHUNKS, split_of, strict=True)):
        sizes = np.arange(rows) + 100 * number
        first = sum(CHUNKS[:number])
        index = pa.table({"length": sizes, "row": np.arange(first, first + rows) + 1})
        parts.add(split, number, chunk(first, rows), index, {"a": rows})
    written, joined = parts.close()
    sizes, begin, splits = joined.lengths, 0, {}
    for item in sorted(written, key=lambda item: item["place"]):
        part = Part(**item["part"])
        info = splits.setdefault(item["split"], {"parts": [], "truncated": 0, "labels": 0})
        info["parts"].append(part)
        info["truncated"] += item["num_truncated"]
        info["labels"] += item["label_counts"]["a"]
    for item in written:  # the lengths are in the order of the reports
        end = begin + sum(item["part"]["row_group_rows"])
        splits[item["split"]].setdefault("lengths", []).append((item["place"], sizes[begin:end]))
        begin = end
    infos = {}
    for split, info in splits.items():
        of_split = np.concatenate([values for _, values in sorted(info["lengths"], key=lambda pair: pair[0])])
        index, sha256 = encode_index(of_split)
        (folder / f"lengths-{split}.bin").write_bytes(index)
        counts = {"a": info["labels"]}
        infos[split] = SplitInfo(len(of_split), 0, info["truncated"], 0, info["parts"], sha256, counts)
    (folder / "manifest.json").write_bytes(Manifest("f", {}, 0, infos, "c").to_json())
    return PreparedStore(str(folder))


@pytest.mark.parametrize("part_rows", [1, 15, 1000])
@pytest.mark.parametrize("split_of", [["train"] * 6, ["train", "validation"] * 3])
def test_row_groups_do_not_depend_on_the_parts(tmp_path, monkeypatch, part_rows, split_of):
    """The order of the samples follows from the row groups, and must not change with how many share a file."""
    monkeypatch.setattr(parts_module, "PART_ROWS", part_rows)
    store = write(tmp_path, split_of=split_of)
    store.verify()
    for split in set(split_of):
        mine = [number for number in range(6) if split_of[number] == split]
        rows, groups = [], []
        for number in mine:
            first = sum(CHUNKS[:number])
            rows += range(first, first + CHUNKS[number])
            full, rest = divmod(CHUNKS[number], ROWS_PER_GROUP)
            groups += [ROWS_PER_GROUP] * full + [rest] * (rest > 0)
        assert np.diff(store.row_group_starts(split)).tolist() == groups
        found = [store.read_row_group(split, group)["v"].to_pylist() for group in range(len(groups))]
        assert [len(values) for values in found] == groups
        assert [value for values in found for value in values] == rows
        places = [pq.read_table(tmp_path / part.index_name) for part in store.manifest.splits[split].parts]
        assert [row for table in places for row in table["row"].to_pylist()] == [row + 1 for row in rows]
        sizes = [100 * number + row for number in mine for row in range(CHUNKS[number])]
        assert store.lengths(split)[np.arange(len(sizes))].tolist() == sizes
        info = store.manifest.splits[split]
        assert (info.num_truncated, info.label_counts) == (len(mine), {"a": len(sizes)})


def test_chunks_share_a_file_up_to_its_size(tmp_path):
    assert len(write(tmp_path, split_of=["train"] * 6).manifest.splits["train"].parts) == 1


def test_chunks_of_another_schema_begin_a_file(tmp_path):
    parts = Parts(Storage(str(tmp_path)), 0, ROWS_PER_GROUP)
    for number, values in enumerate([[1], [2], ["x"]]):
        parts.add("train", number, Encoded(pa.table({"v": values}), 0, []), pa.table({"length": [1], "row": [1]}), {})
    written, _ = parts.close()
    assert [sum(item["part"]["row_group_rows"]) for item in written] == [2, 1]
