"""PREPARE on a real Ray: what it writes, that it writes it once and always the same, and what it says of bad input."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data

from raytrain.config import RunConfig
from raytrain.data import prepare as prepare_module
from raytrain.data.encode import ROWS_SO_FAR, RowFunction
from raytrain.data.lineage import fate_of, source_of
from raytrain.data.passes import run_pass
from raytrain.data.prepare import find_prepared, prepare
from raytrain.data.prepared import PreparedStore
from raytrain.errors import DataError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.storage import Storage
from tests.tiny import (
    TINY_BERT,
    TINY_GPT,
    byte_tokenizer,
    make_reviews,
    make_sentences,
    tiny_tokenizer,
    write_conll,
    write_parquet,
    write_reviews,
)

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def config(tmp_path: Path, tokenizer: str) -> Any:
    """Makes configs whose cache lies in tmp_path/prepared; `task` and options of `data` are the arguments."""

    def make(train: Any, task: dict[str, Any] | None = None, cache: str = "prepared", **data: Any) -> RunConfig:
        seed = data.pop("seed", 0)
        return RunConfig.model_validate(
            {
                "name": "test",
                "seed": seed,
                "task": task or {"kind": "sequence_classification"},
                "model": {"config": TINY_BERT, "tokenizer": tokenizer},
                "data": {
                    "train": {"path": train},
                    "max_length": 12,
                    "prepared_path": str(tmp_path / cache),
                    **data,
                },
            }
        )

    return make


def samples(store: PreparedStore, split: str = "train") -> list[dict[str, Any]]:
    """All samples of a split, by id."""
    groups = range(len(store.row_group_starts(split)) - 1)
    return [row for group in groups for row in store.read_row_group(split, group).to_pylist()]


def content(store: PreparedStore) -> dict[str, str]:
    """Hash of each file of a store, without the times in stages.json."""
    root = Path(store.root)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {**found, "stages.json": json.dumps(json.loads((root / "stages.json").read_text())["examples"])}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusal(config: RunConfig) -> str:
    """The message with which the data is refused, which is no traceback of Ray's."""
    with pytest.raises(DataError) as error:
        prepare(config)
    message = str(error.value)
    assert "Traceback" not in message and "ray::" not in message and "RayTaskError" not in message
    return message


class TestContent:
    def test_reviews(self, tmp_path, config):
        rows = make_reviews(5_000, 0)
        chosen = config(
            write_parquet(tmp_path / "a.parquet", rows), test={"path": write_reviews(tmp_path / "t.parquet", 7, 1)}
        )
        store = prepare(chosen)
        encode = load_tokenizer(chosen.model)
        expected = encode([row["text"] for row in rows], truncation=True, max_length=12)["input_ids"]
        assert [sample["input_ids"] for sample in samples(store)] == expected
        assert store.manifest.task_state["labels"] == ["negative", "positive"]
        assert [sample["labels"] for sample in samples(store)] == [int(row["label"] == "positive") for row in rows]
        assert store.lengths("train")[np.arange(len(expected))].tolist() == [len(ids) for ids in expected]
        info = store.manifest.splits["train"]
        assert info.num_tokens == sum(map(len, expected))
        assert info.num_truncated == sum(len(ids) > 12 for ids in encode([row["text"] for row in rows])["input_ids"])
        assert info.num_truncated > 0
        assert (info.num_samples, info.num_quarantined) == (5_000, 0)
        assert store.manifest.splits["test"].num_samples == 7
        counts = Counter(row["label"] for row in rows)
        assert info.label_counts == counts and sum(store.manifest.splits["test"].label_counts.values()) == 7
        assert not store.has_split("validation")
        assert np.diff(store.row_group_starts("train")).max() == 16

    def test_conll(self, tmp_path, config):
        path = write_conll(tmp_path / "a.conll", 40, 0)
        store = prepare(config(path, {"kind": "token_classification"}, max_length=32))
        assert store.manifest.task_state["labels"] == ["O", "B-LOC", "B-PER"]
        tags = [[store.manifest.task_state["labels"][i] for i in row["labels"] if i != -100] for row in samples(store)]
        assert tags == [[tag for _, tag in sentence] for sentence in make_sentences(40, 0)]
        assert store.manifest.splits["train"].label_counts == Counter(tag for row in tags for tag in row)

    def test_progress_is_told(self, tmp_path, config):
        told: list[tuple[int, int | None, float]] = []
        paths = [write_reviews(tmp_path / f"{i}.parquet", 10, i) for i in range(3)]
        prepare(config(paths), lambda *progress: told.append(progress))
        assert [done for done, _, _ in told] == [10, 20, 30] * 2, "of the labels, and of the samples"
        assert told[-1][1] == 30 and 25 <= (told[0][1] or 0) <= 35
        assert all(rate > 0 for _, _, rate in told)


