"""data.validation.stratify: which units of each label are held out, so that its share is met. No Ray, no torch.

    1. count     each read task counts the rows of its training units by label
    2. choose    one task: of each label, the units with the smallest hashes, up to its share of the rows

A unit (see `held_out`) counts for the label that most of its rows have. All that the other tasks have to know is where
the share of each label ends: the edge. Rows that are added move the edge past few units, and the others stay.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data.encode import NUM_READ, RowFunction
from raytrain.data.parallel import in_threads
from raytrain.data.plain_types import read_parquet
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ReadTask
from raytrain.data.stages.duplicates import Duplicates
from raytrain.data.stages.held_out import NO_EDGE, hash_of, source_columns, stratum_of, units_of
from raytrain.data.stages.within_training import write_table
from raytrain.data.storing import read
from raytrain.storage import Storage
from raytrain.tasks import make_task

UNITS = pa.schema([("unit", pa.uint64()), ("label", pa.string()), ("rows", pa.int64())])


class CountUnits(RowFunction):
    """Counts the rows of a read task's units by label."""

    phase = "counting labels"

    def __init__(self, config: dict[str, Any], duplicates: Duplicates):
        self._config, self._duplicates = config, duplicates

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes them."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task, sides = make_task(config.task, config.data.max_length), self._duplicates.sides_of(row["ordinal"])
        counts: Counter[tuple[int, str]] = Counter()
        num_read = 0
        for chunk in read_chunks(read_task, source_columns(config, task)):
            num_read += chunk.num_rows
            labels = task.row_labels(chunk.table) if len(chunk.table) else []
            assert labels is not None, "the config allows stratify only where rows have a label"
            units = units_of(config, task, chunk.table, sides)
            counts.update(
                (hash_of(unit, config.seed), stratum_of(of_row)) for unit, of_row in zip(units, labels, strict=True)
            )
        columns = [[unit for unit, _ in counts], [label for _, label in counts], list(counts.values())]
        table = pa.table(dict(zip(UNITS.names, columns, strict=True)), UNITS)
        write_table(Storage(self._duplicates.root), self._duplicates.name("units", row["ordinal"]), table)
        return {"ordinal": row["ordinal"], NUM_READ: num_read}


class ChooseUnits(RowFunction):
    """Finds the edge of each label."""

    def __init__(self, duplicates: Duplicates, ordinals: list[int], fraction: float):
        self._duplicates, self._ordinals, self._fraction = duplicates, ordinals, fraction

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Gives the edges, and the name of the file of the units whose rows have several labels."""
        folder = Storage(self._duplicates.root)
        names = [self._duplicates.name("units", ordinal) for ordinal in self._ordinals]
        tables = in_threads(lambda name: read(folder, name, read_parquet), names)
        # One row for each label of a unit, the most frequent one first.
        counts = pa.concat_tables(tables).group_by(["unit", "label"]).aggregate([("rows", "sum")])
        order = [("unit", "ascending"), ("rows_sum", "descending"), ("label", "ascending")]
        counts = counts.sort_by(order).combine_chunks()
        hashes = counts["unit"].to_numpy()
        starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
        sizes = np.add.reduceat(counts["rows_sum"].to_numpy(), starts) if len(starts) else starts
        labels = counts["label"].take(pa.array(starts)).combine_chunks().dictionary_encode()
        label_ids, hashes = labels.indices.to_numpy(), hashes[starts]
        edges = {}
        for i, label in enumerate(labels.dictionary.to_pylist()):
            edges[label] = edge_of(hashes[label_ids == i], sizes[label_ids == i], self._fraction)
        has_several = np.diff(np.r_[starts, len(counts)]) > 1
        mixed = {
            "unit": pa.array(hashes[has_several]),
            "label": labels.dictionary_decode().filter(pa.array(has_several)),
        }
        name = self._duplicates.name("strata", 0)
        write_table(folder, name, pa.table(mixed))
        return {"ordinal": row["ordinal"], "edges": edges, "mixed": name}


def edge_of(hashes: np.ndarray, sizes: np.ndarray, fraction: float) -> int:
    """The hash below which units of a label are held out: their rows are as close to its share as whole units allow.

    Args:
        hashes: Of the units, ascending, uint64. Shape (num_units,).
        sizes: Their rows, at least 1. Shape (num_units,).
    """
    # (num_units + 1,): rows of the first 0, 1, 2, ... units
    rows = np.r_[0, np.cumsum(sizes)]
    num_units = int(np.argmin(np.abs(rows - fraction * rows[-1])))
    return int(hashes[num_units]) if num_units < len(hashes) else NO_EDGE


def with_strata(duplicates: Duplicates, chosen: dict[str, Any]) -> Duplicates:
    """What the tasks have to know. `chosen`: the report of ChooseUnits."""
    return replace(duplicates, edges=chosen["edges"], mixed=chosen["mixed"])
