"""What saving and restoring a model of 70B parameters asks of storage, with 512 workers; scale.py prints it.

The files are sparse: their headers are real, their elements are holes. Requests are counted as an object store has
them: opening a file is one (its size), each read is one.
"""

import pickle
import time
from pathlib import Path
from typing import Any

import torch

from raytrain.checkpoint.manifest import PartEntry
from raytrain.checkpoint.ranges import FP32, MOMENTS, StateRange, StorageRangeReader, Wanted, encode_header
from raytrain.checkpoint.snapshot import PartReport
from raytrain.checkpoint.store import CheckpointStore, Saved, part_name, write_sidecar
from raytrain.storage import HASH_CHUNK_BYTES, Storage

WRITERS = 512
READERS = (512, 448, 256)
LAYERS, HIDDEN, INNER, KEYS, WORDS = 80, 8192, 28672, 1024, 128256  # Llama 3 70B
KINDS = (FP32, *MOMENTS)
STEP = 1000


class CountingStorage(Storage):
    """Counts requests and bytes, in `counts`."""

    def __init__(self, root: str, counts: dict[str, int]):
        super().__init__(root)
        self.counts = counts

    def at(self, *parts: str) -> Storage:
        return CountingStorage("/".join([self.root, *parts]), self.counts)

    def add(self, requests: int, num_bytes: int = 0, files: int = 0) -> None:
        for name, number in (("requests", requests), ("bytes", num_bytes), ("files", files)):
            self.counts[name] = self.counts.get(name, 0) + number

    def open_input(self, name: str) -> Any:
        self.add(1, files=1)
        return _CountingFile(super().open_input(name), self)

    def read_bytes(self, name: str) -> bytes:
        data = super().read_bytes(name)
        self.add(2, len(data))
        return data

    def size_bytes(self, name: str) -> int:
        self.add(1)
        return super().size_bytes(name)


class _CountingFile:
    def __init__(self, file: Any, storage: CountingStorage):
        self._file, self._storage, self.close = file, storage, file.close

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self._storage.add(1, num_bytes)
        return self._file.read_at(num_bytes, offset)


def parameters() -> dict[str, int]:
    """Elements by name."""
    shapes = {
        "model.embed_tokens.weight": WORDS * HIDDEN,
        "lm_head.weight": WORDS * HIDDEN,
        "model.norm.weight": HIDDEN,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": HIDDEN * HIDDEN for name in "qo"}
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": HIDDEN * KEYS for name in "kv"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": HIDDEN * INNER for name in ("gate", "up", "down")}
        shapes |= {f"{prefix}.{name}_layernorm.weight": HIDDEN for name in ("input", "post_attention")}
    return shapes


def owned(world_rank: int, world_size: int) -> list[StateRange]:
    """What a worker owns under ZeRO-3. Tensors on torch's meta device have no elements."""
    ranges = []
    for name, num_elements in parameters().items():
        part = -(-num_elements // world_size)
        start = min(world_rank * part, num_elements)
        length = min(part, num_elements - start)
        ranges.append(StateRange(name, start, {kind: torch.empty(length, device="meta") for kind in KINDS}))
    return ranges


def write_sparse_parts(folder: Storage) -> int:
    """The files and sidecars of all workers. Returns the bytes of the headers."""
    header_bytes = 0
    for rank in range(WRITERS):
        ranges, name = owned(rank, WRITERS), part_name(rank, WRITERS)
        header, layout = encode_header(ranges)
        num_bytes = len(header) + 4 * sum(tensor.numel() for piece in ranges for tensor in piece.tensors.values())
        path = Path(folder.local_path(name) or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(num_bytes)
        write_sidecar(folder, rank, "t", [PartEntry(name, num_bytes, "0" * 64, layout)])
        header_bytes += len(header)
    return header_bytes


def restores(root: str) -> dict[str, float]:
    """One save, then the restore of one worker in the middle of groups of several sizes."""
    counts: dict[str, int] = {}
    store = CheckpointStore(CountingStorage(root, counts))
    header_bytes = write_sparse_parts(Storage(root).at(Saved(0, STEP).folder))
    began_at_s = time.process_time()
    store.commit(STEP, WRITERS, {"step": STEP}, "t")
    found = {"commit by rank 0, CPU s": time.process_time() - began_at_s}
    found["commit by rank 0, requests"] = counts["requests"]
    found["manifest, MB"] = store.root.size_bytes(f"{Saved(0, STEP).folder}/manifest.json") / 1e6
    counts.clear()
    began_at_s = time.process_time()
    checkpoint = store.open(Saved(0, STEP))
    found["open a checkpoint, CPU s"] = time.process_time() - began_at_s
    opening, of_parts = dict(counts), [entry for entry in checkpoint.files if entry.name.startswith("zero")]
    # Hashing one file, which is each worker's share of the verification.
    hashing = 2 + -(-of_parts[0].num_bytes // HASH_CHUNK_BYTES)
    for world_size in READERS:
        counts.clear()
        ranges = owned(world_size // 2, world_size)
        wanted = [Wanted(kind, piece.name, piece.start, t) for piece in ranges for kind, t in piece.tensors.items()]
        StorageRangeReader(checkpoint.folder, checkpoint.index).load(wanted)
        own = sum(4 * one.target.numel() for one in wanted)
        who = f"one of {world_size} workers"
        found[f"{who}: files opened"] = counts["files"]
        found[f"{who}: requests"] = opening["requests"] + hashing * WRITERS / world_size + counts["requests"]
        found[f"{who}: bytes read / bytes owned"] = counts["bytes"] / own
    # Before: the size of each file, its header (opened, length, content), and a read per range.
    before = 4 + len(checkpoint.files) + hashing + 3 * WRITERS + len(parameters()) * len(KINDS)
    found[f"without the index, one of {WRITERS}: files opened"] = WRITERS
    found[f"without the index, one of {WRITERS}: requests"] = before
    found[f"without the index, one of {WRITERS}: MB of headers"] = header_bytes / 1e6
    report = PartReport(of_parts[0].num_bytes, True, encode_header(owned(0, WRITERS))[1])
    found["index of a snapshot, all parts, MB"] = WRITERS * len(pickle.dumps(report)) / 1e6
    return found
