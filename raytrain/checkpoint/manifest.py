"""A checkpoint in storage: its files, its manifest, and the detection of damage. No Ray, no torch.

The manifest lists every other file with its size and SHA-256, has the index of their contents, and begins with a
checksum of the rest of itself. Manifest and state are JSON; nothing is unpickled.

Damage is looked for in whole files, before anything is loaded: the workers of a group read and hash each file once, in
equal shares, and agree on the result. So damage in a range is found by one worker and known to all, who then turn to an
older checkpoint together. A checksum per range would be seen only by the worker that reads the range, in the middle of
loading, and not at all by one that reads a part of the range, as workers do after a resize.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import from_json

from raytrain.checkpoint.index import FileRange, RangeIndex, TensorPieces, merge_ranges, wrong_index
from raytrain.errors import CheckpointError
from raytrain.storage import Storage

FORMAT_VERSION = 2  # 1 had no index
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
# No path: a file of a checkpoint is in its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=255)]


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, with its size and hash."""

    name: FileName
    """File name in the checkpoint's folder."""
    num_bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Lower-case hex."""


@dataclass(frozen=True)
class PartEntry(FileEntry):
    """A file that a worker has written, with its contents."""

    ranges: list[FileRange] = field(default_factory=list)
    """The tensors' ranges in it; none in a file of another kind."""


@dataclass(frozen=True)
class Manifest:
    """The contents of a manifest, without its checksum. Anything else is refused when one is read."""

    format_version: int
    step: NonNegativeInt
    world_size: PositiveInt
    """Number of workers that wrote it."""
    token: str
    files: list[FileEntry]
    tensors: dict[str, TensorPieces]
    """Which elements of each tensor are in which of the files."""
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Sidecar:
    """The contents of a worker's sidecar."""

    token: str
    files: list[PartEntry]


