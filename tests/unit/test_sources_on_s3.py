"""Source files on an object store, where each request takes a round trip: how many are made. A real client and an S3
server on loopback."""

import gzip
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from raytrain.config import DataConfig, SequenceClassificationConfig, SourceConfig, TokenClassificationConfig
from raytrain.data import parallel
from raytrain.data.given import write_given
from raytrain.data.listing import list_files
from raytrain.data.parallel import in_threads
from raytrain.data.readers import read_chunks
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.unchanged import refuse_changed
from raytrain.errors import DataError
from raytrain.storage import Storage
from raytrain.tasks import make_task
from tests.s3 import s3_bucket
from tests.tiny import write_conll, write_reviews

REVIEWS = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
TAGS = make_task(TokenClassificationConfig(kind="token_classification"), 32)
ROWS = [{"text": f"a {i}", "label": "x"} for i in range(5)]
NUM_FILES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    with s3_bucket(requests) as uri:
        yield uri, requests


@pytest.fixture
def bucket(server: tuple[str, list[str]]) -> Storage:
    return Storage(server[0]).at(uuid.uuid4().hex)


@pytest.fixture
def requests(server: tuple[str, list[str]]) -> list[str]:
    return server[1]


def put(bucket: Storage, name: str, content: bytes) -> None:
    """As it is: pyarrow compresses what it writes to a name that ends with .gz."""
    place, _, key = bucket.path_of(name).removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=place, Key=key, Body=content)


def data(path: str) -> DataConfig:
    return DataConfig.model_validate({"train": {"path": path}})


def parquet(folder: Path) -> bytes:
    return Path(write_reviews(folder / "a.parquet", 5, 0)).read_bytes()


def jsonl(folder: Path) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def csv(folder: Path) -> bytes:
    return b"text,label\n" + b"".join(f'"{row["text"]}",{row["label"]}\n'.encode() for row in ROWS)


def conll(folder: Path) -> bytes:
    return Path(write_conll(folder / "a.conll", 5, 0)).read_bytes()


FORMATS: dict[str, Callable[[Path], bytes]] = {
    "parquet": parquet,
    "jsonl": jsonl,
    "json": jsonl,
    "csv": csv,
    "conll": conll,
    "jsonl.gz": lambda folder: gzip.compress(jsonl(folder)),
}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_is_opened_once_by_all_checks_of_a_command(tmp_path, bucket, requests, ending):
    task = TAGS if ending == "conll" else REVIEWS
    for i in range(NUM_FILES):
        put(bucket, f"{i}.{ending}", FORMATS[ending](tmp_path))
    requests.clear()
    files = check_sources(data(bucket.root), task)["train"]
    tasks = read_tasks({"train": files})
    assert check_sources(data(bucket.root), task)["train"] == files
    assert [task.file for task in tasks] == files and len(files) == NUM_FILES
    assert all(file.content for file in files)  # the ETag
    of_files = Counter(request for request in requests if f".{ending}" in request)
    assert len(of_files) == 2 * NUM_FILES and set(of_files.values()) == {1}, of_files  # a HEAD and a GET for each


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_whether_a_file_has_changed_is_asked_with_one_request(tmp_path, bucket, requests, ending):
    for i in range(NUM_FILES):
        put(bucket, f"{i}.{ending}", FORMATS[ending](tmp_path))
    files = check_sources(data(bucket.root), REVIEWS)
    requests.clear()
    refuse_changed(files)
    assert len(requests) == NUM_FILES and len(set(requests)) == NUM_FILES, requests
    content = bytearray(FORMATS[ending](tmp_path))
    content[-3] ^= 1
    put(bucket, f"1.{ending}", bytes(content))
    with pytest.raises(DataError, match=rf"1\.{ending} changed while it was prepared \(its contents are others\)"):
        refuse_changed(files)
    bucket.delete(f"1.{ending}")
    with pytest.raises(DataError, match="it is gone"):
        refuse_changed(files)


def test_what_has_changed_is_opened_again(bucket):
    bucket.write_bytes("a.jsonl", jsonl(Path()))
    (before,) = check_sources(data(bucket.root), REVIEWS)["train"]
    bucket.write_bytes("a.jsonl", jsonl(Path())[:-1] + b" \n")
    (now,) = check_sources(data(bucket.root), REVIEWS)["train"]
    assert now.content != before.content
    bucket.write_bytes("a.jsonl", b'{"other": 1}\n')
    with pytest.raises(DataError, match="no column 'text'"):
        check_sources(data(bucket.root), REVIEWS)