class TestFraction:
    def held_out(self, config: RunConfig) -> tuple[list[Any], list[Any]]:
        store = prepare(config)
        return tuple([tuple(s["input_ids"]) for s in samples(store, split)] for split in ("train", "validation"))  # type: ignore[return-value]

    def test_each_row_is_in_one_of_the_two(self, tmp_path, config):
        path = write_reviews(tmp_path / "a.parquet", 6_000, 0)
        train, validation = self.held_out(config(path, validation={"fraction": 0.1}))
        everything = [tuple(sample["input_ids"]) for sample in samples(prepare(config(path)))]
        assert sorted(train + validation) == sorted(everything)
        assert 500 < len(validation) < 700

    def test_the_seed_decides_which(self, tmp_path, config):
        path = write_reviews(tmp_path / "a.parquet", 500, 0)
        first, again, other = (
            self.held_out(config(path, cache=cache, seed=seed, validation={"fraction": 0.5}))[1]
            for cache, seed in (("p1", 0), ("p2", 0), ("p3", 2**60))
        )
        assert first == again != other

    def test_how_the_file_is_cut_into_tasks_does_not_matter(self, tmp_path, config, monkeypatch):
        path = write_parquet(tmp_path / "a.parquet", make_reviews(900, 0), row_group_size=100)
        whole = self.held_out(config(path, cache="whole", validation={"fraction": 0.3}))
        monkeypatch.setattr("raytrain.data.sources.TASK_ROWS", 200)
        assert self.held_out(config(path, cache="cut", validation={"fraction": 0.3})) == whole

    def test_nothing_held_out_is_refused(self, tmp_path, config):
        path = write_reviews(tmp_path / "a.parquet", 6, 0)
        assert "data.validation.fraction" in refusal(config(path, validation={"fraction": 0.0001}))


