"""STREAM: one Ray Data pipeline per worker, from prepared samples to collated micro-batches, in order.

    1. items     TrainSpan and EvalPass of this run, from its current step             (a few numbers each)
    2. read      row groups of the prepared store, with an LRU cache                   ReadAndCollate, one actor
    3. collate   the worker's samples of a step -> padded micro-batches -> bytes       the same actor
    4. prefetch  a bounded queue in the worker                                         Stream

Evaluations are part of the same pipeline, at the place where they are due, so nothing is restarted between epochs. A
pipeline's actor takes seconds to start; meanwhile the worker reads the first span itself.
Arrays travel as safetensors bytes, which keep their shapes; nothing is pickled.
"""

import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from safetensors import numpy as safetensors

from raytrain.config import RunConfig
from raytrain.data.items import EvalBatch, EvalPass, StepBatch, TrainSpan
from raytrain.data.prepared import PreparedStore
from raytrain.data.quiet import AWAY_FROM_GPUS, configure_pipelines
from raytrain.data.step_reader import ReadAndCollate, ReadAndCollateActor
from raytrain.models.tokenizer import load_tokenizer
from raytrain.steps.batches import BatchPlan, World
from raytrain.steps.timetable import Timetable
from raytrain.tasks.base import Batch

SAMPLES_PER_SPAN = (
    2048  # samples of one worker in one item of the pipeline; each item costs Ray Data about 10 ms of CPU
)
SAMPLES_OF_HEAD = 512  # samples of all workers in the first item, which each worker reads itself
MOST_STEPS_PER_SPAN = 64
ITEMS_PER_DATASET = 256  # items that are given to Ray Data at once; the next ones follow when these are used up
QUEUE_ITEMS = 16  # decoded steps that wait for the training loop
MOST_PIPELINES = 5  # starts of one pipeline, if lost nodes take it with them
CLOSE_TIMEOUT_S = 30.0  # a Ray that no longer answers must not keep a worker from ending


logger = logging.getLogger(__name__)


def plan_items(step: int, table: Timetable, steps_per_span: int, head_steps: int) -> Iterator[TrainSpan | EvalPass]:
    """The items that the pipeline of a run has to deliver from `step` on, in order; the first has `head_steps`."""
    most = head_steps
    while step < table.total_steps:
        epoch, first = table.place_of(step)
        stop = min(first + most, table.steps_per_epoch, first + table.next_evaluation(step) - step)
        yield TrainSpan(epoch, first, stop)
        most = steps_per_span
        step += stop - first
        if table.is_evaluation_due(step):
            yield EvalPass("validation")


