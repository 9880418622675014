"""How far a pass over the source files is, for the display. No Ray, no torch."""

import time
from typing import Any

from raytrain.data.encode import NUM_READ, ROWS_SO_FAR


class RowsSoFar:
    """How far a pass is: rows of read tasks that are done, and so far of others."""

    def __init__(self, num_bytes: dict[int, int]):
        """`num_bytes`: of each read task of the pass, by ordinal."""
        self._num_bytes, self._bytes_done, self._rows_done, self._rows_before = num_bytes, 0, 0, 0
        self._begun: dict[int, int] = {}
        self._started_at_s = time.monotonic()

    def with_report(self, report: dict[str, Any]) -> tuple[int, int | None, float]:
        """(rows so far, estimated rows in total, rows per second) after a report."""
        ordinal = report["ordinal"]
        if ROWS_SO_FAR in report:
            self._begun[ordinal] = report[ROWS_SO_FAR]
        else:
            self._begun.pop(ordinal, None)
            read = report[NUM_READ] if NUM_READ in report else sum(one["read"] for one in report["counts"].values())
            self._rows_done, self._bytes_done = self._rows_done + read, self._bytes_done + self._num_bytes[ordinal]
            self._rows_before += read if "was_done" in report else 0
        rows = self._rows_done + sum(self._begun.values())
        num_bytes = sum(self._num_bytes.values())
        total = round(self._rows_done / (self._bytes_done / num_bytes)) if self._bytes_done else None
        per_s = (rows - self._rows_before) / max(1e-9, time.monotonic() - self._started_at_s)
        return rows, None if total is None else max(total, rows), per_s
