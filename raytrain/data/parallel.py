"""Many requests at once: the source files of a run may be 100,000, on an object store that takes 20 ms an answer."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raytrain.storage import keep_connections

T = TypeVar("T")
R = TypeVar("R")

Checked = Callable[[int, int, float], None]
"""Takes the number of files that are checked, of all files, and files per second."""

THREADS = 64  # of requests to an object store
# Handed to the threads at once: after an error, the rest of these is still worked on.
BATCH_ITEMS = 4096
TELL_AFTER_S, TELL_EVERY_S = 1.5, 0.5


def in_threads(work: Callable[[T], R], items: Sequence[T], checked: Checked | None = None) -> list[R]:
    """What `work` returns for each item, in their order. Raises what it raises for the first item for which it does.

    `checked`: is told how far it is, unless that takes less than a second or two.
    """
    results: list[R] = []
    began_s = time.monotonic()
    next_tell_s = began_s + TELL_AFTER_S
    with ThreadPoolExecutor(min(THREADS, max(1, len(items))), "files", keep_connections) as threads:
        for begin in range(0, len(items), BATCH_ITEMS):
            for result in threads.map(work, items[begin : begin + BATCH_ITEMS]):
                results.append(result)
                now_s = time.monotonic()
                if checked is not None and now_s >= next_tell_s:
                    next_tell_s = now_s + TELL_EVERY_S
                    checked(len(results), len(items), len(results) / (now_s - began_s))
    return results


def ahead(work: Callable[[T], R], items: Sequence[T], num_ahead: int) -> Iterator[R]:
    """What `work` returns for each item, in their order, while the next ones are worked on: where all results together
    would not fit in memory. At most `num_ahead` are held beside the one that was yielded."""
    with ThreadPoolExecutor(num_ahead, "files", keep_connections) as threads:
        waiting = deque(threads.submit(work, item) for item in items[:num_ahead])
        for following in range(num_ahead, num_ahead + len(items)):
            result = waiting.popleft().result()
            if following < len(items):
                waiting.append(threads.submit(work, items[following]))
            yield result
