"""STREAM on a real Ray: every worker's batches are the order's (P1, P2), at any world size (P3), from any step (P4),
and the workers together read the data once (P5)."""

import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raytrain.config import RunConfig
from raytrain.data import stream as stream_module
from raytrain.data.items import EvalPass, StepBatch, TrainSpan
from raytrain.data.prepare import prepare
from raytrain.data.prepared import PreparedStore
from raytrain.data.row_cache import RowCache
from raytrain.data.step_reader import make_order, row_groups_in_use
from raytrain.data.stream import Stream, plan_items
from raytrain.steps.batches import BatchPlan, World
from raytrain.steps.order import Order
from raytrain.steps.timetable import Timetable, make_timetable
from raytrain.tasks import make_task
from tests.tiny import TINY_BERT, context, tiny_tokenizer, write_conll, write_reviews

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_SAMPLES, NUM_VALIDATION, BATCH, MICRO = 203, 37, 10, 2
EPOCH_STEPS = 21  # the last has 3 samples
WORLD_SIZES = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("stream")
    return RunConfig.model_validate(
        {
            "name": "test",
            "seed": 3,
            "storage_path": str(folder / "runs"),
            "task": {"kind": "sequence_classification"},
            "model": {"config": TINY_BERT, "tokenizer": tiny_tokenizer(folder / "tokenizer")},
            "data": {
                "train": {"path": write_reviews(folder / "train.parquet", NUM_SAMPLES, 0)},
                "validation": {"path": write_reviews(folder / "validation.parquet", NUM_VALIDATION, 1)},
                "max_length": 32,
                "shuffle_window_samples": 50,
            },
            "training": {"global_batch_size": BATCH, "micro_batch_size": MICRO, "epochs": 2},
        }
    )


@pytest.fixture(scope="module")
def store(config: RunConfig, local_ray: None) -> PreparedStore:
    return prepare(config)


@pytest.fixture(scope="module")
def order(config: RunConfig, store: PreparedStore) -> Order:
    return make_order(config, store)


def timetable(config: RunConfig, *, has_validation: bool = False) -> Timetable:
    return make_timetable(config, NUM_SAMPLES, has_validation=has_validation)


def new_stream(config: RunConfig, store: PreparedStore, world_rank: int, world_size: int) -> Stream:
    return Stream(config, store, World(world_rank, world_size), BatchPlan.of(config, world_size))


def worker_steps(config: RunConfig, store: PreparedStore, world_size: int, first: int, count: int) -> list[list[Any]]:
    """[worker][step]: what each worker is given from step `first` on."""
    workers = []
    for world_rank in range(world_size):
        stream = new_stream(config, store, world_rank, world_size)
        stream.start(first, timetable(config))
        workers.append([stream.next_step() for _ in range(count)])
        stream.close()
    return workers


def rows_by_id(store: PreparedStore, split: str) -> list[dict[str, Any]]:
    groups = range(len(store.row_group_starts(split)) - 1)
    return [row for group in groups for row in store.read_row_group(split, group).to_pylist()]


def samples_in(arrays: dict[str, np.ndarray]) -> list[tuple[list[int], int]]:
    """(token ids without padding, label) of each labelled sample of a micro-batch."""
    rows = zip(arrays["input_ids"], arrays["attention_mask"], arrays["labels"], strict=True)
    return [(ids[mask == 1].tolist(), int(label)) for ids, mask, label in rows if label != -100]


