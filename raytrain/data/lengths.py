"""The index of a split: a number for each sample, such as its length, read a block at a time. No Ray, no torch.

The file holds the lengths (int32, little-endian) in blocks of BLOCK_SAMPLES, followed by one CRC-32 (uint32,
little-endian) per block. The manifest has the hash of the checksums. Opening an index reads the checksums only, so
that an index of 10^9 samples (4 GB) is opened with 1 MB, and each block is verified when it is read.
"""

import hashlib
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from raytrain.data.damaged import DamagedError
from raytrain.storage import Storage

BLOCK_SAMPLES = 4096
ELEMENT_BYTES = 4  # of a length, and of a checksum
CACHED_BLOCKS = 4096  # 64 MiB
# Object stores answer a request in some 20 ms, and a window of a large split needs hundreds of blocks.
CONCURRENT_READS = 16


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"lengths-{split}.bin"


def label_index_name(split: str) -> str:
    """File name of the index of a split's labels, in the same format."""
    return f"labels-{split}.bin"


def encode_index(lengths: np.ndarray) -> tuple[bytes, str]:
    """The contents of an index, and the hash for the manifest. `lengths`: shape (num_samples,)."""
    data = memoryview(np.ascontiguousarray(lengths, dtype="<i4").tobytes())
    step = ELEMENT_BYTES * BLOCK_SAMPLES
    sums = [zlib.crc32(data[start : start + step]) for start in range(0, len(data), step)]
    checksums = np.array(sums, dtype="<u4").tobytes()
    return b"".join([data, checksums]), hashlib.sha256(checksums).hexdigest()


class Lengths:
    """The lengths of a split's samples. `lengths[ids]` is an array of the same shape as `ids`, int32."""

    def __init__(self, storage: Storage, name: str, num_samples: int, sha256: str):
        """Args:
        num_samples, sha256: From the manifest.

        Raises DamagedError if the file is gone, or has another size or other checksums.
        """
        self._num_samples = num_samples
        self._num_blocks = -(-num_samples // BLOCK_SAMPLES)
        self._damaged = DamagedError(storage.path_of(), name)
        try:
            self._file = storage.open_input(name)
        except FileNotFoundError:
            raise self._damaged from None
        self._is_local = storage.local_path() is not None
        if self._file.size() != ELEMENT_BYTES * (num_samples + self._num_blocks):
            raise self._damaged
        checksums = self._file.read_at(ELEMENT_BYTES * self._num_blocks, ELEMENT_BYTES * num_samples)
        if hashlib.sha256(checksums).hexdigest() != sha256:
            raise self._damaged
        self._checksums = np.frombuffer(checksums, dtype="<u4")
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of samples."""
        return self._num_samples

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """The lengths of these samples, in this order. `ids`: shape (n,).

        Raises DamagedError when a block is not what was written, OSError if storage fails.
        """
        result = np.empty(len(ids), dtype=np.int32)
        if not len(ids):
            return result
        blocks = ids // BLOCK_SAMPLES
        by_block = np.argsort(blocks, kind="stable")
        wanted, starts = np.unique(blocks[by_block], return_index=True)
        with self._lock:
            found = self._read_all(wanted.tolist())
        for block, places in zip(wanted.tolist(), np.split(by_block, starts[1:]), strict=True):
            result[places] = found[block][ids[places] - block * BLOCK_SAMPLES]
        return result

    def verify(self) -> None:
        """Read the whole file. Raises DamagedError, OSError."""
        for block in range(self._num_blocks):
            self._read(block)

    def _read_all(self, wanted: list[int]) -> dict[int, np.ndarray]:
        missing = [block for block in wanted if block not in self._blocks]
        found = {block: self._blocks[block] for block in wanted if block in self._blocks}
        found.update(zip(missing, self._read_blocks(missing), strict=True))
        for block in wanted:
            self._blocks[block] = found[block]
            self._blocks.move_to_end(block)
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return found

    def _read_blocks(self, blocks: list[int]) -> Iterator[np.ndarray]:
        if self._is_local or len(blocks) < 2:
            yield from map(self._read, blocks)
            return
        with ThreadPoolExecutor(min(CONCURRENT_READS, len(blocks))) as pool:
            yield from pool.map(self._read, blocks)

    def _read(self, block: int) -> np.ndarray:
        start = block * BLOCK_SAMPLES
        count = min(BLOCK_SAMPLES, self._num_samples - start)
        data = self._file.read_at(ELEMENT_BYTES * count, ELEMENT_BYTES * start)
        if len(data) != ELEMENT_BYTES * count or zlib.crc32(data) != self._checksums[block]:
            raise self._damaged
        return np.frombuffer(data, dtype="<i4")
