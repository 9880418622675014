"""The files of one log. On an object store, which can't append, a log continues in another file once one is large: only
the last file is uploaded again, so what is uploaded grows as the log does.

    metrics.jsonl                       the first lines; on a file system, all of them
    segments/metrics/00000001.jsonl     the next ones, and so on

Each has whole lines. One that has SEGMENT_BYTES or more is complete, and the next may follow; so a log that is short,
as almost all are, costs no request more than a file.
"""

import itertools
from collections.abc import Iterator

from raytrain.storage import Storage

SEGMENT_BYTES = 8 << 20
FOLDER = "segments"


def segment_name(name: str, index: int) -> str:
    """Name of the file with this index of a log. `name`: of the log, which ends with .jsonl."""
    return name if index == 0 else f"{FOLDER}/{name.removesuffix('.jsonl')}/{index:08d}.jsonl"


def segments_of(storage: Storage, name: str) -> list[tuple[str, int]]:
    """(name, bytes) of each file of a log, in order; [] if there is none. Raises OSError."""
    try:
        found = [(name, storage.size_bytes(name))]
    except FileNotFoundError:
        return []
    if found[0][1] < SEGMENT_BYTES:
        return found
    sizes = storage.list_sizes(f"{FOLDER}/{name.removesuffix('.jsonl')}")
    parts = (segment_name(name, index) for index in itertools.count(1))
    there = itertools.takewhile(lambda part: part.rpartition("/")[2] in sizes, parts)
    return found + [(part, sizes[part.rpartition("/")[2]]) for part in there]


def read_from(storage: Storage, name: str, offset: int) -> bytes:
    """What a log has from an offset on, over all its files. Raises OSError."""
    data = bytearray()
    for part, size in segments_of(storage, name):
        if size > offset:
            with storage.open_input(part) as file:
                data += file.read_at(size - offset, offset)
        offset = max(0, offset - size)
    return bytes(data)


def pieces_of(storage: Storage, name: str, most_bytes: int) -> Iterator[bytes]:
    """All that a log has, in order, `most_bytes` at a time. Raises OSError."""
    for index in itertools.count():
        try:
            file = storage.open_input(segment_name(name, index))
        except FileNotFoundError:
            return
        num_bytes = 0
        with file:
            while piece := file.read(most_bytes):
                num_bytes += len(piece)
                yield piece
        if num_bytes < SEGMENT_BYTES:
            return