class TestTraining:
    @pytest.fixture(scope="class", params=WORLD_SIZES)
    def workers(self, request: pytest.FixtureRequest, config: RunConfig, store: PreparedStore) -> list[list[StepBatch]]:
        """Two epochs, as each worker of a group of this size sees them."""
        return worker_steps(config, store, request.param, 0, 2 * EPOCH_STEPS)

    def test_an_epoch_is_a_permutation(self, workers):
        for epoch in range(2):
            steps = slice(epoch * EPOCH_STEPS, (epoch + 1) * EPOCH_STEPS)
            ids = np.concatenate([step.sample_ids for worker in workers for step in worker[steps]])
            assert sorted(ids) == list(range(NUM_SAMPLES))

    def test_a_step_has_the_samples_that_the_order_says(self, workers, order):
        for place in range(2 * EPOCH_STEPS):
            expected = order.step_samples(*divmod(place, EPOCH_STEPS))
            assert sorted(np.concatenate([worker[place].sample_ids for worker in workers])) == sorted(expected)

    def test_steps_come_in_order(self, workers):
        for worker in workers:
            places = [step.epoch * EPOCH_STEPS + step.step_in_epoch for step in worker]
            assert places == list(range(2 * EPOCH_STEPS))

    def test_the_micro_batches_hold_those_samples(self, workers, store):
        rows = rows_by_id(store, "train")
        for worker in workers:
            for step in worker:
                found = [sample for arrays in step.micro_batches for sample in samples_in(arrays)]
                expected = [(rows[i]["input_ids"], rows[i]["labels"]) for i in step.sample_ids]
                assert sorted(found) == sorted(expected)
                assert step.target_weight == len(step.sample_ids)
                assert step.num_tokens == sum(len(ids) for ids, _ in expected)

    def test_every_worker_has_as_many_micro_batches(self, workers):
        plan = BatchPlan(BATCH, -(-BATCH // MICRO), len(workers))
        for worker in workers:
            for step in worker:
                assert len(step.micro_batches) == plan.micro_steps
                assert all(1 <= len(arrays["input_ids"]) <= MICRO for arrays in step.micro_batches)

    def test_padding_is_counted(self, workers):
        for worker in workers:
            for step in worker:
                filled = [arrays for arrays in step.micro_batches if samples_in(arrays)]
                assert step.num_padded_tokens == sum(arrays["input_ids"].size for arrays in filled)
                assert step.num_padded_tokens >= step.num_tokens


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("first", [7, EPOCH_STEPS - 1, EPOCH_STEPS, EPOCH_STEPS + 8])
def test_from_any_step_on_it_is_the_same(config, store, order, world_size, first):
    workers = worker_steps(config, store, world_size, first, 5)
    for i in range(5):
        expected = order.step_samples(*divmod(first + i, EPOCH_STEPS))
        assert sorted(np.concatenate([worker[i].sample_ids for worker in workers])) == sorted(expected)


def test_nothing_is_lost_where_one_dataset_follows_another(config, store, order, monkeypatch):
    monkeypatch.setattr(stream_module, "SAMPLES_PER_SPAN", 3 * BATCH)
    monkeypatch.setattr(stream_module, "ITEMS_PER_DATASET", 2)
    (worker,) = worker_steps(config, store, 1, 4, 25)
    for place, step in enumerate(worker, 4):
        assert sorted(step.sample_ids) == sorted(order.step_samples(*divmod(place, EPOCH_STEPS)))


def test_a_tagged_sentence_keeps_all_its_arrays(config, tmp_path):
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["task"] = {"kind": "token_classification", "case_feature": True, "document_context": True}
    raw["data"] = {"train": {"path": write_conll(tmp_path / "a.conll", 120, 0)}, "max_length": 32}
    tagging = RunConfig.model_validate(raw)
    store = prepare(tagging)
    stream = new_stream(tagging, store, 0, 1)
    stream.start(0, make_timetable(tagging, store.manifest.splits["train"].num_samples, has_validation=False))
    step = stream.next_step()
    stream.close()
    task = make_task(tagging.task, 32)
    order = make_order(tagging, store)
    expected = task.collate(RowCache(store).take("train", step.sample_ids), context(len(step.sample_ids)))
    assert sorted(step.sample_ids) == sorted(order.step_samples(0, 0))
    assert set(step.micro_batches[0]) == set(expected)
    assert step.target_weight == task.target_weight(expected) > len(step.sample_ids)
    assert all(array.dtype == expected[name].dtype for name, array in step.micro_batches[0].items())


class TestEvaluation:
    @pytest.mark.parametrize("world_size", WORLD_SIZES)
    def test_every_sample_exactly_once(self, config, store, world_size):
        rows = rows_by_id(store, "validation")
        ids: list[int] = []
        counts = set()
        for world_rank in range(world_size):
            batches = list(new_stream(config, store, world_rank, world_size).evaluate_once("validation"))
            counts.add(len(batches))
            for batch in batches:
                assert batch.is_blank == (len(batch.sample_ids) == 0)
                expected = [(rows[i]["input_ids"], rows[i]["labels"]) for i in batch.sample_ids]
                assert samples_in(batch.arrays) == expected
                ids += batch.sample_ids.tolist()
        assert sorted(ids) == list(range(NUM_VALIDATION))
        assert len(counts) == 1, "collectives need equally many batches on every worker"

    def test_in_its_place_between_steps(self, config, store):
        raw = config.model_dump(mode="json", exclude_unset=True)
        raw["training"]["eval_every_steps"] = 8
        often = RunConfig.model_validate(raw)
        stream = new_stream(often, store, 0, 1)
        table = timetable(often, has_validation=True)
        stream.start(5, table)
        for step in range(6, table.total_steps + 1):
            batch = stream.next_step()
            assert batch.epoch * EPOCH_STEPS + batch.step_in_epoch == step - 1
            if table.is_evaluation_due(step):
                ids = [i for part in stream.evaluation("validation") for i in part.sample_ids]
                assert sorted(ids) == list(range(NUM_VALIDATION))
        stream.close()


class TestPlan:
    def test_items(self):
        table = Timetable(10, 25, eval_every_steps=7, save_every_steps=100, has_validation=True)
        assert list(plan_items(3, table, 4, 4)) == [
            *(TrainSpan(0, 3, 7), EvalPass("validation"), TrainSpan(0, 7, 10), TrainSpan(1, 0, 4)),
            *(EvalPass("validation"), TrainSpan(1, 4, 8), TrainSpan(1, 8, 10), TrainSpan(2, 0, 1)),
            *(EvalPass("validation"), TrainSpan(2, 1, 5), EvalPass("validation")),
        ]

    @pytest.mark.parametrize("head", [1, 4, 5])
    @pytest.mark.parametrize("first", [0, 1, 6, 7, 24, 25])
    def test_each_step_once(self, first, head):
        table = Timetable(10, 25, eval_every_steps=7, save_every_steps=100, has_validation=True)
        spans = [item for item in plan_items(first, table, 4, head) if isinstance(item, TrainSpan)]
        assert [s.epoch * 10 + i for s in spans for i in range(s.first_step, s.stop_step)] == list(range(first, 25))


class TestBytesRead:
    """P5: over an epoch the workers together read each byte at most 1.1 times."""

    @pytest.mark.parametrize("world_size", WORLD_SIZES)
    def test_by_the_pipelines_of_all_workers(self, config, tmp_path, world_size):
        raw = config.model_dump(mode="json", exclude_unset=True)
        raw["data"] |= {
            "train": {"path": write_reviews(tmp_path / "a.parquet", 6_200, 0)},
            "shuffle_window_samples": 512,
            "canonical_shards": 6,  # each with more than a thousand samples, and so with row groups of its own
        }
        raw["training"] |= {"epochs": 1, "global_batch_size": 18, "micro_batch_size": 3}
        large = RunConfig.model_validate(raw)
        store = prepare(large)
        groups = range(len(store.row_group_starts("train")) - 1)
        stored = sum(store.row_group_bytes("train", group) for group in groups)
        read = 0
        for world_rank in range(world_size):
            stream = new_stream(large, store, world_rank, world_size)
            stream.start(0, make_timetable(large, 6_200, has_validation=False))
            for _ in range(344):
                stream.next_step()
            read += stream.bytes_read
            stream.close()
        assert 1.0 <= read / stored <= 1.1

    @pytest.mark.parametrize("window_samples", [1024, 4096, 16384])
    @pytest.mark.parametrize(("batch", "rows_per_group"), [(32, 64), (256, 16)])
    def test_when_the_data_does_not_fit_the_cache(self, batch, rows_per_group, window_samples):
        """Many shards, each with a row group or two of its own in use: more than the cache's bytes would hold."""
        num_samples = 60_000
        order = Order(
            row_group_starts=np.append(np.arange(0, num_samples, rows_per_group), num_samples),
            lengths=np.full(num_samples, 9, dtype=np.int32),
            seed=0,
            global_batch_size=batch,
            canonical_shards=batch,
            window_samples=window_samples,
        )
        store: Any = CountingStore(order)
        plan = BatchPlan(batch, 4, 2)
        for world_rank in range(2):
            rows = RowCache(store, max_bytes=1, min_groups=row_groups_in_use(order, plan))
            for step in range(order.steps_per_epoch):
                ids = np.concatenate(
                    order.micro_batches(0, step, 4, plan.micro_batches_of(world_rank, order.num_groups(4)))
                )
                if len(ids):  # the smaller last step may leave a worker without samples
                    rows.take("train", ids)
            assert len(rows._groups) <= row_groups_in_use(order, plan)
        assert store.reads / (len(order.row_group_starts) - 1) <= 1.1


def test_items_are_worked_on_in_order(config, store, monkeypatch):
    """A later item that is run first would make the first step wait, and fill the object store with what nobody can
    take yet. The reader's count of bytes tells: it only grows."""
    monkeypatch.setattr(stream_module, "SAMPLES_PER_SPAN", BATCH)
    for _ in range(4):  # by Ray Data's default about one in three goes wrong
        stream = new_stream(config, store, 0, 1)
        stream.start(0, timetable(config))
        stream.next_step()  # the first item is read by the worker itself, which counts for itself
        counts = []
        for _ in range(6):
            header, _ = stream._next("train")
            counts.append(header["bytes_read"])
        stream.close()
        assert counts == sorted(counts)


def test_bytes_are_counted_over_all_datasets(config, store, monkeypatch):
    monkeypatch.setattr(stream_module, "SAMPLES_PER_SPAN", 3 * BATCH)
    monkeypatch.setattr(stream_module, "ITEMS_PER_DATASET", 3)
    stream = new_stream(config, store, 0, 1)
    stream.start(0, timetable(config))
    for _ in range(EPOCH_STEPS):
        stream.next_step()
    groups = range(len(store.row_group_starts("train")) - 1)
    assert stream.bytes_read >= sum(store.row_group_bytes("train", group) for group in groups)
    stream.close()


class CountingStore:
    """Stands for a PreparedStore whose samples hold nothing, and counts the row groups that are read."""

    def __init__(self, order: Order):
        self._starts, self.reads = order.row_group_starts, 0

    def row_group_starts(self, split: str) -> np.ndarray:
        return self._starts

    def read_row_group(self, split: str, group: int) -> pa.Table:
        self.reads += 1
        return pa.table({"id": np.arange(self._starts[group], self._starts[group + 1])})

    def row_group_bytes(self, split: str, group: int) -> int:
        return 1


class TestEnd:
    def test_closed_early(self, config, store):
        started_at_s = time.monotonic()
        stream = new_stream(config, store, 0, 1)
        stream.start(0, Timetable(EPOCH_STEPS, 10**6, None, 10**6, has_validation=False))  # far from its end
        stream.next_step()
        stream.close()
        assert not any(thread.name == "data-stream" for thread in threading.enumerate())
        assert time.monotonic() - started_at_s < 60
        wait_until(no_reader_holds_a_cpu)

    def test_closed_before_anything_came(self, config, store):
        stream = new_stream(config, store, 0, 1)
        stream.start(0, timetable(config))
        stream.close()
        wait_until(no_reader_holds_a_cpu)

    def test_closed_twice_and_never_started(self, config, store):
        stream = new_stream(config, store, 0, 1)
        stream.close()
        stream.close()

    def test_a_reader_that_fails_is_an_error_of_the_loop(self, config, store, monkeypatch):
        broken = PreparedStore(store.root)
        monkeypatch.setattr(type(broken), "root", property(lambda _: "/no/such/folder"))
        monkeypatch.setattr(stream_module, "SAMPLES_PER_SPAN", BATCH)
        stream = new_stream(config, broken, 0, 1)
        stream.start(0, timetable(config))
        stream.next_step()  # the first item needs no pipeline
        for _ in range(2):  # also when it is asked again
            with pytest.raises(Exception, match="no prepared data at /no/such/folder"):
                within(30, stream.next_step)
        stream.close()


def within(seconds: float, call: Any) -> Any:
    """The result of a call that must end in time."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"nothing in {seconds} s"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def no_reader_holds_a_cpu() -> bool:
    import ray

    return ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"]


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
