"""Padding ragged Arrow columns to rectangular arrays, without a Python loop over tokens."""

import numpy as np
import pyarrow as pa


def pad_column(column: pa.ChunkedArray, fill: int, width: int = 1) -> np.ndarray:
    """A list column as an array.

    Args:
        column: `list<int>`, one list per sample.
        fill: Value of the padding.
        width: The least width; the longest list may be longer.

    Returns:
        Shape (num_samples, width), int64.
    """
    lists = _combined(column)
    lengths = np.diff(lists.offsets.to_numpy())
    width = max(int(lengths.max(initial=1)), width)
    padded = np.full((len(lists), width), fill, dtype=np.int64)
    padded[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded


def attention_mask(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """1 for a token, 0 for padding. Shape (num_samples, width), int64."""
    return (np.arange(width) < list_lengths(column)[:, None]).astype(np.int64)


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Elements of each list. Shape (num_samples,)."""
    return np.diff(_combined(column).offsets.to_numpy())


def _combined(column: pa.ChunkedArray) -> pa.ListArray:
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # an empty column stays chunked
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], pa.list_(pa.int32()))
    return lists
