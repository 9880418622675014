"""data.validation.stratify: each label's share is met to within a unit, and rows that are added move few. No Ray."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dedup import edited, in_this_process, make_config, texts, write_rows

from raytrain.config import RunConfig
from raytrain.data.prepare import prepare
from raytrain.data.stages.held_out import NO_EDGE
from raytrain.data.stages.strata import edge_of
from raytrain.errors import ConfigError

UNITS = st.dictionaries(st.integers(0, NO_EDGE - 1), st.integers(1, 9), min_size=1, max_size=40)
FRACTIONS = st.floats(0.01, 0.99)


def held_out(units: dict[int, int], fraction: float) -> set[int]:
    """The units below the edge. `units`: rows by hash."""
    hashes = sorted(units)
    edge = edge_of(np.array(hashes, np.uint64), np.array([units[one] for one in hashes]), fraction)
    return {one for one in hashes if one < edge}


@given(UNITS, FRACTIONS)
@settings(max_examples=200, deadline=None)
def test_a_share_is_met_to_within_a_unit(units: dict[int, int], fraction: float) -> None:
    rows = sum(units[one] for one in held_out(units, fraction))
    assert abs(rows - fraction * sum(units.values())) <= max(units.values()) / 2 + 1e-9


@given(UNITS, FRACTIONS, st.integers(0, NO_EDGE - 1))
@settings(max_examples=200, deadline=None)
def test_a_row_that_is_added_moves_at_most_the_unit_at_the_edge(
    units: dict[int, int], fraction: float, added: int
) -> None:
    before = held_out(units, fraction)
    after = held_out({**units, added: units.get(added, 0) + 1}, fraction)
    moved = (before ^ after) - {added}
    assert len(moved) <= 1
    edge = [*sorted(before)[-1:], *sorted(set(units) - before)[:1]]
    assert moved <= set(edge), "the last unit that was held out, or the first that was not"


def split_of(folder: Path, rows: list[dict[str, Any]], *overrides: str, **validation: Any) -> list[str]:
    """The split of each row, by the index of the store."""
    name = f"{len(list(folder.iterdir()))}"
    path = write_rows(folder / "data" / f"{name}.jsonl", rows)
    split = {"fraction": 0.2, "stratify": True, **validation}
    overrides = (f"data.prepared_path={folder / name}", *overrides)
    store = prepare(make_config(folder, {"train": path}, *overrides, validation=split))
    found: dict[int, str] = {}
    for split, info in store.manifest.splits.items():
        for part in info.parts:
            found |= dict.fromkeys(pq.read_table(f"{store.root}/{part.index_name}")["row"].to_pylist(), split)
    return [found[row] for row in range(1, len(rows) + 1)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)


def rows_of(counts: dict[str, int], seed: int) -> list[dict[str, Any]]:
    names = [label for label, count in counts.items() for _ in range(count)]
    return [{"text": text, "label": label} for text, label in zip(texts(len(names), seed), names, strict=True)]


COUNTS = {"often": 300, "seldom": 40, "rare": 5}


def test_each_label_has_its_share(tmp_path: Path) -> None:
    rows = rows_of(COUNTS, 1)
    splits = split_of(tmp_path, rows)
    assert Counter(row["label"] for row, split in zip(rows, splits, strict=True) if split == "validation") == {
        "often": 60,
        "seldom": 8,
        "rare": 1,
    }
    more = split_of(tmp_path, [*rows_of({"rare": 4, "new": 50}, 2), *rows[::-1]])[54:][::-1]
    moved = [row["label"] for row, one, other in zip(rows, splits, more, strict=True) if one != other]
    assert moved.count("rare") == len(moved) <= 4, "labels without new rows stay as they were, in any order"


@pytest.mark.parametrize("leakage", ["remove", "off"])
def test_near_rows_with_several_labels_stay_together(tmp_path: Path, leakage: str) -> None:
    some = rows_of(COUNTS, 1)
    near = [{"text": edited(row["text"]), "label": "other"} for row in some]
    same = [{**row, "label": "seldom"} for row in some]
    splits = split_of(tmp_path, [*some, *same, *near], f"data.dedup.leakage={leakage}")
    first, second, third = splits[:345], splits[345:690], splits[690:]
    assert first == second and (first == third) == (leakage == "remove")
    assert 0.15 < splits.count("validation") / len(splits) < 0.25


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "author": f"name {i % 60}"} for i, row in enumerate(rows_of(COUNTS, 1))]
    splits = split_of(tmp_path, rows, group_column="author")
    assert len({(row["author"], split) for row, split in zip(rows, splits, strict=True)}) == 60
    assert 0.15 < splits.count("validation") / len(splits) < 0.25


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.validation={path: b, stratify: true}"], "stratify needs data.validation.fraction"),
        (["task.multi_label=true"], "data.validation.stratify needs one label per sample.*multi_label=true does not"),
        (["task={kind: token_classification}"], "stratify needs one label per sample.*token_classification does not"),
    ],
)
def test_what_can_not_be_stratified(tmp_path: Path, overrides: list[str], message: str) -> None:
    validation = json.dumps({"fraction": 0.2, "stratify": True})
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, {"train": "a"}, f"data.validation={validation}", *overrides)


def test_it_is_off_by_default(tmp_path: Path) -> None:
    config: RunConfig = make_config(tmp_path, {"train": "a"}, "data.validation={fraction: 0.2}")
    assert config.data.validation is not None and not config.data.validation.stratify
