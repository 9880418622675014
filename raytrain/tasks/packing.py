"""Several samples in one row, each computed as if it were alone.

Transformers keeps samples of a row apart by positions that start again at each of them, if there is no attention mask.
A mask is dense in all kernels but those for rows of many lengths, so without such a kernel rows are as long as the
longest sample: then there are never more rows than samples, and a row is never longer than with padding. The
alternative, rows of a given length, is slower than padding where samples of like length are grouped.
"""

from abc import abstractmethod

import numpy as np

from raytrain.tasks.base import IGNORED, Batch, Task


class Packable(Task):
    """A task whose loss is a sum over positions, and whose model predicts each from the positions before it."""

    @abstractmethod
    def packed(self, batch: Batch, *, one_row: bool) -> Batch:
        """The samples of a collated micro-batch in as few rows, with the same loss. `one_row`: in one."""


def pack(batch: Batch, *, one_row: bool) -> Batch:
    """Put the samples of a padded batch into fewer rows.

    Args:
        batch: `input_ids`, `attention_mask`, and other arrays of their shape (num_samples, seq_len). The padding is on
            the right.
        one_row: One row of all samples; else rows as long as the longest sample.

    Returns:
        Arrays of shape (num_rows, row_len), int64: `position_ids`, which start at 0 at each sample, and those of the
        batch but the mask. What is left of a row is a sample of its own, without targets.
    """
    is_token = batch["attention_mask"].astype(bool)
    lengths = is_token.sum(1)
    row_len = int(lengths.sum() if one_row else lengths.max())
    rows, starts = _places(lengths, row_len)
    shape = (int(rows.max()) + 1, row_len)
    positions = np.broadcast_to(np.arange(is_token.shape[1]), is_token.shape)  # (num_samples, seq_len)
    places = ((rows * row_len + starts)[:, None] + positions)[is_token]  # (num_tokens,), in the flattened rows
    used = np.bincount(rows, lengths, minlength=shape[0]).astype(np.int64)
    packed = {"position_ids": np.maximum(np.arange(row_len) - used[:, None], 0)}
    packed["position_ids"].flat[places] = positions[is_token]
    for name, array in batch.items():
        if name != "attention_mask" and array.shape == is_token.shape:
            packed[name] = np.full(shape, IGNORED if name == "labels" else 0, array.dtype)
            packed[name].flat[places] = array[is_token]
    return packed


def _places(lengths: np.ndarray, row_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of each sample and its start there: the longest first, each into the first row that has room."""
    left = np.full(len(lengths), row_len)
    rows, starts = np.zeros((2, len(lengths)), dtype=np.int64)
    for sample in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(left >= lengths[sample]))
        rows[sample], starts[sample] = row, row_len - left[row]
        left[row] -= lengths[sample]
    return rows, starts
