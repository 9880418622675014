"""Reading what W&B leaves in its offline mode: a log of protocol buffers in LevelDB's framing."""

import json
from pathlib import Path
from typing import Any

BLOCK_BYTES, HEADER_BYTES, FILE_HEADER_BYTES = 32768, 7, 7
FULL, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Any]:
    """The records of a .wandb file in order."""
    from wandb.proto import wandb_internal_pb2

    data, at, part, found = path.read_bytes(), FILE_HEADER_BYTES, b"", []
    while at + HEADER_BYTES <= len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES:  # a block's end that no header fits into
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
        at += HEADER_BYTES + length
        part = body if kind in (FULL, FIRST) else part + body
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
    return found


def parts_of(run: Path) -> list[list[Any]]:
    """The records of each part of a run, a part for each worker group, in their order."""
    return [records(path) for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]


def rows_of(part: list[Any]) -> list[dict[str, Any]]:
    """What was logged, without W&B's own columns."""
    rows = []
    for record in part:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def run_of(part: list[Any]) -> Any:
    """What the run is: run_id, run_group, tags, config, ..."""
    return next(record.run for record in part if record.WhichOneof("record_type") == "run")
