"""One pass of PREPARE over read tasks, with Ray Data: groups of them in parallel, a report for each as it is done."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raytrain.data.cutting import groups
from raytrain.data.encode import ROWS_SO_FAR, RowFunction, report_of
from raytrain.data.parallel import in_threads
from raytrain.data.quiet import AWAY_FROM_GPUS, quiet_ray_data
from raytrain.errors import DataError, FailureCode, counted

# Up to these bytes, this process has looked through them before a pass of Ray Data has begun.
FEW_BYTES = 64 << 20


def run_pass(
    rows: list[dict[str, Any]], function: RowFunction, options: Mapping[str, Any] = AWAY_FROM_GPUS
) -> Iterator[dict[str, Any]]:
    """Apply a function to each row, and yield the reports in any order.

    Args:
        rows: With an `ordinal`, and the `num_bytes` that are read for it; those of few bytes share a task of Ray Data.
        options: Of the operator: where it runs, and what it is given.

    Raises the DataError that the function reports for the first of the rows, as soon as those before it are done: which
    one is told does not depend on which task was faster.
    """
    import ray
    import ray.data

    quiet_ray_data()
    if not ray.is_initialized():
        ray.init()
    of_tasks = [range(i, i + 1) for i in range(len(rows))]
    if all("num_bytes" in row for row in rows):
        num_cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0))
        of_tasks = groups([row["num_bytes"] for row in rows], num_cpus)
    items = [{"rows": json.dumps(rows[group.start : group.stop])} for group in of_tasks]
    if "concurrency" in options:  # Ray Data warns of more tasks than items
        options = {**options, "concurrency": min(options["concurrency"], len(items))}
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(_EachOf(function), **options)
    dataset.context.target_max_block_size = 1  # a report is passed on at once, and not when its task has ended
    dataset.context.max_errored_blocks = 0  # whatever the user's own pipelines may lose
    waiting = {row["ordinal"] for row in rows}
    failed: dict[int, DataError] = {}
    for row in dataset.iter_rows():
        report = report_of(row)
        if ROWS_SO_FAR in report:
            if not failed:
                yield report
            continue
        waiting.discard(report["ordinal"])
        if "error" in report:
            failed[report["ordinal"]] = DataError(report["error"], FailureCode(report["code"]))
        if failed and min(failed) < min(waiting, default=math.inf):
            raise failed[min(failed)]
        if not failed:
            yield report
    if failed:
        raise failed[min(failed)]
    if waiting:
        raise DataError(
            f"Ray Data has ended without {counted(len(waiting), 'report')} of {counted(len(rows), 'part')} of the "
            "source files, so their rows are missing. Give the command again; Ray's ray-data.log may say why",
            FailureCode.RAY,
        )


class _EachOf:
    """Applies a function to the rows of a group, in their order, up to the first for which it reports an error."""

    def __init__(self, function: RowFunction):
        self._function = function

    def __call__(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for row in json.loads(group["rows"]):
            for found in self._function.steps(row):
                yield found
            if "error" in report_of(found):
                return


class _Each(RowFunction):
    """A function of items, which have `num_bytes`."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]):
        self._work, self._items = work, items

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the function gives for the item, JSON-able."""
        return {"ordinal": row["ordinal"], "result": self._work(self._items[row["ordinal"]])}


def in_parallel(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    run: Callable[[list[dict[str, Any]], RowFunction], Iterator[dict[str, Any]]] = run_pass,
) -> list[Any]:
    """What a function gives for each item, in their order. Items have `num_bytes`, and results are JSON-able."""
    if sum(item.num_bytes for item in items) <= FEW_BYTES:
        return in_threads(work, items)
    rows = [{"ordinal": i, "num_bytes": item.num_bytes} for i, item in enumerate(items)]
    results = {report["ordinal"]: report["result"] for report in run(rows, _Each(work, items))}
    return [results[i] for i in range(len(items))]
