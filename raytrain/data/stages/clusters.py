"""Which side of a split made by a fraction a near-duplicate cluster is on: one for all of its rows. No Ray, no torch.

A cluster's rows are connected by checked pairs. Its side is that of one of its texts, the one with the smallest hash:
rows that are added move no cluster but one that they join. No row is removed here, so that following chains of pairs
does no harm.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raytrain.data.encode import RowFunction
from raytrain.data.stages.duplicates import Duplicates
from raytrain.data.stages.held_out import unit_of_text
from raytrain.data.stages.within_training import place_of, read_rows, write_table
from raytrain.storage import Storage


class Units(RowFunction):
    """Writes, for each read task, the rows whose side is that of another text."""

    def __init__(self, duplicates: Duplicates, ordinals: list[int]):
        """Args:
        ordinals: The read tasks.
        """
        self._duplicates, self._ordinals = duplicates, ordinals
        self.prefix = duplicates.prefix

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Gives the name of each read task's file, for those that have one."""
        folder, clusters = Storage(self._duplicates.root), _Clusters()
        for edge in self._rows(folder, "edges"):
            clusters.join(edge["later"], edge["earlier"])
        units: dict[int, str] = {}  # by cluster
        for one in self._rows(folder, "candidates"):
            if (cluster := clusters.of(one["id"])) is not None:
                unit = unit_of_text(one["text"])
                units[cluster] = min(unit, units.get(cluster, unit))
        moved: dict[int, dict[int, str]] = {}
        for one in self._rows(folder, "candidates"):
            cluster = clusters.of(one["id"])
            if cluster is not None and units[cluster] != unit_of_text(one["text"]):
                ordinal, place = place_of(one["id"])
                moved.setdefault(ordinal, {})[place] = units[cluster]
        names = []
        for ordinal, of_task in sorted(moved.items()):
            names.append((ordinal, self._duplicates.name("sides", ordinal)))
            write_table(folder, names[-1][1], pa.table({"row": list(of_task), "unit": list(of_task.values())}))
        return {"ordinal": row["ordinal"], "names": names}

    def _rows(self, folder: Storage, what: str) -> Iterator[dict[str, Any]]:
        return read_rows(folder, [self._duplicates.name(what, ordinal) for ordinal in self._ordinals])


class _Clusters:
    """Disjoint sets of rows (union-find with path halving); each is called by its smallest id."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        """Two rows are in the same cluster."""
        roots = [self._root(row) for row in (one, other)]
        self._above[max(roots)] = min(roots)

    def of(self, row: int) -> int | None:
        """The cluster of a row; None: it was never joined."""
        return self._root(row) if row in self._above else None

    def _root(self, row: int) -> int:
        self._above.setdefault(row, row)
        while (above := self._above[row]) != row:
            self._above[row] = self._above[above]
            row = self._above[row]
        return row
