"""The index of a checkpoint: which elements of which tensor are in which file, and at which byte. No Ray, no torch.

Each writer reports the ranges of its file; they are merged, by tensor, into the manifest. A reader then knows without
opening a file which files it needs: of 512 files written by ZeRO, those of one or two workers.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from raytrain.errors import CheckpointError

ELEMENT_BYTES = 4  # everything is fp32


class FileRange(NamedTuple):
    """Consecutive elements of a flattened tensor in a file. A JSON list, since there may be a thousand in a file."""

    name: str
    kinds: list[str]
    """See `raytrain.checkpoint.ranges`. The elements of each kind lie behind those of the kind before it."""
    start: NonNegativeInt
    """First element."""
    stop: PositiveInt
    """The element after the last one."""
    offset: NonNegativeInt
    """Bytes from the start of the file."""


class Piece(NamedTuple):
    """A `FileRange` without what all ranges of its tensor have in common."""

    start: NonNegativeInt
    stop: PositiveInt
    file: NonNegativeInt
    """Index in the list of files."""
    offset: NonNegativeInt


@dataclass(frozen=True)
class TensorPieces:
    """Where the elements of one tensor are."""

    kinds: list[str]
    pieces: list[Piece] = field(default_factory=list)
    """Sorted."""


class Place(NamedTuple):
    """Consecutive elements of one kind in a file. Places sort by file, then by offset."""

    file: str
    offset: int
    num_elements: int


class RangeIndex:
    """Finds elements in the files of a checkpoint or of a snapshot."""

    def __init__(self, files: Sequence[str], tensors: Mapping[str, TensorPieces]):
        """Args:
        files: Names of the files, in the order in which `Piece.file` counts them.
        tensors: See `merge_ranges`.
        """
        self._files, self._tensors = files, tensors

    @classmethod
    def of_files(cls, ranges: Mapping[str, Sequence[FileRange]]) -> "RangeIndex":
        """The index of files that report these ranges. Raises CheckpointError, see `merge_ranges`."""
        return cls(list(ranges), merge_ranges(list(ranges.values())))

    def find(self, kind: str, name: str, start: int, stop: int) -> list[Place]:
        """Where the elements [start, stop) are, in their order. Raises CheckpointError if some of them are in no
        file."""
        found = self._tensors.get(name)
        pieces = found.pieces if found is not None and kind in found.kinds else []
        places, position = [], start
        index = max(0, bisect.bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
        while position < stop:
            piece = pieces[index] if index < len(pieces) else None
            if found is None or piece is None or not piece.start <= position < piece.stop:
                where = f"in none of the {len(self._files)} files"
                raise CheckpointError(f"{kind} of {name}: elements [{position}, {stop}) are {where}")
            until = min(stop, piece.stop)
            before = found.kinds.index(kind) * (piece.stop - piece.start) + position - piece.start
            offset = piece.offset + before * ELEMENT_BYTES
            places.append(Place(self._files[piece.file], offset, until - position))
            position, index = until, index + 1
        return places


def merge_ranges(files: Sequence[Sequence[FileRange]]) -> dict[str, TensorPieces]:
    """The ranges of all files by tensor.

    Raises CheckpointError if two files disagree on what is kept of a tensor: they are not of one save.
    """
    tensors: dict[str, TensorPieces] = {}
    for file, ranges in enumerate(files):
        for name, kinds, start, stop, offset in ranges:
            tensor = tensors.get(name)
            if tensor is None:
                tensor = tensors[name] = TensorPieces(kinds)
            if tensor.kinds != kinds:
                raise CheckpointError(f"one file holds {tensor.kinds} of {name}, another one {kinds}")
            tensor.pieces.append(Piece(start, stop, file, offset))
    for tensor in tensors.values():
        tensor.pieces.sort()
    return tensors


def wrong_index(tensors: Mapping[str, TensorPieces], sizes: Sequence[int]) -> str | None:
    """What can't be right in an index of files of these sizes, in bytes. None: nothing."""
    for name, tensor in tensors.items():
        for piece in tensor.pieces:
            if piece.file >= len(sizes):
                return f"{name}: it lists {len(sizes)} files, not {piece.file + 1}"
            num_bytes = ELEMENT_BYTES * (piece.stop - piece.start) * len(tensor.kinds)
            if num_bytes <= 0 or piece.offset % ELEMENT_BYTES or piece.offset + num_bytes > sizes[piece.file]:
                return f"{name}: {num_bytes} bytes at {piece.offset} of a file of {sizes[piece.file]} bytes"
    return None