class TestOnce:
    """The same store whatever happens, and made once."""

    def test_the_same_on_one_cpu_and_on_four(self, tmp_path, config):
        """The first file takes longest, so with four CPUs the later ones end before it."""
        sizes, seeds = [6_000, 50, 40, 30], [0, 1, 2, 2]
        paths = [
            write_lines(tmp_path / f"{i}.jsonl", [{"text": "", "label": "x"}, *make_reviews(n, seed), '{"broken\n'])
            for i, (n, seed) in enumerate(zip(sizes, seeds, strict=True))
        ]
        test = write_lines(tmp_path / "test.jsonl", make_reviews(100, 1))
        options = {"validation": {"fraction": 0.2}, "test": {"path": test}, "dedup": {"exact": True, "near": True}}
        options |= {"on_error": "quarantine", "max_quarantined": 1}
        one, four = (config(paths, cache=cache, **options) for cache in "ab")
        run_elsewhere(one, num_cpus=1)
        alone = PreparedStore(str(next((tmp_path / "a").iterdir())))
        assert content(prepare(four)) == content(alone)
        info = alone.manifest.splits["train"]
        assert {"dedup.leakage", "dedup.exact"} <= set(info.num_removed)
        assert info.num_read == info.num_samples + info.num_quarantined + sum(info.num_removed.values())

    def test_documents_that_become_several_samples(self, tmp_path, config, monkeypatch):
        """The samples of a row are found by the row, and do not depend on how the file is read."""
        tokenizer = byte_tokenizer(tmp_path / "bytes")
        model = {"config": TINY_GPT, "tokenizer": tokenizer}
        path = write_parquet(tmp_path / "a.parquet", make_reviews(90, 0), row_group_size=10)

        def prepared(cache):
            made = config(path, task={"kind": "causal_lm"}, cache=cache, max_length=32)
            return prepare(RunConfig.model_validate({**made.model_dump(mode="json"), "model": model}))

        whole = prepared("whole")
        monkeypatch.setattr("raytrain.data.sources.TASK_ROWS", 20)
        cut = prepared("cut")
        ids = [[row["input_ids"] for row in samples(store)] for store in (whole, cut)]
        assert ids[0] == ids[1]
        sizes = [-(-len(row["text"].encode()) // 31) for row in make_reviews(90, 0)]
        assert whole.manifest.splits["train"].num_samples == len(ids[0]) == sum(sizes)
        lines, found = fate_of(whole, "a.parquet:5")
        assert len(lines) == len(found) == sizes[4] > 1
        assert [source_of(whole, "train", one.sample).rows for one in found] == [[5]] * sizes[4]

    def test_found_again_without_ray(self, tmp_path, config, monkeypatch):
        chosen = config(write_reviews(tmp_path / "a.parquet", 10, 0))
        before = content(prepare(chosen))
        monkeypatch.setattr(prepare_module, "run_pass", lambda *_: pytest.fail("it was prepared again"))
        assert content(prepare(chosen)) == before

    def test_a_changed_source_is_prepared_again(self, tmp_path, config):
        chosen = config(write_reviews(tmp_path / "a.parquet", 10, 0))
        first = prepare(chosen)
        write_reviews(tmp_path / "a.parquet", 11, 0)
        second = prepare(chosen)
        assert first.root != second.root and len(samples(second)) == 11

    def test_content_is_told_by_values_and_not_by_place(self, tmp_path, config):
        """P2: a run may be resumed with the same rows from another file, but not with two labels exchanged."""
        rows = make_reviews(40, seed=1)
        here = prepare(config(write_parquet(tmp_path / "a.parquet", rows)))
        there = prepare(config(write_parquet(tmp_path / "b.parquet", rows)))
        one = next(i for i, row in enumerate(rows) if row["label"] == "negative")
        two = next(i for i, row in enumerate(rows) if row["label"] == "positive")
        rows[one]["label"], rows[two]["label"] = rows[two]["label"], rows[one]["label"]
        swapped = prepare(config(write_parquet(tmp_path / "c.parquet", rows)))
        assert here.manifest.content == there.manifest.content
        assert here.manifest.content != swapped.manifest.content

    def test_two_at_once(self, tmp_path, config):
        chosen = config([write_reviews(tmp_path / f"{i}.parquet", 300, i) for i in range(3)])
        stores: list[PreparedStore] = []
        threads = [threading.Thread(target=lambda: stores.append(prepare(chosen))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(samples(store)) for store in stores] == [900, 900]
        assert len(os.listdir(tmp_path / "prepared")) == 1

    def test_the_first_to_end_is_not_replaced(self, tmp_path, config, monkeypatch):
        """Someone may read the winner's files already, so not even for a moment may they be gone."""
        chosen = config(write_reviews(tmp_path / "a.parquet", 10, 0))
        winner = Path(prepare(chosen).root)
        inode, made_at_ns = winner.stat().st_ino, winner.stat().st_ctime_ns
        exists, stamp, rename, is_late = Storage.exists, Storage.stamp, os.rename, []

        def stamp_too_late(self: Storage, name: str) -> tuple[int, ...] | None:
            return stamp(self, name) if is_late else None

        def exists_too_late(self: Storage, name: str = "") -> bool:
            return exists(self, name) and (not name.endswith("manifest.json") or bool(is_late))

        def rename_late(source: str, target: str) -> None:
            is_late.append(True)
            rename(source, target)

        monkeypatch.setattr(os, "rename", rename_late)
        monkeypatch.setattr(Storage, "exists", exists_too_late)
        monkeypatch.setattr(Storage, "stamp", stamp_too_late)
        store = prepare(chosen)
        # A number of a deleted folder is given again; its time is not.
        assert (Path(store.root).stat().st_ino, Path(store.root).stat().st_ctime_ns) == (inode, made_at_ns)
        assert os.listdir(tmp_path / "prepared") == [winner.name]

    def test_two_at_once_where_nothing_can_be_renamed(self, tmp_path, config, monkeypatch):
        """An object store: both write to the final folder, under part names of their own, unless one was late."""
        monkeypatch.setattr(Storage, "local_path", lambda *_: None)
        chosen = config([write_reviews(tmp_path / f"{i}.parquet", 300, i) for i in range(2)])
        stores: list[PreparedStore] = []
        threads = [threading.Thread(target=lambda: stores.append(prepare(chosen))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(samples(store)) for store in stores] == [600, 600]
        parts = [{part.name for part in store.manifest.splits["train"].parts} for store in stores]
        on_disk = {f"train/{path.name}" for path in (Path(stores[0].root) / "train").iterdir()}
        assert all(len(names) == 2 and names <= on_disk for names in parts)
        assert len(on_disk) == len(set.union(*parts)), "parts of no store are left"


class TestInterrupted:
    def test_killed_midway(self, tmp_path, config, caplog):
        chosen = config([write_reviews(tmp_path / f"{i}.parquet", 5_000, i) for i in range(4)])
        process = start_elsewhere(chosen, num_cpus=1)
        try:
            wait_for(lambda: list((tmp_path / "prepared").glob("*.work/done/encoder-*.json")), process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        (left,) = os.listdir(tmp_path / "prepared")
        assert left.endswith(".work")
        done = len(list((tmp_path / "prepared" / left / "done").glob("encoder-*.json")))
        with pytest.raises(DataError, match="no prepared data"):
            PreparedStore(str(tmp_path / "prepared" / left))
        told: list[int] = []
        assert len(samples(prepare(chosen, lambda *progress: told.append(progress[0])))) == 20_000
        assert "continuing in" in caplog.text and f"{done} of 4 parts" in caplog.text
        assert told[-1] == 20_000 and {5_000, 10_000, 15_000, 20_000} <= set(told)
        fresh = prepare(
            chosen.model_copy(update={"data": chosen.data.model_copy(update={"prepared_path": str(tmp_path / "p2")})})
        )
        assert content(fresh) == content(prepare(chosen))

    def test_stopped_by_the_user(self, tmp_path, config):
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        chosen = config(write_reviews(tmp_path / "a.parquet", 10, 0))
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen, stop)
        (left,) = (tmp_path / "prepared").iterdir()
        assert left.name.endswith(".work")
        store = prepare(chosen)
        assert len(samples(store)) == 10 and os.listdir(tmp_path / "prepared") == [Path(store.root).name]

    def test_a_folder_without_a_manifest_is_no_store(self, tmp_path, config):
        chosen = config(write_reviews(tmp_path / "a.parquet", 10, 0))
        store = prepare(chosen)
        before = content(store)
        (Path(store.root) / "manifest.json").unlink()  # half deleted by someone
        assert content(prepare(chosen)) == before

    def test_only_our_own_leftovers_are_removed_after_a_day(self, tmp_path, config):
        cache = tmp_path / "prepared"
        ours = f"{'0123456789abcdef' * 2}"[:20]
        names = {f"{ours}.11111111.tmp": 2, f"{ours}.22222222.tmp": 0, "my_notes.tmp": 2}  # age in days
        for name, days in names.items():
            (cache / name).mkdir(parents=True)
            os.utime(cache / name, times=(time.time() - days * 86_400 - 60,) * 2)
        store = prepare(config(write_reviews(tmp_path / "a.parquet", 10, 0)))
        assert sorted(os.listdir(cache)) == sorted([Path(store.root).name, f"{ours}.22222222.tmp", "my_notes.tmp"])


class TestDamaged:
    """A store that is not what was written is prepared again, and the log says so."""

    @pytest.mark.parametrize("name", ["train/*.parquet", "index/train/*.parquet", "lengths-train.bin", "manifest.json"])
    def test_one_flipped_bit(self, tmp_path, config, name, caplog):
        chosen = config(write_reviews(tmp_path / "a.parquet", 40, 0))
        store = prepare(chosen)
        before = content(store)
        (path,) = Path(store.root).glob(name)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        assert find_prepared(chosen) is None
        assert content(prepare(chosen)) == before
        assert f"{path} is damaged: the data has to be prepared again" in caplog.text
        assert os.listdir(tmp_path / "prepared") == [Path(store.root).name]

    def test_where_nothing_can_be_renamed(self, tmp_path, config, monkeypatch):
        """An object store: the new parts have other names, and only the manifest is replaced."""
        monkeypatch.setattr(Storage, "local_path", lambda *_: None)
        chosen = config(write_reviews(tmp_path / "a.parquet", 40, 0))
        store = prepare(chosen)
        before = samples(store)
        Path(store.root, store.manifest.splits["train"].parts[0].name).write_bytes(b"")
        assert find_prepared(chosen) is None
        assert samples(prepare(chosen)) == before
        assert find_prepared(chosen) is not None


def quarantined(store: PreparedStore) -> list[dict[str, Any]]:
    files = sorted((Path(store.root) / "quarantine").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class TestBadInput:
    @pytest.mark.parametrize("ending", ["jsonl", "parquet"])
    def test_the_first_bad_row_of_the_first_file_is_named(self, tmp_path, config, ending):
        """However long its task takes: the second file is done long before it."""
        rows: list[Any] = make_reviews(20_000, 0)
        for place in (17_000, 18_000, 19_999):
            rows[place] = {"text": "", "label": "positive"}
        later = [*make_reviews(300, 2), {"text": "", "label": "positive"}, *make_reviews(10, 1)]
        write = write_lines if ending == "jsonl" else write_parquet
        paths = [write(tmp_path / f"{i}.{ending}", some) for i, some in enumerate((rows, later))]
        assert f"{paths[0]}, row 17001: text is empty (2 more bad rows after it)" in refusal(config(paths))

    def test_what_is_quarantined_is_counted_by_reason(self, tmp_path, config, caplog):
        odd: list[Any] = ["{broken\n", {"text": "", "label": "positive"}, {"text": " ", "label": "positive"}]
        path = write_lines(tmp_path / "a.jsonl", [*make_reviews(4, 1), *odd, {"text": 5, "label": "positive"}])
        prepare(config(path, on_error="quarantine", max_quarantined=1))
        assert "4 rows quarantined" in caplog.text
        assert f"2 x bad_input: text is empty ({path}, row 6; {path}, row 7)" in caplog.text
        assert "1 x unreadable: malformed JSON" in caplog.text
        assert f"1 x bad_input: text is 5, which is a number and not text ({path}, row 8)" in caplog.text

    def test_refused_with_file_and_row(self, tmp_path, config):
        path = write_lines(tmp_path / "a.jsonl", [*make_reviews(5, 0), "{broken\n", *make_reviews(5, 1)])
        message = refusal(config(path))
        assert f"{path}, row 6: malformed JSON" in message and "data.on_error=quarantine" in message
        assert list((tmp_path / "prepared").glob("*")) == []

    @pytest.mark.parametrize("text", ["", "  ", None])
    def test_empty_text(self, tmp_path, config, text):
        path = write_lines(tmp_path / "a.jsonl", [*make_reviews(3, 1), {"text": text, "label": "positive"}])
        assert f"{path}, row 4" in refusal(config(path))
        store = prepare(config(path, on_error="quarantine", max_quarantined=1))
        assert len(samples(store)) == 3

    def test_what_is_quarantined_is_counted_and_listed(self, tmp_path, config):
        train = write_lines(tmp_path / "a.jsonl", ["{broken\n", *make_reviews(4, 1), {"text": "a", "label": None}])
        validation = write_lines(tmp_path / "b.jsonl", [*make_reviews(4, 0), "[]\n"])
        store = prepare(config(train, validation={"path": validation}, on_error="quarantine", max_quarantined=1))
        lines = quarantined(store)
        assert [(line["file"], line["row"]) for line in lines] == [(train, 1), (train, 6), (validation, 5)]
        assert all(line["reason"] for line in lines)
        assert [line["data"] for line in lines] == ["{broken\n", {"text": "a", "label": None}, "[]\n"]
        assert {split: info.num_quarantined for split, info in store.manifest.splits.items()} == {
            "train": 2,
            "validation": 1,
        }

    def test_what_is_quarantined_of_equal_files_in_two_splits(self, tmp_path, config):
        paths = [write_lines(tmp_path / f"{name}.jsonl", ["{broken\n", *make_reviews(4, 1)]) for name in "ab"]
        store = prepare(config(paths[0], test={"path": paths[1]}, on_error="quarantine", max_quarantined=1))
        assert [info.num_quarantined for info in store.manifest.splits.values()] == [1, 1]

    def test_a_label_that_only_validation_has(self, tmp_path, config):
        """It is found as those of the training data are; the declared ones are the only ones."""
        train = write_reviews(tmp_path / "a.parquet", 20, 0)
        validation = write_parquet(tmp_path / "b.parquet", [*make_reviews(2, 0), {"text": "so so", "label": "neutral"}])
        found = prepare(config(train, validation={"path": validation}))
        assert found.manifest.task_state == {"labels": ["negative", "neutral", "positive"]}
        assert found.manifest.splits["validation"].num_samples == 3
        declared = {"kind": "sequence_classification", "labels": ["negative", "positive"]}
        message = refusal(config(train, declared, validation={"path": validation}))
        for word in (f"{validation}, row 3", "'neutral'", "'negative', 'positive'", "task.labels", "quarantine"):
            assert word in message
        store = prepare(
            config(train, declared, validation={"path": validation}, on_error="quarantine", max_quarantined=1)
        )
        assert [info.num_quarantined for info in store.manifest.splits.values()] == [0, 1]
        (line,) = quarantined(store)
        assert line["code"] == "unknown_label" and line["data"] == {"text": "so so", "label": "neutral"}

    def test_a_tag_that_is_not_declared(self, tmp_path, config):
        path = write_conll(tmp_path / "a.conll", 5, 0)
        message = refusal(config(path, {"kind": "token_classification", "labels": ["O", "B-PER"]}))
        assert path in message and "'B-LOC'" in message

    @pytest.mark.parametrize("labels", [None, ["negative", "positive"]])
    def test_a_broken_page(self, tmp_path, config, labels):
        path = tmp_path / "a.parquet"
        write_parquet(path, make_reviews(2_000, 0))
        raw = bytearray(path.read_bytes())
        raw[200:1_000] = b"\xff" * 800
        path.write_bytes(raw)
        message = refusal(
            config(
                str(path),
                {"kind": "sequence_classification", "labels": labels},
                on_error="quarantine",
                max_quarantined=1,
            )
        )
        assert str(path) in message and "broken Parquet" in message

    @pytest.mark.parametrize("labels", [None, ["negative", "positive"]])
    def test_gzip_that_ends_too_soon(self, tmp_path, config, labels):
        path = tmp_path / "a.jsonl.gz"
        lines = "".join(json.dumps(row) + "\n" for row in make_reviews(5_000, 0)).encode()
        path.write_bytes(gzip.compress(lines)[:-2_000])
        assert str(path) in refusal(config(str(path), {"kind": "sequence_classification", "labels": labels}))

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_a_split_without_a_usable_row(self, tmp_path, config, split):
        good = write_reviews(tmp_path / "a.parquet", 5, 0)
        useless = write_parquet(tmp_path / "b.parquet", [{"text": " ", "label": "positive"}])
        paths = {"train": good, split: useless}
        rest = {name: {"path": path} for name, path in paths.items() if name != "train"}
        message = refusal(config(paths["train"], on_error="quarantine", max_quarantined=1, **rest))
        assert f"data.{split}" in message and "no usable row" in message


SCRIPT = """
    import json, os, sys
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from raytrain.config import RunConfig
    from raytrain.data.prepare import prepare
    ray.init(address="local", num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
    prepare(RunConfig.model_validate_json(sys.argv[2]))
    ray.shutdown()
"""


def start_elsewhere(config: RunConfig, num_cpus: int) -> subprocess.Popen[bytes]:
    """Prepare in another process, with a Ray of its own."""
    text = json.dumps(config.model_dump(mode="json", exclude_unset=True))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(num_cpus), text],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_elsewhere(config: RunConfig, num_cpus: int) -> None:
    process = start_elsewhere(config, num_cpus)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()


def wait_for(condition: Any, process: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("fails", [True, False])
def test_no_read_task_is_lost(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Not even where the user's own pipelines in this process may lose some."""

    class Lost(RowFunction):  # in here, so that Ray sends it to processes that do not know this file
        """Reports on the first row only; on the second one it fails as nothing that is foreseen, or says nothing."""

        def reports(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if row["ordinal"] and fails:
                raise MemoryError("no memory")
            yield {"ordinal": row["ordinal"], **({ROWS_SO_FAR: 1} if row["ordinal"] else {})}

    monkeypatch.setattr(ray.data.DataContext.get_current(), "max_errored_blocks", -1)
    rows = [{"ordinal": ordinal} for ordinal in range(2)]
    with pytest.raises(ray.exceptions.RayError if fails else DataError, match="no memory|without 1 report of 2 parts"):
        list(run_pass(rows, Lost()))
