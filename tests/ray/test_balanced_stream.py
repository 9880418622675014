"""Balance from the source files to the batches, on a real Ray: PREPARE, STREAM and whole runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import (
    assert_same_curve,
    committed_steps,
    kill_all,
    losses,
    run_cli,
    samples_of_steps,
    start_cli,
    steps_done,
    tiny_run,
    wait_until,
    write_config,
)
from tiny import make_reviews, write_parquet

from raytrain.config import RunConfig
from raytrain.data.items import TrainSpan
from raytrain.data.prepare import prepare
from raytrain.data.prepared import PreparedStore
from raytrain.data.step_reader import ReadAndCollate, make_order
from raytrain.data.stream import Stream
from raytrain.steps.batches import BatchPlan, World
from raytrain.steps.timetable import make_timetable

LABELS = ("bulk", "rare", "some")
HAVE = {"bulk": 700, "some": 140, "rare": 35}
BATCH, MICRO = 21, 3
EPOCH = {"bulk": 200, "some": 200, "rare": 200}


def rows() -> list[dict[str, Any]]:
    """Reviews with three labels at 20 : 4 : 1, in an order that says nothing."""
    labels = [label for label, count in HAVE.items() for _ in range(count)]
    labels = np.random.default_rng(0).permutation(labels).tolist()
    return [{"text": row["text"], "label": label} for row, label in zip(make_reviews(875, 5), labels, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balance")
    write_parquet(folder / "three.parquet", rows(), row_group_size=100)
    return folder


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return tiny_run(
        folder,
        "balanced",
        f"data.train.path={folder / 'three.parquet'}",
        "data.validation=null",
        "data.test=null",
        f"training.global_batch_size={BATCH}",
        f"training.micro_batch_size={MICRO}",
        "data.epoch_samples=600",
        "data.shuffle_window_samples=200",
        *overrides,
    )


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return config_of(folder, "data.balance={}")


@pytest.fixture(scope="module")
def store(config: RunConfig, local_ray: None) -> PreparedStore:
    return prepare(config)


def labels_of(store: PreparedStore) -> np.ndarray:
    """The label of each sample, from the parts."""
    groups = range(len(store.row_group_starts("train")) - 1)
    return np.concatenate([store.read_row_group("train", group)["labels"].to_numpy() for group in groups])


def test_the_store_has_an_index_of_labels_and_sorted_chunks(store: PreparedStore) -> None:
    index, labels = store.labels("train"), labels_of(store)
    assert index is not None
    assert index[np.arange(875)].tolist() == labels.tolist() == sorted(labels.tolist())
    assert np.bincount(labels).tolist() == [HAVE[label] for label in LABELS]
    store.verify()


@pytest.mark.parametrize("damage", ["gone", "bit"])
def test_a_damaged_index_of_labels_is_prepared_again(
    folder: Path, tmp_path: Path, damage: str, local_ray: None
) -> None:
    damaged = config_of(folder, "data.balance={}", f"data.prepared_path={tmp_path}")
    path = Path(prepare(damaged).root) / "labels-train.bin"
    whole = path.read_bytes()
    path.unlink()
    if damage == "bit":
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    from raytrain.data import store_folder

    store_folder._verified_stores.clear()  # another command
    prepare(damaged)
    assert path.read_bytes() == whole


def test_without_balance_the_store_is_what_it_was(folder: Path, local_ray: None) -> None:
    """Rows in the order of the files, no index of labels: its content is that of earlier versions."""
    plain = prepare(config_of(folder))
    assert plain.labels("train") is None
    names = plain.manifest.task_state["labels"]
    assert [names[label] for label in labels_of(plain)] == [row["label"] for row in rows()]


@pytest.mark.parametrize("world_size", range(1, 8))
def test_the_batches_of_an_epoch(config: RunConfig, store: PreparedStore, world_size: int) -> None:
    """P1 to P3: exactly the counts, the same micro-batches at any number of workers, from any step on."""
    order, plan, labels = make_order(config, store), BatchPlan.of(config, world_size), labels_of(store)
    assert (order.num_samples, order.steps_per_epoch) == (600, 29)
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(world_size):
        for first in (0, 13):  # a worker that begins in the middle knows nothing of what was before
            reader = ReadAndCollate(config, store, World(rank, world_size), plan)
            for header, arrays in reader.read(TrainSpan(2, first, 13 if first == 0 else 29)):
                ids = arrays["sample_ids"].tolist()
                assert [label for i in range(plan.micro_steps) for label in arrays[f"{i}.labels"] if label >= 0] == [
                    labels[i] for i in ids
                ]
                for number in header["numbers"]:
                    if number < plan.num_micro_batches:
                        size = len(order.micro_batches(2, header["step_in_epoch"], plan.num_micro_batches, [number])[0])
                        found[header["step_in_epoch"], number], ids = ids[:size], ids[size:]
    one = order.micro_batches
    for (step, number), ids in found.items():
        assert ids == (one(2, step, plan.num_micro_batches, [number])[0] & (1 << 40) - 1).tolist()
    everything = np.array([i for ids in found.values() for i in ids])
    counts = np.bincount(everything, minlength=875)
    assert np.bincount(labels, counts).tolist() == [200, 200, 200]
    assert {int(count) for count in counts[labels == 1]} == {5, 6}  # 200 of 35
    assert {int(count) for count in counts[labels == 0]} == {0, 1}


def test_augmented_batches_are_the_same_at_any_number_of_workers(folder: Path, store: PreparedStore) -> None:
    """P9 with copies and augmentation; the store is that of the runs without, and evaluations are not changed."""
    rates = ["data.augment.word_drop=0.3", "data.augment.word_swap=0.2", "data.augment.token_replacement=0.1"]
    chosen = config_of(folder, "data.balance={}", *rates)
    assert prepare(chosen).root == store.root
    found: list[dict[tuple[int, int], list[Any]]] = []
    for world_size, first in ((1, 0), (3, 0), (2, 5), (7, 0)):
        plan, batches, num_tokens = BatchPlan.of(chosen, world_size), {}, 0
        for rank in range(world_size):
            for header, arrays in ReadAndCollate(chosen, store, World(rank, world_size), plan).read(
                TrainSpan(1, first, 8)
            ):
                num_tokens += header["num_tokens"]
                for place, number in enumerate(header["numbers"]):
                    if number < plan.num_micro_batches:
                        key = header["step_in_epoch"], number
                        batches[key] = [arrays[f"{place}.{name}"].tolist() for name in ("input_ids", "labels")]
        found.append(batches)
        order = make_order(chosen, store)
        stored = sum(int(order.lengths[order.step_samples(1, step)].sum()) for step in range(first, 8))
        assert 0.6 * stored < num_tokens < 0.9 * stored
    for other in found[1:]:
        assert all(found[0][key] == batch for key, batch in other.items())
    assert len(found[0]) == len(found[1]) == len(found[3]) == 8 * 7


def test_the_pipelines_of_two_workers(folder: Path, local_ray: None) -> None:
    """P1 through real pipelines; P5 as visits: what is read is at most the samples of the epoch and the prepared data,
    and what is on the border of two workers."""
    path = write_parquet(folder / "large.parquet", rows() * 8, row_group_size=1000)
    options = ["data.balance={}", "data.epoch_samples=null", f"data.train.path={path}", "data.canonical_shards=7"]
    large = config_of(folder, *options, "data.shuffle_window_samples=512", "training.epochs=1")
    store, plan, ids, read = prepare(large), BatchPlan.of(large, 2), [], 0
    for rank in range(2):
        stream = Stream(large, store, World(rank, 2), plan)
        stream.start(0, make_timetable(large, 7000, has_validation=False))
        ids += [stream.next_step().sample_ids for _ in range(334)]
        read += stream.bytes_read
        stream.close()
    labels = labels_of(store)
    assert np.bincount(labels[np.concatenate(ids)]).tolist() == [2334, 2333, 2333]
    groups = range(len(store.row_group_starts("train")) - 1)
    stored = sum(store.row_group_bytes("train", group) for group in groups)
    assert read <= 1.1 * 2 * stored


def test_sources_of_two_formats(folder: Path, tmp_path: Path, local_ray: None) -> None:
    """Weights are met exactly, whatever the sizes are; the labels are balanced in each source."""
    lines = [f"{row['label']};{row['text']}" for row in rows()[:60]]
    (tmp_path / "small.csv").write_text("\n".join(["label;text", *lines]))
    parquet = folder / "three.parquet"
    sources = f"[{{path: {parquet}, weight: 1}}, {{path: {tmp_path / 'small.csv'}, weight: 3, delimiter: ';'}}]"
    options = ["data.train.path=null", f"data.train.sources={sources}"]
    for balance in ([], ["data.balance={}"]):
        chosen = config_of(folder, *options, *balance)
        store = prepare(chosen)
        assert [source.num_samples for source in store.manifest.splits["train"].sources] == [875, 60]
        order, labels = make_order(chosen, store), labels_of(store)
        ids = np.concatenate([order.step_samples(1, step) for step in range(order.steps_per_epoch)])
        assert np.bincount(ids >= 875).tolist() == [150, 450]
        counts = np.bincount(ids, minlength=935)
        if balance:
            assert np.bincount(labels[:875], counts[:875]).tolist() == [50, 50, 50]
            assert np.bincount(labels[875:], counts[875:]).tolist() == [150, 150, 150]
        else:
            assert {int(count) for count in counts[875:]} == {7, 8}, "450 of 60"
    other = config_of(folder, "data.train.path=null", f"data.train.sources={sources.replace('weight: 3', 'weight: 9')}")
    assert prepare(other).root != store.root, "that one is sorted by label"
    assert prepare(other).root == prepare(config_of(folder, *options)).root, "weights are no part of the store"


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_with_other_workers(folder: Path) -> None:
    """P2, P6 and P9 for whole commands, with copies, augmentation and class weights; and what people are told."""
    options = ["data.balance.to={bulk: 30, rare: 40, some: 20}", "data.epoch_samples=null", "training.epochs=30"]
    options += ["data.augment.word_drop=0.2", "data.augment.word_swap=0.2", "training.class_weights=auto"]

    def config_for(name: str, workers: int) -> str:
        return write_config(
            config_of(folder, *options, f"name={name}", f"workers.min={workers}", f"workers.max={workers}"), folder
        )

    killed = start_cli("train", config_for("two", 2))
    wait_until(lambda: len(committed_steps(folder / "runs" / "two")) > 1, "a checkpoint in the second epoch")
    kill_all(killed)
    assert steps_done(folder / "runs" / "two") < 150
    for name, workers in (("one", 1), ("two", 3)):
        code, output = run_cli("train", config_for(name, workers))
        assert code == 0, output
        assert "an epoch has 90 samples of the 875 of the training data\n" in output
        assert "data.balance: 'bulk' 30 (each of 700 comes 0.0429 times), 'rare' 40" in output
        assert "an epoch has 90 samples of the 875" in (folder / "runs" / name / "report.html").read_text()
    one, two = (samples_of_steps(folder / "runs" / name) for name in ("one", "two"))
    assert one == two
    assert_same_curve(*(losses(folder / "runs" / name) for name in ("one", "two")))
    assert list(one) == list(range(1, 151)), "90 samples in batches of 21: five steps an epoch"
