"""Whether a run's samples share rows, which a probe of its model decides, and the source of packed batches.

No list of models says which keep samples of a row apart: some take positions and attend across samples all the same,
without a warning. So a few short samples are computed both ways by the real model with its attention.
"""

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raytrain.config import Packing, RunConfig
from raytrain.data.items import EvalBatch, StepBatch
from raytrain.engine.engine import Engine
from raytrain.errors import ConfigError
from raytrain.models.token_losses import without_cache
from raytrain.tasks.base import Batch, Task
from raytrain.tasks.packing import Packable
from raytrain.tasks.text import model_inputs
from raytrain.training.agreement import Control
from raytrain.training.evaluate import to_tensors
from raytrain.training.run_log import RunLog
from raytrain.training.trainer import BatchSource

PROBE_LENGTHS = (6, 4, 5, 1)  # in rows of the longest: one is full, one has two samples, and one is not full
# How far logits may be off, relative to how far they vary: above rounding, and far below what another sample adds.
MOST_LEAK = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class PackedSource:
    """The batches of another source, with fewer rows where samples can share them."""

    source: BatchSource
    task: Packable
    config: RunConfig
    one_row: bool
    """Whether a micro-batch becomes one row; else its rows are as long as its longest sample."""

    def next_step(self) -> StepBatch:
        """This worker's part of the next training step; blocks until it is available."""
        batch = self.source.next_step()
        packed = [self._pack(one) for one in batch.micro_batches]
        blank = self.config.training.num_micro_batches  # the number of one without samples
        used = [one for one, number in zip(packed, batch.numbers, strict=True) if number < blank]
        return replace(batch, micro_batches=packed, num_padded_tokens=sum(map(self.task.padded_size, used)))

    def evaluation(self, split: str) -> Iterator[EvalBatch]:
        """The batches of an evaluation as they are: its predictions are told by rows."""
        return self.source.evaluation(split)

    def _pack(self, batch: Batch) -> Batch:
        packed = self.task.packed(batch, one_row=self.one_row)
        is_smaller = self.task.padded_size(packed) < self.task.padded_size(batch)
        return packed if is_smaller or self.config.training.packing is Packing.ON else batch


def packed_source(
    source: BatchSource, config: RunConfig, task: Task, engine: Engine, control: Control, log: RunLog
) -> BatchSource:
    """The source of a run's batches, packed if `training.packing` and the model allow it. Collective.

    Raises ConfigError when the model does not keep samples apart and `training.packing` is on.
    """
    wanted = config.training.packing
    if wanted is Packing.OFF or not isinstance(task, Packable):
        return source
    one_row = has_varlen_attention(engine.module)
    found = why_not_packed(engine.module, task, engine.device, one_row=one_row, may_be_random=wanted is Packing.ON)
    reason = next((one for one in control.gather(found) if one is not None), None)
    log.event("packing", is_used=reason is None, one_row=one_row, reason=reason)
    if reason is None:
        return PackedSource(source, task, config, one_row)
    if wanted is Packing.ON:
        raise ConfigError(f"training.packing=on: {reason}. Leave it out: samples are then padded")
    return source


def has_varlen_attention(model: Any) -> bool:
    """Whether the model's attention skips what lies between the samples of a row. It then takes one row alone."""
    return "flash" in (getattr(model.config, "_attn_implementation", None) or "")


@torch.compiler.set_stance("force_eager")
def why_not_packed(
    model: nn.Module, task: Packable, device: torch.device, *, one_row: bool, may_be_random: bool
) -> str | None:
    """Why samples must not share rows, in words; None: they may.

    Every worker must call it, since ZeRO-3 gathers parameters in each forward pass.

    Args:
        may_be_random: Whether a model that draws random numbers, such as dropout, may be packed.
    """
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no position_ids, by which samples in one row are told apart"
    was_training = model.training
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradient checkpointing has nothing to do here
        try:
            padded = _probe_samples(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
            model.train()
            before = _random_state(device)
            alone = _logits(model, padded, device)
            is_random = any(not torch.equal(*pair) for pair in zip(before, _random_state(device), strict=True))
            if is_random and not may_be_random:
                return (
                    "the model draws random numbers, such as dropout, and packing would change which: set "
                    "training.packing=on to pack all the same, or training.dropout=0"
                )
            if is_random:
                model.eval()
                alone = _logits(model, padded, device)
            packed = task.packed(padded, one_row=one_row)
            together = _logits(model, packed, device)[_order(packed["token"])]
        finally:
            model.train(was_training)
    dtype, alone, together = alone.dtype, alone[_order(padded["token"])].float(), together.float()
    leak = (together - alone).norm() / (alone - alone.mean(0)).norm()
    if not leak <= MOST_LEAK.get(dtype, 0.0):
        return f"{name} does not keep samples in one row apart: their logits differ by {100 * float(leak):.2g} %"
    return None


def _probe_samples(vocabulary: int) -> Batch:
    """A padded batch, with the place of each token from 1 as `token`, which is 0 elsewhere."""
    lengths = np.array(PROBE_LENGTHS)[:, None]
    is_token = np.arange(lengths.max()) < lengths  # (num_samples, seq_len)
    ids = np.random.default_rng(0).integers(0, vocabulary, is_token.shape)
    return {
        "input_ids": ids * is_token,
        "attention_mask": is_token.astype(np.int64),
        "token": np.cumsum(is_token).reshape(is_token.shape) * is_token,
    }


def _order(token: np.ndarray) -> Tensor:
    """Places in the flattened batch of the first token, the second, and so on."""
    places = np.flatnonzero(token)
    return torch.from_numpy(places[np.argsort(token.flat[places])])


def _logits(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """On the CPU, of shape (num_rows * row_len, vocabulary)."""
    inputs = model_inputs(to_tensors(batch, device))
    logits: Tensor = model(**inputs, **without_cache(model)).logits
    return logits.flatten(0, 1).cpu()


def _random_state(device: torch.device) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]
