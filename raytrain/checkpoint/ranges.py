"""Ranges of flattened tensors in safetensors files, which any number of workers can write and any other number read.

A file contains fp32 tensors with the keys `<kind>:<name>:<start>`: elements from `start` on of a flattened parameter
(or buffer) `name`. Kinds: `fp32` (the master weight), `exp_avg`, `exp_avg_sq` (AdamW's moments), `buffer`. The files of
all workers together contain each element once; it does not matter which worker wrote which. The files' headers are for
other programs: raytrain finds the elements by the index in the manifest, see `raytrain.checkpoint.index`. No Ray.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raytrain.checkpoint.index import ELEMENT_BYTES, FileRange, Place, RangeIndex
from raytrain.checkpoint.manifest import PartEntry, write_hashed
from raytrain.errors import CheckpointError
from raytrain.retries import retrying
from raytrain.storage import Storage

FP32, EXP_AVG, EXP_AVG_SQ, BUFFER = "fp32", "exp_avg", "exp_avg_sq", "buffer"
AVERAGE = "ema"
SENSITIVITY, UNCERTAINTY = "adalora_sensitivity", "adalora_uncertainty"  # averages by which AdaLoRA removes ranks
MOMENTS = (EXP_AVG, EXP_AVG_SQ)
READ_BYTES = 64 << 20  # the most that is read at once
# On an object store a request takes 20 to 50 ms, in which one connection carries one or two MiB.
GAP_BYTES = 1 << 20


@dataclass(frozen=True)
class StateRange:
    """Elements [start, start + n) of a flattened parameter or buffer: CPU copies, fp32, 1-D."""

    name: str
    """Name in `module.named_parameters()` or `named_buffers()`."""
    start: int
    tensors: dict[str, Tensor]
    """Kind -> elements, all of the same length. A buffer has only `buffer`."""


@dataclass(frozen=True)
class Wanted:
    """Elements that a worker needs, and where they go."""

    kind: str
    name: str
    start: int
    target: Tensor
    """1-D, fp32, on any device; gets the elements from `start` on."""


class RangeReader(Protocol):
    """Provides the saved ranges to `load_ranges`."""

    def load(self, wanted: Iterable[Wanted]) -> None:
        """Fill all targets. Raises CheckpointError when some of the elements are missing."""


class Files(Protocol):
    """Opens the files for a reader: a Storage, or a snapshot's parts in memory."""

    def open_input(self, name: str) -> Any:
        """A file to read with `read_at` and `close`. Raises OSError."""

    def path_of(self, name: str) -> str:
        """The name of the file for messages."""


@dataclass(frozen=True)
class EncodedPart:
    """One worker's safetensors file."""

    chunks: list[bytes | memoryview]
    """Its bytes, in pieces that are views of the tensors."""
    ranges: list[FileRange]
    """What is in it, where."""


def write_ranges(storage: Storage, name: str, ranges: list[StateRange]) -> PartEntry:
    """Write one worker's ranges as a safetensors file, and hash it in the process. Raises OSError."""
    part = encode_ranges(ranges)
    written = write_hashed(storage, name, part.chunks)
    return PartEntry(written.name, written.num_bytes, written.sha256, part.ranges)


def encode_ranges(ranges: list[StateRange]) -> EncodedPart:
    """One worker's safetensors file."""
    header, layout = encode_header(ranges)
    tensors = [tensor for piece in ranges for tensor in piece.tensors.values() if tensor.numel()]
    return EncodedPart([header, *(tensor.contiguous().numpy().data.cast("B") for tensor in tensors)], layout)


def encode_header(ranges: list[StateRange]) -> tuple[bytes, list[FileRange]]:
    """What comes before the elements in a worker's file, and where each range is."""
    header: dict[str, dict[str, object]] = {}
    offset, offsets = 0, []
    for piece in ranges:
        offsets.append(offset)
        for kind, tensor in piece.tensors.items():
            assert tensor.dtype == torch.float32, f"{kind} of {piece.name} is not fp32"
            assert tensor.ndim == 1, f"{kind} of {piece.name} is not flat"
            end = offset + tensor.numel() * ELEMENT_BYTES
            key = f"{kind}:{piece.name}:{piece.start}"
            header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [offset, end]}
            offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data must start at a multiple of 8 in safetensors
    layout = []
    for piece, offset in zip(ranges, offsets, strict=True):
        if length := len(next(iter(piece.tensors.values()))):
            stop, data_start = piece.start + length, 8 + len(encoded)
            layout.append(FileRange(piece.name, list(piece.tensors), piece.start, stop, data_start + offset))
    return len(encoded).to_bytes(8, "little") + encoded, layout


