"""The run's JSONL files: nothing but a torn last line is ever lost, and what is written is valid JSON."""

import itertools
import json
import math
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raytrain import retries
from raytrain.storage import Storage
from raytrain.training import records, segments, uploads
from raytrain.training.records import JsonlWriter, iterate_jsonl, last_row, read_jsonl


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


class ObjectStore(Storage):
    """Behaves as an object store does: no local paths, no appending; counts uploads."""

    def __init__(self, root: str):
        super().__init__(root)
        self.uploads = self.uploaded_bytes = 0
        self.before: Callable[[], object] = lambda: None

    def local_path(self, name: str = "") -> None:
        return None

    def write_bytes(self, name, data):
        self.before()
        self.uploads += 1
        self.uploaded_bytes += len(data)
        super().write_bytes(name, data)


@pytest.fixture
def object_store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "bucket"))


def write_rows(storage: Storage, *rows: dict, name: str = "metrics.jsonl") -> None:
    writer = JsonlWriter(storage, name)
    for row in rows:
        writer.write(row)
    writer.close()


@pytest.mark.parametrize("kind", ["storage", "object_store"])
class TestBoth:
    @pytest.fixture
    def place(self, kind, request) -> Storage:
        return request.getfixturevalue(kind)

    def test_rows_come_back_in_order(self, place):
        write_rows(place, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25})
        assert read_jsonl(place, "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]

    def test_reopening_appends(self, place):
        write_rows(place, {"step": 1})
        write_rows(place, {"step": 2})
        assert [row["step"] for row in read_jsonl(place, "metrics.jsonl")] == [1, 2]

    def test_a_torn_last_line_costs_only_itself(self, place):
        write_rows(place, {"step": 1}, {"step": 2})
        data = place.read_bytes("metrics.jsonl")
        for cut in range(1, len(data)):
            place.write_bytes("metrics.jsonl", data[:cut])
            write_rows(place, {"step": 3})
            steps = [row["step"] for row in read_jsonl(place, "metrics.jsonl")]
            whole = sum(cut >= end for end in (len('{"step": 1}'), len(data) - 1))
            assert steps == [*[1, 2][:whole], 3], data[:cut]

    def test_no_file_is_no_rows(self, place):
        assert read_jsonl(place, "metrics.jsonl") == []

    def test_a_name_in_a_folder(self, place):
        write_rows(place, {"ids": [1]}, name="samples/attempt_000.jsonl")
        assert read_jsonl(place, "samples/attempt_000.jsonl") == [{"ids": [1]}]

    def test_no_number_becomes_null(self, place):
        row = {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}, "e": np.float32("nan"), "f": (1, 2)}
        write_rows(place, row)
        text = place.read_bytes("metrics.jsonl").decode()
        parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert parsed == {"a": None, "b": [None, 1.0], "c": {"d": None}, "e": None, "f": [1, 2]}

    def test_numpy_values(self, place):
        write_rows(place, {"a": np.int64(3), "b": np.float32(0.5), "c": np.arange(3), "d": np.bool_(True)})
        assert read_jsonl(place, "metrics.jsonl") == [{"a": 3, "b": 0.5, "c": [0, 1, 2], "d": True}]


def test_lines_are_there_at_once_on_a_file_system(storage):
    writer = JsonlWriter(storage, "metrics.jsonl")
    writer.write({"step": 1})
    assert read_jsonl(storage, "metrics.jsonl") == [{"step": 1}]
    writer.close()


def test_lines_that_are_no_object_are_skipped(storage):
    storage.write_bytes("x.jsonl", b'{"step": 1}\n{"st\n\n12\n[1]\n\xff\xfe\n{"step": 2}\n')
    assert [row["step"] for row in read_jsonl(storage, "x.jsonl")] == [1, 2]


def settle(writer: JsonlWriter) -> None:
    """Wait for the upload that is in progress."""
    assert writer._object is not None
    if writer._object._upload is not None:
        wait([writer._object._upload])