def test_another_task_looks_again(bucket):
    bucket.write_bytes("a.jsonl", jsonl(Path()))
    check_sources(data(bucket.root), REVIEWS)
    other = SequenceClassificationConfig(kind="sequence_classification", text_column="body")
    with pytest.raises(DataError, match="no column 'body'"):
        check_sources(data(bucket.root), make_task(other, 32))


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/**"])
def test_sizes_and_times_come_from_the_listing(bucket, requests, pattern):
    for i in range(NUM_FILES):
        bucket.write_bytes(f"{i}.jsonl", jsonl(Path()))
    requests.clear()
    files = list_files(SourceConfig(path=bucket.root + pattern), "data.train")
    assert len(files) == NUM_FILES and all(file.num_bytes and file.modified_at for file in files)
    assert not [request for request in requests if ".jsonl" in request]


def test_a_large_text_file_is_read_in_few_requests(bucket, requests):
    row = json.dumps({"text": "a" * 1000, "label": "x"}).encode() + b"\n"
    bucket.write_bytes("a.jsonl", row * 3000)
    (file,) = list_files(SourceConfig(path=f"{bucket.root}/a.jsonl"), "data.train")
    requests.clear()
    tasks = read_tasks({"train": [file]})
    assert len(tasks) == 3
    assert sum(len(chunk.table) for task in tasks for chunk in read_chunks(task)) == 3000
    # 3 MB, read once to cut it and once for its rows; pieces of 8 KiB would be 370
    assert sum(request.startswith("GET") for request in requests) <= 10


def test_who_waits_is_told_how_far_it_is(monkeypatch):
    monkeypatch.setattr(parallel, "TELL_AFTER_S", 0.0)
    monkeypatch.setattr(parallel, "TELL_EVERY_S", 0.0)
    monkeypatch.setattr(parallel, "BATCH_ITEMS", 3)
    told: list[tuple[int, int, float]] = []
    assert in_threads(lambda i: 2 * i, range(10), lambda *words: told.append(words)) == list(range(0, 20, 2))
    assert [words[:2] for words in told] == [(i, 10) for i in range(1, 11)]
    assert all(rate > 0 for *_, rate in told)


def test_the_first_files_error_is_raised_whichever_comes_first():
    def work(i: int) -> int:
        if i % 5 == 3:
            raise DataError(f"file {i}")
        return i

    with pytest.raises(DataError, match="file 3"):
        in_threads(work, range(100))


def test_arrow_files_of_a_saved_dataset_and_zstd(bucket: Storage) -> None:
    table = pa.Table.from_pylist(ROWS)
    for writer_of, name in ((pa.ipc.new_stream, "data-1.arrow"), (pa.ipc.new_file, "data-0.arrow")):
        sink = pa.BufferOutputStream()
        with writer_of(sink, table.schema) as writer:
            writer.write_table(table)
        put(bucket, f"saved/{name}", sink.getvalue().to_pybytes())
    put(bucket, "saved/cache-1.arrow", b"what map has left")
    names = ["data-1.arrow", "data-0.arrow"]
    put(bucket, "saved/state.json", json.dumps({"_data_files": [{"filename": name} for name in names]}).encode())
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    put(bucket, "a.jsonl.zst", pa.compress(lines, "zstd", asbytes=True) * 2)
    config = {"train": {"path": bucket.path_of("saved")}, "test": {"path": bucket.path_of("a.jsonl.zst")}}
    files = check_sources(DataConfig.model_validate(config), REVIEWS)
    assert [file.path for file in files["train"]] == [bucket.path_of(f"saved/{name}") for name in names]
    tables = [chunk.table for task in read_tasks(files) for chunk in read_chunks(task, ["text", "label"])]
    assert [len(table) for table in tables] == [5, 5, 10]
    assert [{"text": row["text"], "label": row["label"]} for table in tables for row in table.to_pylist()] == ROWS * 4


def test_data_from_python_goes_there(bucket: Storage, requests: list[str]) -> None:
    folder = write_given(bucket, "train", ROWS)
    assert folder.startswith(bucket.path_of("_given"))
    (task,) = read_tasks(check_sources(data(folder), REVIEWS))
    assert [row["text"] for chunk in read_chunks(task) for row in chunk.table.to_pylist()] == [r["text"] for r in ROWS]
    requests.clear()
    assert write_given(bucket, "train", pa.Table.from_pylist(ROWS)) == folder
    assert not [request for request in requests if request.startswith("PUT")]