class Stream:
    """This worker's batches. Implements `BatchSource` for the training loop."""

    def __init__(self, config: RunConfig, store: PreparedStore, world: World, plan: BatchPlan):
        self._config, self._store, self._world, self._plan = config, store, world, plan
        self._queue: queue.Queue[tuple[dict[str, Any], Batch] | BaseException | None] = queue.Queue(QUEUE_ITEMS)
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_failed = False
        self._bytes_read_here = self._bytes_read_there = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of row groups that the readers have read from storage, up to the newest item delivered."""
        return self._bytes_read_here + self._bytes_read_there

    def start(self, step: int, table: Timetable) -> None:
        """Start to deliver what follows after `step` steps; returns at once."""
        batch_size, of_all = self._plan.global_batch_size, SAMPLES_PER_SPAN * self._world.world_size
        steps_per_span = max(1, min(MOST_STEPS_PER_SPAN, of_all // batch_size))
        items = plan_items(step, table, steps_per_span, max(1, min(SAMPLES_OF_HEAD, SAMPLES_PER_SPAN) // batch_size))
        self._begin(items, next(items, None))

    def next_step(self) -> StepBatch:
        """This worker's part of the next training step; blocks until it is available."""
        header, arrays = self._next("train")
        micro_batches: list[Batch] = [{} for _ in header["numbers"]]
        sample_ids = arrays.pop("sample_ids")
        for key, array in arrays.items():
            place, _, name = key.partition(".")
            micro_batches[int(place)][name] = array
        return StepBatch(
            epoch=header["epoch"],
            step_in_epoch=header["step_in_epoch"],
            micro_batches=micro_batches,
            numbers=header["numbers"],
            target_weight=header["target_weight"],
            sample_ids=sample_ids,
            num_tokens=header["num_tokens"],
            num_padded_tokens=header["num_padded_tokens"],
        )

    def evaluation(self, split: str) -> Iterator[EvalBatch]:
        """This worker's micro-batches of an evaluation that is due now; the same number on every worker."""
        is_last = False
        while not is_last:
            header, arrays = self._next("eval")
            assert header["split"] == split
            is_last = header["is_last"]
            sample_ids = arrays.pop("sample_ids")
            yield EvalBatch(arrays, is_blank=header["is_blank"], sample_ids=sample_ids)

    def evaluate_once(self, split: str) -> Iterator[EvalBatch]:
        """The micro-batches of one evaluation, from a separate pipeline that ends with them."""
        self._begin([EvalPass(split)])
        try:
            yield from self.evaluation(split)
        finally:
            self.close()

    def close(self) -> None:
        """Stop the pipeline and drop what it has read ahead."""
        self._is_closed.set()
        if self._thread is not None:
            deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
            while self._thread.is_alive() and time.monotonic() < deadline_s:
                try:
                    self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue

    def _begin(self, items: Iterable[TrainSpan | EvalPass], first: TrainSpan | EvalPass | None = None) -> None:
        """`first`: precedes the others, and is read in this process."""
        self._is_closed.clear()
        if isinstance(first, TrainSpan) and self._config.data.augment is not None:
            load_tokenizer(self._config.model)  # now: Transformers can't be imported by two threads at once
        head = threading.Thread(target=self._fill_here, args=(first,), daemon=True, name="data-head")
        head.start()
        self._thread = threading.Thread(target=self._fill, args=(iter(items), head), daemon=True, name="data-stream")
        self._thread.start()

    def _fill_here(self, item: TrainSpan | EvalPass | None) -> None:
        """Queue the results of one item, read in this process without a pipeline."""
        if item is None:
            return
        try:
            reader = ReadAndCollate(self._config, self._store, self._world, self._plan)
            for header, arrays in reader.read(item):
                self._bytes_read_here = header["bytes_read"]
                if self._is_closed.is_set():
                    return
                self._queue.put((header, arrays))
        except BaseException as error:
            self._has_failed = True
            self._queue.put(error)

    def _fill(self, items: Iterator[TrainSpan | EvalPass], head: threading.Thread) -> None:
        """Run one Ray Data pipeline after the other and queue their results, after those of `head`."""
        try:
            while chunk := list(itertools.islice(items, ITEMS_PER_DATASET)):
                for header, arrays in self._run_on(chunk):
                    head.join()
                    if self._is_closed.is_set() or self._has_failed:
                        return
                    self._queue.put((header, arrays))
            head.join()
            self._queue.put(None)
        except BaseException as error:
            head.join()
            self._queue.put(error)

    def _run_on(self, items: list[TrainSpan | EvalPass]) -> Iterator[tuple[dict[str, Any], Batch]]:
        """Like `_run`, but a pipeline that was lost with a node is restarted where it was."""
        from ray.exceptions import RayError, RayTaskError

        num_out = 0  # results of the first item that have been delivered
        for attempt in itertools.count(1):
            num_known = num_out
            try:
                for header, arrays in self._run(items):
                    if num_known:
                        num_known -= 1
                        continue
                    yield header, arrays
                    num_out += 1
                    if _is_last_of(items[0], header):
                        items, num_out = items[1:], 0
                return
            except RayError as error:
                if isinstance(error, RayTaskError) or attempt == MOST_PIPELINES:  # a RayTaskError: our code raised
                    raise
                logger.warning("the data pipeline is restarted: %s", error)

    def _run(self, items: list[TrainSpan | EvalPass]) -> Iterator[tuple[dict[str, Any], Batch]]:
        import ray.data

        configure_pipelines(self._config.workers.data_cpus)
        bytes_read_before = self._bytes_read_there  # each dataset has its own reader, which counts from 0
        rows = [{"item": json.dumps({"kind": type(item).__name__, **asdict(item)})} for item in items]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ReadAndCollateActor,
            fn_constructor_args=(
                self._config.model_dump(mode="json", exclude_unset=True),
                self._store.root,
                asdict(self._world),
                asdict(self._plan),
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=self._config.workers.data_cpus,
            **AWAY_FROM_GPUS,
            # By default Ray Data may run a later item first. Results would still be delivered in order, but the first
            # step would wait for two items, and results that nobody can use yet would fill the object store.
            allow_out_of_order_execution=False,
        )
        blocks: Iterator[Any] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
        for block in blocks:
            for text, payload in zip(block["header"].to_pylist(), block["arrays"].to_pylist(), strict=True):
                header = json.loads(text)
                self._bytes_read_there = bytes_read_before + header["bytes_read"]
                yield header, safetensors.load(payload)

    def _next(self, kind: str) -> tuple[dict[str, Any], Batch]:
        item = self._queue.get()
        if item is None or isinstance(item, BaseException):
            self._queue.put(item)  # further calls get the same end
        if isinstance(item, BaseException):
            raise item
        assert item is not None, f"the pipeline ended, but the loop wants {kind}"
        assert item[0]["kind"] == kind, f"the pipeline has {item[0]}, but the loop wants {kind}"
        return item


def _is_last_of(item: TrainSpan | EvalPass, header: dict[str, Any]) -> bool:
    """Whether a result is the last one of its item."""
    return header["step_in_epoch"] == item.stop_step - 1 if isinstance(item, TrainSpan) else header["is_last"]
