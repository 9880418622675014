"""Samples by id, read in whole row groups; the recently used groups are cached."""

from collections import OrderedDict

import numpy as np
import pyarrow as pa

from raytrain.data.prepared import PreparedStore

CACHE_BYTES = 64 << 20  # decoded row groups that are kept in memory


class RowCache:
    """Reads samples of a prepared store. A row group is read once for neighboring windows and shards (P5)."""

    def __init__(self, store: PreparedStore, max_bytes: int = CACHE_BYTES, min_groups: int = 1):
        """`min_groups` are kept even if they exceed `max_bytes`: if fewer are kept than a caller alternates between,
        each of its requests reads them all again."""
        self._store, self._max_bytes, self._min_groups = store, max_bytes, min_groups
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._starts: dict[str, np.ndarray] = {}
        self._held_bytes = 0
        self.bytes_read = 0
        """Compressed bytes of the row groups that were read from storage."""

    def take(self, split: str, ids: np.ndarray) -> pa.Table:
        """The rows of these samples, in this order. `ids`: shape (n,), n >= 1."""
        if split not in self._starts:
            self._starts[split] = self._store.row_group_starts(split)
        starts = self._starts[split]
        groups = np.searchsorted(starts, ids, side="right") - 1
        wanted, place = np.unique(groups, return_inverse=True)
        tables = [self._group(split, int(group)) for group in wanted]
        # The offset of each group in the concatenation of the groups.
        begins = np.concatenate([[0], np.cumsum([len(table) for table in tables])])[:-1]
        return pa.concat_tables(tables).take(pa.array(begins[place] + ids - starts[groups]))

    def _group(self, split: str, group: int) -> pa.Table:
        key = (split, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        table = self._store.read_row_group(split, group)
        self.bytes_read += self._store.row_group_bytes(split, group)
        self._groups[key] = table
        self._held_bytes += table.nbytes
        while self._held_bytes > self._max_bytes and len(self._groups) > self._min_groups:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes
        return table
