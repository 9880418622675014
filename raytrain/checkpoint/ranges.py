"""Ranges of flattened tensors in safetensors files, which any number of workers can write and any other number read.

A file contains fp32 tensors with the keys `<kind>:<name>:<start>`: elements from `start` on of a flattened parameter
(or buffer) `name`. Kinds: `fp32` (the master weight), `exp_avg`, `exp_avg_sq` (AdamW's moments), `buffer`. The files of
all workers together contain each element once; it does not matter which worker wrote which. No Ray.
"""

import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raytrain.checkpoint.manifest import FileEntry, write_hashed
from raytrain.errors import CheckpointError
from raytrain.storage import Storage

FP32, EXP_AVG, EXP_AVG_SQ, BUFFER = "fp32", "exp_avg", "exp_avg_sq", "buffer"
MOMENTS = (EXP_AVG, EXP_AVG_SQ)
ELEMENT_BYTES = 4
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class StateRange:
    """Elements [start, start + n) of a flattened parameter or buffer: CPU copies, fp32, 1-D."""

    name: str
    """Name in `module.named_parameters()` or `named_buffers()`."""
    start: int
    tensors: dict[str, Tensor]
    """Kind -> elements, all of the same length. A buffer has only `buffer`."""


class RangeReader(Protocol):
    """Provides the saved ranges to `load_ranges`."""

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop): fp32, 1-D, CPU. Raises CheckpointError when some of them are missing."""


class Files(Protocol):
    """Opens the files for a reader: a Storage, or a snapshot's parts in memory."""

    def open_input(self, name: str) -> Any:
        """A file to read with `size`, `read_at` and `close`. Raises OSError."""

    def path_of(self, name: str) -> str:
        """The name of the file for messages."""


def write_ranges(storage: Storage, name: str, ranges: list[StateRange]) -> FileEntry:
    """Write one worker's ranges as a safetensors file, and hash it in the process. Raises OSError."""
    return write_hashed(storage, name, encode_ranges(ranges))


def encode_ranges(ranges: list[StateRange]) -> Iterator[bytes | memoryview]:
    """The bytes of one worker's safetensors file, in pieces that are views of the ranges."""
    header: dict[str, dict[str, object]] = {}
    tensors: list[Tensor] = []
    offset = 0
    for piece in ranges:
        for kind, tensor in piece.tensors.items():
            assert tensor.dtype == torch.float32, f"{kind} of {piece.name} is not fp32"
            assert tensor.ndim == 1, f"{kind} of {piece.name} is not flat"
            end = offset + tensor.numel() * ELEMENT_BYTES
            key = f"{kind}:{piece.name}:{piece.start}"
            header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [offset, end]}
            tensors.append(tensor)
            offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data must start at a multiple of 8 in safetensors
    yield len(encoded).to_bytes(8, "little") + encoded
    for tensor in tensors:
        if tensor.numel():
            yield tensor.contiguous().numpy().data.cast("B")


@dataclass(frozen=True, order=True)
class _Piece:
    """Consecutive elements in a file."""

    start: int
    stop: int
    file: str
    offset: int  # bytes from the start of the file


class StorageRangeReader:
    """Reads ranges from the files of a checkpoint, whatever number of workers wrote them.

    Opening reads the files' headers; `read` then reads only the bytes of the requested elements.
    """

    bytes_read: int
    """Bytes read so far, headers included."""

    def __init__(self, storage: Files, files: list[str]):
        """Raises CheckpointError when a file is missing or is not what `write_ranges` writes."""
        self.bytes_read = 0
        self._files = files
        self._inputs = {}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        for file in files:
            try:
                self._inputs[file] = storage.open_input(file)
            except OSError as error:
                raise CheckpointError(f"{storage.path_of(file)} can't be opened: {error}") from error
            self._add_header(file)
        for pieces in self._pieces.values():
            pieces.sort()

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See `RangeReader`."""
        result = np.empty(stop - start, dtype=np.float32)
        pieces = self._pieces.get((kind, name), [])
        position = start
        index = max(0, bisect.bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
        while position < stop:
            piece = pieces[index] if index < len(pieces) else None
            if piece is None or not piece.start <= position < piece.stop:
                raise CheckpointError(
                    f"{kind} of {name}: elements [{position}, {stop}) are not in {', '.join(self._files)}"
                )
            until = min(stop, piece.stop)
            self._read_into(result[position - start : until - start], piece, position)
            position, index = until, index + 1
        return torch.from_numpy(result)

    def close(self) -> None:
        """Close the files."""
        for file in self._inputs.values():
            file.close()

    def _read_into(self, target: np.ndarray, piece: _Piece, position: int) -> None:
        data = self._read_at(piece.file, target.nbytes, piece.offset + (position - piece.start) * ELEMENT_BYTES)
        target[:] = np.frombuffer(data, dtype="<f4")

    def _read_at(self, file: str, num_bytes: int, offset: int) -> bytes:
        data = self._inputs[file].read_at(num_bytes, offset)
        self.bytes_read += len(data)
        if len(data) != num_bytes:
            raise CheckpointError(f"{file} ends early: {num_bytes} bytes were expected at {offset}")
        return data

    def _add_header(self, file: str) -> None:
        size = self._inputs[file].size()
        length = int.from_bytes(self._read_at(file, 8, 0), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is not a safetensors file: its header would have {length} bytes")
        try:
            for key, entry in json.loads(self._read_at(file, length, 8)).items():
                if key != "__metadata__":
                    self._add_tensor(file, key, entry, data_start=8 + length, size=size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} has a header that raytrain did not write: {error!r}") from error

    def _add_tensor(self, file: str, key: str, entry: dict, data_start: int, size: int) -> None:
        kind, rest = key.split(":", 1)
        name, start_text = rest.rsplit(":", 1)
        start, (begin, end) = int(start_text), entry["data_offsets"]
        num_elements = (end - begin) // ELEMENT_BYTES
        if entry["dtype"] != "F32" or entry["shape"] != [num_elements] or not 0 <= begin <= end <= size - data_start:
            raise ValueError(f"tensor {key} has dtype {entry['dtype']}, shape {entry['shape']}")
        if num_elements:
            piece = _Piece(start, start + num_elements, file, data_start + begin)
            self._pieces.setdefault((kind, name), []).append(piece)