@dataclass(frozen=True)
class _Chunk:
    """Elements that are consecutive in a file and in a target."""

    place: Place
    target: Tensor

    @property
    def end(self) -> int:
        """The byte after them in the file."""
        return self.place.offset + self.place.num_elements * ELEMENT_BYTES


class StorageRangeReader:
    """Reads ranges from the files of a checkpoint, whatever number of workers wrote them.

    A file is opened when something in it is wanted, and closed before the next one. What lies close together in a file
    is read at once: on an object store each read is a request.
    """

    bytes_read: int
    """Bytes read so far."""

    def __init__(self, files: Files, index: RangeIndex, gap_bytes: int = GAP_BYTES):
        """Args:
        files: Opens the files.
        index: What is in the files.
        gap_bytes: Up to this many bytes that nobody wants are read, where that saves a read.
        """
        self.bytes_read = 0
        self._files, self._index, self._gap_bytes = files, index, gap_bytes

    def load(self, wanted: Iterable[Wanted]) -> None:
        """See `RangeReader`. Raises CheckpointError too, if storage fails for two minutes."""
        chunks = sorted((c for one in wanted for c in self._chunks(one)), key=lambda chunk: chunk.place)
        for file, of_file in itertools.groupby(chunks, key=lambda chunk: chunk.place.file):
            path, work = self._files.path_of(file), functools.partial(self._load_from, file, list(of_file))
            try:
                retrying(work, f"reading {path}")
            except OSError as error:
                raise CheckpointError(f"{path} can't be read: {error}") from error

    def _load_from(self, file: str, chunks: list[_Chunk]) -> None:
        try:
            opened = self._files.open_input(file)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self._files.path_of(file)} can't be opened: {error}") from error
        with contextlib.closing(opened):
            for group in self._merged(chunks):
                self._read(opened, group)

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop): fp32, 1-D, CPU. Raises like `load`."""
        target = torch.empty(stop - start)
        self.load([Wanted(kind, name, start, target)])
        return target

    def _chunks(self, wanted: Wanted) -> Iterator[_Chunk]:
        """Pieces of at most READ_BYTES."""
        position, most = 0, READ_BYTES // ELEMENT_BYTES
        for file, offset, length in self._index.find(
            wanted.kind, wanted.name, wanted.start, wanted.start + wanted.target.numel()
        ):
            for done in range(0, length, most):
                num = min(most, length - done)
                target = wanted.target[position : position + num]
                yield _Chunk(Place(file, offset + done * ELEMENT_BYTES, num), target)
                position += num

    def _merged(self, chunks: Iterable[_Chunk]) -> Iterator[list[_Chunk]]:
        """Sorted chunks of one file, in groups that are read at once."""
        group: list[_Chunk] = []
        start = end = 0
        for chunk in chunks:
            if group and (chunk.place.offset - end > self._gap_bytes or chunk.end - start > READ_BYTES):
                yield group
                group = []
            if not group:
                start = end = chunk.place.offset
            group.append(chunk)
            end = max(end, chunk.end)
        if group:
            yield group

    def _read(self, opened: Any, group: list[_Chunk]) -> None:
        first = group[0].place
        num_bytes = max(chunk.end for chunk in group) - first.offset
        data = opened.read_at(num_bytes, first.offset)
        self.bytes_read += len(data)
        if len(data) != num_bytes:
            path = self._files.path_of(first.file)
            raise CheckpointError(f"{path} ends early: {num_bytes} bytes were expected at {first.offset}")
        elements = torch.from_numpy(np.frombuffer(data, dtype="<f4").copy())  # copied, since torch wants to own it
        for chunk in group:
            start = (chunk.place.offset - first.offset) // ELEMENT_BYTES
            chunk.target.copy_(elements[start : start + chunk.place.num_elements])
