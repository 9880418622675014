"""The values that pass from the data pipeline to the training loop. No Ray, no torch."""

from dataclasses import dataclass

import numpy as np

from raytrain.tasks.base import Batch


@dataclass(frozen=True)
class TrainSpan:
    """A work item of the pipeline: steps [first_step, stop_step) of an epoch."""

    epoch: int
    first_step: int
    stop_step: int


@dataclass(frozen=True)
class EvalPass:
    """A work item of the pipeline: one pass over a split."""

    split: str


@dataclass(frozen=True)
class StepBatch:
    """One worker's part of one training step."""

    epoch: int
    step_in_epoch: int
    micro_batches: list[Batch]
    """The same number on every worker; a micro-batch without samples has no targets."""
    numbers: list[int]
    """Of each micro-batch in the step; for one without samples, the number of micro-batches in a step."""
    target_weight: float
    """Sum of the weights of this worker's targets."""
    sample_ids: np.ndarray
    """Shape (samples of this worker,)."""
    num_tokens: int
    """Tokens, padding excluded."""
    num_padded_tokens: int
    """Tokens, padding included."""


@dataclass(frozen=True)
class EvalBatch:
    """A micro-batch of an evaluation pass."""

    arrays: Batch
    is_blank: bool
    """True: it contains no sample of the split and only keeps the number of batches equal on all workers."""
    sample_ids: np.ndarray