def write_hashed(folder: Storage, name: str, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write a file in pieces and hash it on the way. Raises OSError."""
    digest, num_bytes = hashlib.sha256(), 0
    with folder.open_output(name) as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            num_bytes += memoryview(chunk).nbytes
    sync(folder, name)
    return FileEntry(name, num_bytes, digest.hexdigest())


class Checkpoint:
    """A committed checkpoint with an intact manifest and state. `verify` checks the other files.

    Every worker opens it, so opening reads these two files and asks for no other.
    """

    def __init__(self, folder: Storage):
        """Raises CheckpointError with the damage that makes it impossible to load, and OSError if storage fails."""
        self.folder = folder
        manifest = read_manifest(folder)
        self.step = manifest.step
        self.world_size = manifest.world_size
        """Number of workers that wrote it. It can be loaded by any other number."""
        self.files = manifest.files
        self.index = RangeIndex([entry.name for entry in self.files], manifest.tensors)
        """Where the elements of each tensor are."""
        self.state: dict[str, Any] = self._read_state()

    def _read_state(self) -> dict[str, Any]:
        entry = next(entry for entry in self.files if entry.name == STATE_NAME)
        try:
            data = self.folder.read_bytes(STATE_NAME)
        except FileNotFoundError:
            raise CheckpointError(f"{STATE_NAME} is missing") from None
        if len(data) != entry.num_bytes:
            raise CheckpointError(f"{STATE_NAME} has {len(data)} bytes, {entry.num_bytes} were written")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{STATE_NAME} was changed after it was written (SHA-256 differs)")
        try:
            state = from_json(data)
        except ValueError as error:
            raise CheckpointError(f"{STATE_NAME} is not JSON: {error}") from None
        if not isinstance(state, dict) or state.get("step") != self.step:
            raise CheckpointError(f"{STATE_NAME} is not the state of step {self.step}")
        return state

    def files_to_verify(self, world_rank: int, world_size: int) -> list[FileEntry]:
        """This worker's share of the files. Each file is in exactly one share, and the shares have similar sizes."""
        shares: list[list[FileEntry]] = [[] for _ in range(world_size)]
        loads = [0] * world_size
        for entry in sorted(self.files, key=lambda entry: (-entry.num_bytes, entry.name)):
            lightest = loads.index(min(loads))
            shares[lightest].append(entry)
            loads[lightest] += entry.num_bytes
        return shares[world_rank]

    def verify(self, world_rank: int = 0, world_size: int = 1) -> str | None:
        """Read this worker's share of the files. Returns what is damaged, or None if all are good. Raises OSError if
        storage fails, which says nothing about the files."""
        share = self.files_to_verify(world_rank, world_size)
        for entry in share:
            if reason := wrong_size(self.folder, entry):
                return reason
        for entry in share:
            try:
                if self.folder.sha256(entry.name) != entry.sha256:
                    return f"{entry.name} was changed after it was written (SHA-256 differs)"
            except FileNotFoundError:
                return f"{entry.name} is missing"
        return None


def encode_state(state: dict[str, Any]) -> bytes:
    """The contents of state.json. Raises ValueError for NaN and infinity, TypeError for types that JSON lacks."""
    return json.dumps(state, allow_nan=False, indent=1, sort_keys=True).encode()


def encode_manifest(step: int, world_size: int, token: str, files: Sequence[FileEntry]) -> bytes:
    """The contents of manifest.json. `files` are all other files, including state.json."""
    entries = [FileEntry(entry.name, entry.num_bytes, entry.sha256) for entry in files]
    tensors = merge_ranges([entry.ranges if isinstance(entry, PartEntry) else [] for entry in files])
    manifest = Manifest(FORMAT_VERSION, step, world_size, token, entries, tensors)
    # `asdict` only where it is needed: it would copy each of a million numbers.
    return _seal(
        {**vars(manifest), "files": list(map(asdict, entries)), "tensors": {k: vars(v) for k, v in tensors.items()}}
    )


def _seal(body: dict[str, Any]) -> bytes:
    """A manifest with a checksum of everything else in front, so that any changed bit is noticed."""
    encoded = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return _SEAL % hashlib.sha256(encoded).hexdigest().encode() + encoded[1:]


def read_manifest(folder: Storage) -> Manifest:
    """The manifest. Raises CheckpointError if it is missing, damaged, or has an unknown format."""
    try:
        data = folder.read_bytes(MANIFEST_NAME)
    except FileNotFoundError:
        raise CheckpointError(f"it was never committed ({MANIFEST_NAME} is missing)") from None
    head = len(_SEAL % bytes(CHECKSUM_CHARS))
    encoded = b"{" + data[head:]
    if data[:head] != _SEAL % hashlib.sha256(encoded).hexdigest().encode():
        raise CheckpointError(_other_format(data) or f"{MANIFEST_NAME} was changed after it was written")
    try:
        manifest = _MANIFEST.validate_json(encoded, strict=True)
    except ValidationError as error:
        reason = f"{MANIFEST_NAME} is not one of raytrain's: {in_words(error)}"
        raise CheckpointError(_other_format(data) or reason) from None
    if manifest.format_version != FORMAT_VERSION:
        raise CheckpointError(_refused(manifest.format_version))
    if (problem := _inconsistency(manifest)) is not None:
        raise CheckpointError(problem)
    return manifest


def _other_format(data: bytes) -> str | None:
    """What to say of a manifest of another format, whose fields and checksum are not known. None: it is of ours."""
    try:
        version = from_json(data)["format_version"]
    except (ValueError, KeyError, TypeError):
        return None
    return None if version == FORMAT_VERSION else _refused(version)


def _refused(version: object) -> str:
    return f"it has format {version}, and this raytrain reads {FORMAT_VERSION}"


def _inconsistency(manifest: Manifest) -> str | None:
    """What contradicts itself in a manifest of the right types. None: nothing."""
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names) or STATE_NAME not in names:
        return f"{MANIFEST_NAME} is not one of raytrain's: it lists {names}"
    reason = wrong_index(manifest.tensors, [entry.num_bytes for entry in manifest.files])
    return reason and f"{MANIFEST_NAME} is not one of raytrain's: {reason}"


def read_sidecar(data: bytes) -> Sidecar:
    """The contents of a sidecar. Raises CheckpointError for anything else."""
    try:
        return _SIDECAR.validate_json(data, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"a sidecar is damaged: {in_words(error)}") from None


def in_words(error: ValidationError) -> str:
    """The first problem that pydantic has found, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]


_SEAL, CHECKSUM_CHARS = b'{"checksum":"%b",', 64
_MANIFEST, _SIDECAR = TypeAdapter(Manifest), TypeAdapter(Sidecar)


def wrong_size(folder: Storage, entry: FileEntry) -> str | None:
    """What is wrong if the file is missing or its size differs from the manifest's. None: nothing."""
    try:
        found = folder.size_bytes(entry.name)
    except FileNotFoundError:
        return f"{entry.name} is missing"
    return None if found == entry.num_bytes else f"{entry.name} has {found} bytes, {entry.num_bytes} were written"


def sync(folder: Storage, name: str = "") -> None:
    """Flush a file's contents, or the entries of a folder, to a local disk, so that they survive a power failure."""
    if (path := folder.local_path(name)) is not None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
