"""A storage that fails once costs nothing, whichever of its operations fails, and whether or not that one was done."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from failing import Failing, FailingObjectStore

from raytrain import retries
from raytrain.checkpoint.fence import Fence, newest_token
from raytrain.checkpoint.folder import recover_folder, replace_folder
from raytrain.checkpoint.manifest import write_hashed
from raytrain.checkpoint.store import CheckpointStore
from raytrain.checkpoint.writer import CheckpointWriter
from raytrain.retries import retrying
from raytrain.runs.lease import Lease
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.training import records, uploads
from raytrain.training.records import JsonlWriter, read_jsonl


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(records, "CHECK_EVERY_S", 0.0)
    monkeypatch.setattr(uploads, "UPLOAD_EVERY_S", 0.0)
    monkeypatch.setattr(uploads, "UPLOAD_SHARE", 1e9)


def at_every_operation(folder: Path, kind: type[Failing], work: Callable[[Failing], None]) -> None:
    """Do the work on a new folder once for each of its operations, which fails then. `work` asserts what it left."""
    for is_done in (0, 1):
        number, is_over = 0, False
        while not is_over:
            number += 1
            storage = kind(str(folder / f"{is_done}-{number}"))
            storage.count |= {"fails_at": number, "is_done": is_done}
            work(storage)
            is_over = storage.count["done"] < number
        assert number > 3


BOTH = pytest.mark.parametrize("kind", [Failing, FailingObjectStore])


@BOTH
def test_a_lease(tmp_path: Path, kind: type[Failing]) -> None:
    def work(run: Failing) -> None:
        with Lease(run) as lease:
            assert [lease.advance(), lease.advance()] == [2, 3]
            plain = Storage(run.root)
            assert newest_token(plain) == 3
            assert len([name for name in plain.list_names("lease") if name.startswith("00000003")]) == 1

    at_every_operation(tmp_path, kind, work)


@BOTH
def test_saves_and_what_they_make_superfluous(tmp_path: Path, kind: type[Failing]) -> None:
    def work(run: Failing) -> None:
        run.count["done"] = -1 - run.count["fails_at"]  # not yet
        with Lease(Storage(run.root)) as lease:
            fenced = run.guarded(Fence(run, lease.token).check)
            run.count["done"] = 0
            writer = CheckpointWriter(CheckpointStore(fenced.at("checkpoints"), 2, lease.token, 0), World(0, 1), "t")
            for step in (10, 20, 30):
                writer.begin(step, lambda folder: [write_hashed(folder, "part.safetensors", [b"weights"])])
                writer.wait()
                writer.commit({"step": step})
                writer.wait()
            writer.close()
            store = CheckpointStore(run.at("checkpoints"))
            found = store.newest_good()
            assert found is not None and found.step == 30
            kept = [saved.step for saved in CheckpointStore(Storage(run.root).at("checkpoints")).candidates()]
            assert kept[:2] == [30, 20], "one that was not removed is removed by the next save"

    at_every_operation(tmp_path, kind, work)


@BOTH
def test_logs(tmp_path: Path, kind: type[Failing]) -> None:
    def work(run: Failing) -> None:
        retrying(lambda: run.write_bytes("metrics.jsonl", b'{"step": 0}\n{"st'), "beginning")
        run.count["done"] = 0
        writer = retrying(lambda: JsonlWriter(run.guarded(lambda: run.exists() and None), "metrics.jsonl"), "opening")
        for step in range(1, 6):
            writer.write({"step": step})
        retrying(writer.sync, "writing")
        writer.write({"step": 6})
        retrying(writer.sync, "writing")
        writer.close()
        steps = [row["step"] for row in read_jsonl(Storage(run.root), "metrics.jsonl")]
        assert steps == list(range(7))

    at_every_operation(tmp_path, kind, work)


@BOTH
def test_a_folder_that_is_replaced(tmp_path: Path, kind: type[Failing]) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / name).write_text(version)

    def work(run: Failing) -> None:
        replace_folder(Storage(run.root), "best", str(tmp_path / "one"))
        retrying(lambda: recover_folder(run, "best"), "recovering")
        retrying(lambda: replace_folder(run, "best", str(tmp_path / "two")), "replacing")
        plain = Storage(run.root)
        assert plain.list_names() == ["best"]
        assert {plain.read_bytes(f"best/{name}") for name in plain.list_names("best")} == {b"two"}

    at_every_operation(tmp_path / "runs", kind, work)


def test_lines_of_an_evaluation_beside_the_training_are_kept(tmp_path: Path) -> None:
    """On an object store each uploads the whole file; neither may undo what the other one has added."""
    run = FailingObjectStore(str(tmp_path / "run"))
    training = JsonlWriter(run, "evals.jsonl")
    training.write({"step": 1})
    training.sync()
    evaluation = JsonlWriter(run, "evals.jsonl")
    training.write({"step": 2})
    training.sync()
    evaluation.write({"split": "test"})
    evaluation.close()
    training.write({"step": 3})
    training.close()
    rows = read_jsonl(run, "evals.jsonl")
    assert rows == [{"step": 1}, {"step": 2}, {"split": "test"}, {"step": 3}]


@BOTH
def test_lines_from_several_threads(tmp_path: Path, kind: type[Failing]) -> None:
    writer = JsonlWriter(kind(str(tmp_path / "run")), "metrics.jsonl")

    def write(thread: int) -> None:
        for number in range(200):
            writer.write({"thread": thread, "number": number})
            if number % 50 == 0:
                writer.sync()

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    rows = read_jsonl(Storage(str(tmp_path / "run")), "metrics.jsonl")
    for thread in range(4):
        assert [row["number"] for row in rows if row["thread"] == thread] == list(range(200))