def test_an_object_store_sees_one_upload_in_15_seconds(object_store, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(uploads.time, "monotonic", lambda: now_s[0])
    writer = JsonlWriter(object_store, "metrics.jsonl")
    for second in range(60):
        now_s[0] = float(second)
        writer.write({"step": second})
        settle(writer)
    assert object_store.uploads == 3
    assert len(read_jsonl(object_store, "metrics.jsonl")) == 46
    writer.close()
    assert object_store.uploads == 4
    assert len(read_jsonl(object_store, "metrics.jsonl")) == 60


class TestSegments:
    """A long log on an object store continues in another file, so that its beginning is not uploaded again."""

    ROWS = 400

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        for module in (segments, uploads):
            monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)

    def write(self, object_store, begin, end, sync_every=7):
        writer = JsonlWriter(object_store, "samples/a.jsonl")
        for i in range(begin, end):
            writer.write({"step": i})
            if i % sync_every == 0:
                writer.sync()
        writer.close()

    def test_all_rows_in_order_over_several_attempts(self, object_store):
        for begin in range(0, self.ROWS, 80):
            self.write(object_store, begin, begin + 80)
        rows = [{"step": i} for i in range(self.ROWS)]
        assert read_jsonl(object_store, "samples/a.jsonl") == rows
        assert last_row(object_store, "samples/a.jsonl") == rows[-1]
        names = object_store.list_names("segments/samples/a")
        assert names == [f"{i:08d}.jsonl" for i in range(1, len(names) + 1)] and len(names) > 3

    def test_what_is_uploaded_grows_as_the_log_does(self, object_store):
        self.write(object_store, 0, self.ROWS)
        first = object_store.uploaded_bytes
        self.write(object_store, self.ROWS, 2 * self.ROWS)
        assert object_store.uploaded_bytes < 2.5 * first  # the whole log each time: 4 times

    def test_a_last_row_in_an_earlier_file(self, object_store):
        self.write(object_store, 0, self.ROWS)
        _, (name, _) = segments.segments_of(object_store, "samples/a.jsonl")[-2:]
        object_store.write_bytes(name, b'{"torn')
        row = last_row(object_store, "samples/a.jsonl")
        assert row is not None and row["step"] < self.ROWS - 1

    def test_a_copy_on_a_disk_is_continued_at_its_end(self, object_store):
        self.write(object_store, 0, self.ROWS)
        copy = Storage(object_store.root)
        self.write(copy, self.ROWS, self.ROWS + 50)
        assert [row["step"] for row in read_jsonl(copy, "samples/a.jsonl")] == list(range(self.ROWS + 50))

    def test_two_processes_lose_nothing(self, object_store):
        training, evaluation = (JsonlWriter(object_store, "evals.jsonl") for _ in range(2))
        for i in range(self.ROWS):
            writer = training if i % 3 else evaluation
            writer.write({"step": i})
            writer.sync()
        training.close()
        evaluation.close()
        steps = [row["step"] for row in read_jsonl(object_store, "evals.jsonl")]
        assert sorted(steps) == list(range(self.ROWS))


def test_nothing_new_is_not_uploaded_again(object_store):
    writer = JsonlWriter(object_store, "metrics.jsonl")
    writer.write({"step": 1})
    writer.close()
    JsonlWriter(object_store, "metrics.jsonl").close()
    assert object_store.uploads == 1


class TestFailingUploads:
    """state.md 6: one failed upload of metrics.jsonl ended the step."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(uploads, "UPLOAD_EVERY_S", 0.0)
        monkeypatch.setattr(uploads, "UPLOAD_SHARE", 1e9)
        monkeypatch.setattr(retries, "RETRY_DELAYS_S", (0.0, 0.0))

    def test_no_step_waits_for_an_upload(self, object_store):
        gate = threading.Event()
        object_store.before = gate.wait
        writer = JsonlWriter(object_store, "metrics.jsonl")
        for step in range(100):
            writer.write({"step": step})  # it would never return
        gate.set()
        writer.sync()
        assert len(read_jsonl(object_store, "metrics.jsonl")) == 100
        writer.close()

    def test_a_failure_costs_no_step_and_no_line(self, object_store):
        failures = itertools.chain([OSError(5, "503")] * 7, itertools.repeat(None))
        object_store.before = lambda: raise_(next(failures))
        writer = JsonlWriter(object_store, "metrics.jsonl")
        for step in range(20):
            writer.write({"step": step})
            settle(writer)
        writer.close()
        assert len(read_jsonl(object_store, "metrics.jsonl")) == 20

    def test_a_lasting_failure_is_raised_by_what_waits(self, object_store):
        object_store.before = lambda: raise_(OSError(5, "503"))
        writer = JsonlWriter(object_store, "metrics.jsonl")
        for step in range(5):
            writer.write({"step": step})
            settle(writer)
        with pytest.raises(OSError, match="503"):
            writer.sync()
        with pytest.raises(OSError, match="503"):
            writer.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("left", [0, 1])
def test_a_full_disk_costs_no_step_and_no_line(tiny_disk, left):
    """state.md 14b. The lines are written once there is room; whoever waits for them learns of it before."""
    storage = Storage(str(tiny_disk))
    writer = JsonlWriter(storage, "metrics.jsonl")
    writer.write({"step": 0})
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    if left:
        filler.write_bytes(filler.read_bytes()[:-4096])  # room for some of the lines, and a part of one
    for step in range(1, 1000):
        writer.write({"step": step})
    with pytest.raises(OSError, match="No space left"):
        writer.sync()
    filler.unlink()
    writer.write({"step": 1000})
    writer.close()
    rows = read_jsonl(storage, "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1001))


def raise_(error: Exception | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
def test_rows_are_the_same_in_pieces_of_any_size(storage, monkeypatch, read_bytes):
    monkeypatch.setattr(records, "READ_BYTES", read_bytes)
    storage.write_bytes("x.jsonl", b'{"step": 1}\n\n[1]\n{"step": 2, "a": "\xc3\xa9"}\n{"step": 3}')
    assert list(iterate_jsonl(storage, "x.jsonl")) == [{"step": 1}, {"step": 2, "a": "\u00e9"}, {"step": 3}]
    assert list(iterate_jsonl(storage, "none.jsonl")) == []
