"""The operator of STREAM: reads a worker's samples of each step, collates them, and packs the result as bytes."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from raytrain.config import RunConfig
from raytrain.data.augment import Augment
from raytrain.data.class_weights import state_of
from raytrain.data.copies import make_copies
from raytrain.data.items import EvalPass, TrainSpan
from raytrain.data.prepared import PreparedStore
from raytrain.data.quiet import BLOCK_BYTES
from raytrain.data.row_cache import RowCache
from raytrain.steps.batches import BatchPlan, World
from raytrain.steps.copies import copies_of, ids_of
from raytrain.steps.order import Order, evaluation_batches
from raytrain.tasks import make_task
from raytrain.tasks.base import Batch, BatchContext


class ReadAndCollate:
    """Turns items into collated steps. It caches recently read row groups."""

    def __init__(self, config: RunConfig, store: PreparedStore, world: World, plan: BatchPlan):
        self._store, self._world, self._plan = store, world, plan
        self._task = make_task(config.task, config.data.max_length)
        self._config, self._seed, self._state = config, config.seed, state_of(config, store.manifest)
        # A store that was prepared for an evaluation has no training split; a pass reads each row group once.
        min_groups = row_groups_in_use(self.order, plan) if store.has_split("train") else 1
        self._rows = RowCache(store, min_groups=min_groups)

    @functools.cached_property
    def order(self) -> Order:
        """The sample order of the training split."""
        return make_order(self._config, self._store)

    @functools.cached_property
    def _augment(self) -> Augment | None:
        # Made when it is needed: an evaluation needs neither the tokenizer nor a function of the user's.
        return Augment.of(self._config, self._store.manifest.task_state)

    def read(self, item: TrainSpan | EvalPass) -> Iterator[tuple[dict[str, Any], Batch]]:
        """A header and the arrays of each step or evaluation batch."""
        for header, arrays in self._train(item) if isinstance(item, TrainSpan) else self._evaluate(item):
            header["bytes_read"] = self._rows.bytes_read
            yield header, arrays

    def _train(self, span: TrainSpan) -> Iterator[tuple[dict[str, Any], Batch]]:
        plan = self._plan
        blank = np.array([], dtype=np.int64)
        mine = plan.micro_batches_of(self._world.world_rank, self.order.num_groups(plan.num_micro_batches))
        numbers = mine + [plan.num_micro_batches] * (plan.micro_steps - len(mine))
        for step in range(span.first_step, span.stop_step):
            parts = self.order.micro_batches(span.epoch, step, plan.num_micro_batches, mine)
            parts += [blank] * (plan.micro_steps - len(parts))
            ids = ids_of(np.concatenate(parts))
            batches = [self._collate("train", part, span.epoch) if len(part) else None for part in parts]
            template = next((b for b in batches if b is not None), None) or self._collate(
                "train", np.array([0]), span.epoch
            )
            micro_batches = [b if b is not None else self._task.blank(template) for b in batches]
            arrays = {f"{i}.{name}": a for i, b in enumerate(micro_batches) for name, a in b.items()}
            header = {
                "kind": "train",
                "epoch": span.epoch,
                "step_in_epoch": step,
                "numbers": numbers,
                "target_weight": sum(self._task.target_weight(b) for b in micro_batches),
                "num_tokens": self._num_tokens(ids, batches),
                "num_padded_tokens": sum(self._task.padded_size(b) for b in batches if b is not None),
            }
            yield header, {"sample_ids": ids, **arrays}

    def _evaluate(self, item: EvalPass) -> Iterator[tuple[dict[str, Any], Batch]]:
        lengths = self._store.lengths(item.split)
        world, size = self._world, self._config.training.samples_per_micro_batch
        mine = evaluation_batches(lengths, size, world.world_rank, world.world_size)
        count = max(1, -(-len(lengths) // (size * world.world_size)))  # batches of the worker that has the most
        for i in range(count):
            ids = mine[i] if i < len(mine) else np.array([], dtype=np.int64)
            batch = self._collate(item.split, ids) if len(ids) else None
            arrays = batch or self._task.blank(self._collate(item.split, np.array([0])))
            header = {"kind": "eval", "split": item.split, "is_blank": batch is None, "is_last": i == count - 1}
            yield header, {"sample_ids": ids, **arrays}

    def _collate(self, split: str, entries: np.ndarray, epoch: int = 0) -> Batch:
        manifest, ids, copies = self._store.manifest, ids_of(entries), copies_of(entries)
        context = BatchContext(self._state, split, ids, epoch, copies, self._seed, manifest.pad_token_id)
        samples = self._rows.take(split, ids)
        if split == "train" and self._augment is not None:
            samples = self._augment(samples, context)
        return self._task.collate(samples, context)

    def _num_tokens(self, ids: np.ndarray, batches: list[Batch | None]) -> int:
        """Tokens of training samples, which augmentation may have made fewer than those of the store."""
        if self._augment is None:
            return int(self.order.lengths[ids].sum())
        return sum(int(batch["attention_mask"].sum()) for batch in batches if batch is not None)


class ReadAndCollateActor:
    """The pipeline's only operator: a reader in a separate process."""

    def __init__(self, config: dict[str, Any], store_root: str, world: dict[str, int], plan: dict[str, int]):
        self._reader = ReadAndCollate(
            RunConfig.model_validate(config), PreparedStore(store_root), World(**world), BatchPlan(**plan)
        )

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Called by Ray Data with one item at a time; yields rows, one for each step or evaluation batch. What is
        yielded costs Ray Data as much with one row as with many, so rows are collected up to the size of a block."""
        for text in batch["item"]:
            raw = json.loads(text)
            item = TrainSpan(**raw) if raw.pop("kind") == TrainSpan.__name__ else EvalPass(**raw)
            headers: list[str] = []
            payloads: list[bytes] = []
            for header, arrays in self._reader.read(item):
                headers.append(json.dumps(header))
                payloads.append(safetensors.save(arrays))
                if sum(map(len, payloads)) >= BLOCK_BYTES:
                    yield {"header": headers, "arrays": payloads}
                    headers, payloads = [], []
            if headers:
                yield {"header": headers, "arrays": payloads}


def make_order(config: RunConfig, store: PreparedStore) -> Order:
    """The sample order of a run's training split."""
    return Order(
        row_group_starts=store.row_group_starts("train"),
        lengths=store.lengths("train"),
        seed=config.seed,
        global_batch_size=config.training.global_batch_size,
        canonical_shards=config.canonical_shards,
        window_samples=config.data.shuffle_window_samples,
        group_by_length=config.data.group_by_length,
        drop_last=config.data.drop_last,
        copies=make_copies(config, store),
    )


def row_groups_in_use(order: Order, plan: BatchPlan) -> int:
    """The most row groups that a worker alternates between: for each of its lanes, those of the current window and of
    the one before it, which have one in common."""
    window_samples = order.steps_per_window * plan.global_batch_size // order.lanes
    all_groups = order.num_groups(plan.num_micro_batches)
    groups = min(all_groups, -(-all_groups // plan.world_size) + 1)  # that a worker's are from
    per_group = order.lanes // all_groups + 2 * (order.lanes % all_groups > 0)  # the first and the last in part
    lanes = min(order.lanes, groups * per_group)
    return lanes * (2 * window_samples // order.samples_per_visit + 2)
