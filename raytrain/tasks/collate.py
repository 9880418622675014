"""Padding ragged Arrow columns to rectangular arrays, without a Python loop over tokens."""

import numpy as np
import pyarrow as pa


def pad_column(column: pa.ChunkedArray, fill: int, pad_to: int | None = None) -> np.ndarray:
    """A list column as an array.

    Args:
        column: `list<int>`, one list a sample.
        fill: Value of the padding.
        pad_to: Width; None: the longest list.

    Returns:
        Shape (num_samples, width), int64.
    """
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # an empty column stays chunked
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], pa.list_(pa.int32()))
    lengths = np.diff(lists.offsets.to_numpy())
    width = max(int(lengths.max(initial=1)), pad_to or 0, 1)
    padded = np.full((len(lists), width), fill, dtype=np.int64)
    padded[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded


def attention_mask(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """1 for a token, 0 for padding. Shape (num_samples, width), int64."""
    lists = column.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    return (np.arange(width) < lengths[:, None]).astype(np.int64)
