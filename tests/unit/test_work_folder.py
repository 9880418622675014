"""PREPARE continues where a command was interrupted: nothing is done twice, and the store is the same. No Ray."""

import gzip
import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from raytrain.config import RunConfig
from raytrain.data import prepare as prepare_module
from raytrain.data import work_folder
from raytrain.data.encode import ROWS_SO_FAR, report_of
from raytrain.data.passes import _EachOf
from raytrain.data.prepare import prepare
from raytrain.data.prepared import PreparedStore
from raytrain.data.stages.counts import LimitError
from raytrain.data.stages.quarantine import quarantined
from raytrain.errors import DataError, FailureCode
from raytrain.storage import Storage
from tests.s3 import s3_bucket
from tests.tiny import TINY_BERT, make_reviews, tiny_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fraction": {"validation": {"fraction": 0.2}},
    "duplicates": {"dedup": {"exact": True, "near": True}, "on_error": "quarantine", "max_quarantined": 1},
}


class Passes:
    """In place of Ray Data: read tasks in any order, until the process is killed."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.last: int | None = None
        """The number of read tasks after which the process ends."""

    def run(self, rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
        shuffled = random.Random(len(rows)).sample(rows, len(rows))
        for begin in range(0, len(rows), 3):
            for found in _EachOf(function)({"rows": json.dumps(shuffled[begin : begin + 3])}):
                report = report_of(found)
                self.done[function.pass_name] += ROWS_SO_FAR not in report
                if "error" in report:
                    raise DataError(report["error"], FailureCode(report["code"]))
                yield report
                if self.last is not None and sum(self.done.values()) >= self.last:
                    raise KeyboardInterrupt


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    found = Passes()
    monkeypatch.setattr(prepare_module, "run_pass", found.run)
    monkeypatch.setattr("raytrain.data.cutting.LEAST_BYTES", 4_000)
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def config(tmp_path: Path, tokenizer: str) -> Any:
    """Makes configs with two JSONL files that are cut into some ten parts."""
    for seed, name in enumerate(("a", "b")):
        rows = [*make_reviews(150, seed), {"text": "", "label": "negative"}, *make_reviews(20, 7)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["text"]))

    def make(cache: str, **data: Any) -> RunConfig:
        raw = {
            "name": "test",
            "task": {"kind": "sequence_classification"},
            "model": {"config": TINY_BERT, "tokenizer": tokenizer},
            "data": {"train": {"path": str(tmp_path / "?.jsonl")}, "prepared_path": cache, "max_length": 12, **data},
        }
        return RunConfig.model_validate(raw)

    return make


def content(store: PreparedStore) -> dict[str, str]:
    """Hash of each file of a store on this machine."""
    files = [path for path in sorted(Path(store.root).rglob("*")) if path.is_file()]
    found = {str(path.relative_to(store.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    examples = json.loads((Path(store.root) / "stages.json").read_text())["examples"]  # beside them it has times
    return {**found, "stages.json": json.dumps(examples)}


def interrupted(passes: Passes, config: RunConfig, last: int) -> Counter[str]:
    """What a command has done that ends after some read tasks."""
    passes.done, passes.last = Counter(), last
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    done, passes.done, passes.last = passes.done, Counter(), None
    return done


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_continues_after_a_kill(tmp_path: Path, config: Any, passes: Passes, kind: str) -> None:
    whole = content(prepare(config(str(tmp_path / "whole"), **OPTIONS[kind])))
    once = passes.done
    assert once["encoder"] == 8
    for last in (sum(once.values()) * 6 // 10, sum(once.values()) - 1):
        chosen = config(str(tmp_path / f"cut-{last}"), **OPTIONS[kind])
        before = interrupted(passes, chosen, last)
        assert content(prepare(chosen)) == whole
        assert before + passes.done == once, "something was done twice"
        assert [path.name for path in (tmp_path / f"cut-{last}").iterdir()] == [
            path.name for path in (tmp_path / "whole").iterdir()
        ]


@pytest.mark.parametrize("how", ["cut short", "gone", "one bit", "record", "other versions"])
def test_what_is_not_whole_is_done_again(
    tmp_path: Path, config: Any, passes: Passes, how: str, monkeypatch: Any
) -> None:
    whole = content(prepare(config(str(tmp_path / "whole"))))
    chosen, once = config(str(tmp_path / "cut")), passes.done["encoder"]
    interrupted(passes, chosen, 2 * once - 1)
    (work,) = (tmp_path / "cut").iterdir()
    part = sorted((work / "train").iterdir())[0]
    if how == "cut short":
        os.truncate(part, 10)
    elif how == "gone":
        part.unlink()
    elif how == "one bit":
        raw = bytearray(part.read_bytes())
        raw[len(raw) // 2] ^= 1
        part.write_bytes(raw)
    elif how == "record":
        sorted((work / "done").glob("encoder-*"))[0].write_text('{"id"')
    else:
        monkeypatch.setattr(work_folder, "__version__", "0.0")
    assert content(prepare(chosen)) == whole
    assert passes.done["encoder"] == (once if how == "other versions" else 2)


def test_two_commands_in_one_folder(tmp_path: Path, config: Any, passes: Passes) -> None:
    """The second one begins, and ends, while the first one is at work."""
    whole = content(prepare(config(str(tmp_path / "whole"))))
    chosen, run, is_first = config(str(tmp_path / "both")), passes.run, [True]

    def slow(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
        for number, report in enumerate(run(rows, function)):
            yield report
            if number == 2 and function.pass_name == "encoder" and is_first:
                is_first.clear()
                assert content(prepare(chosen)) == whole

    passes_run = prepare_module.run_pass
    try:
        prepare_module.run_pass = slow  # type: ignore[assignment]
        assert content(prepare(chosen)) == whole
    finally:
        prepare_module.run_pass = passes_run
    assert len(list((tmp_path / "both").iterdir())) == 1


def test_progress_is_told_inside_a_read_task(tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any) -> None:
    """A compressed file is one read task, however large it is."""
    monkeypatch.setattr("raytrain.data.encode.TELL_EVERY_S", 0.0)
    monkeypatch.setattr("raytrain.data.readers.base.CHUNK_ROWS", 50)
    text = (tmp_path / "a.jsonl").read_text() + (tmp_path / "b.jsonl").read_text()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    chosen, told = config(str(tmp_path / "cache"), train={"path": str(tmp_path / "c.jsonl.gz")}), []
    prepare(chosen, lambda *progress: told.append(progress))
    rows = text.count("\n")
    surveyed, *encoded = [so_far for so_far, _, _ in told]
    assert surveyed == rows, "of the pass that reads labels"
    assert encoded == [*range(50, rows, 50), *[rows] * (2 if rows % 50 else 1)]
    assert {total for _, total, _ in told} == {None, rows} and told[-1][1] == rows


def test_rows_that_are_refused_leave_nothing(tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any) -> None:
    monkeypatch.setattr("raytrain.data.examined.HEAD_ROWS", 5)
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match="malformed JSON"):
        prepare(config(str(tmp_path / "cache")))
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_nobody_has_continued_for_a_week_is_removed(tmp_path: Path, config: Any, passes: Passes) -> None:
    names = {f"{'0a' * 10}.work": 8, f"{'0b' * 10}.work": 6, "mine.work": 8}
    for name, days in names.items():
        path = tmp_path / "cache" / name / work_folder.BEGUN
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, times=(time.time() - days * 86_400,) * 2)
    store = prepare(config(str(tmp_path / "cache")))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*list(names)[1:], Path(store.root).name}


def test_on_an_object_store(config: Any, passes: Passes, tmp_path: Path) -> None:
    whole = prepare(config(str(tmp_path / "whole")))
    once = passes.done
    with s3_bucket() as bucket:
        chosen = config(f"{bucket}/cache")
        before = interrupted(passes, chosen, sum(once.values()) - 3)
        store = prepare(chosen)
        assert before + passes.done == once
        assert Storage(f"{bucket}/cache").list_names() == [whole.manifest.fingerprint]
        store.verify()
        assert store.manifest.content == whole.manifest.content
        names = {name for part in store.manifest.splits["train"].parts for name in (part.name, part.index_name)}
        found = Storage(store.root)
        assert {f"{at}/{name}" for at in ("train", "index/train") for name in found.list_names(at)} == names


def meanwhile(passes: Passes, monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Something happens, once, when a command has encoded some read tasks."""
    run, left = passes.run, [what]

    def run_and_more(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
        for number, report in enumerate(run(rows, function)):
            yield report
            if number == 2 and function.pass_name == "encoder" and left:
                left.pop()()

    monkeypatch.setattr(prepare_module, "run_pass", run_and_more)


@pytest.mark.parametrize("how", ["shorter", "other bytes", "gone"])
def test_a_source_that_changes_meanwhile(
    tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any, how: str
) -> None:
    source = tmp_path / "b.jsonl"
    text, status = source.read_text(), source.stat()

    def change() -> None:
        if how == "gone":
            source.unlink()
        elif how == "shorter":
            source.write_text("".join(text.splitlines(True)[:20]))
        else:  # of the same size, at the same time
            source.write_text(text.replace("positive", "negative"))
            os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))

    meanwhile(passes, monkeypatch, change)
    with pytest.raises(DataError, match=r"b\.jsonl changed while it was prepared \(.*\)\. Give the command again"):
        prepare(config(str(tmp_path / "cache"), on_error="quarantine", max_quarantined=1))
    assert list((tmp_path / "cache").iterdir()) == []


def with_bad_rows(tmp_path: Path) -> None:
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write('{"text": "", "label": "negative"}\n' * 20)


def test_a_limit_that_is_exceeded_leaves_what_is_done(tmp_path: Path, config: Any, passes: Passes) -> None:
    with_bad_rows(tmp_path)
    with pytest.raises(LimitError, match=r"data\.max_quarantined 0\.01"):
        prepare(config(str(tmp_path / "cache"), on_error="quarantine"))
    once, passes.done = passes.done, Counter()
    store = prepare(config(str(tmp_path / "cache"), on_error="quarantine", max_quarantined=0.5))
    assert once["encoder"] > 3 and not passes.done
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Path(store.root).name]


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any) -> None:
    whole, cache = content(prepare(config(str(tmp_path / "whole")))), tmp_path / "cache"

    def remove() -> None:
        (work,) = cache.glob("*.work")
        shutil.rmtree(work)

    meanwhile(passes, monkeypatch, remove)
    assert content(prepare(config(str(cache)))) == whole
    shutil.rmtree(cache)
    monkeypatch.setattr(prepare_module, "MOST_ATTEMPTS", 1)
    meanwhile(passes, monkeypatch, remove)
    with pytest.raises(DataError, match=r"\.work was removed while this command worked in it, once") as error:
        prepare(config(str(cache)))
    assert error.value.code == FailureCode.STORAGE


def test_a_store_that_another_command_has_made_with_a_higher_limit(
    tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any
) -> None:
    with_bad_rows(tmp_path)

    def other() -> None:
        prepare(config(str(tmp_path / "cache"), on_error="quarantine", max_quarantined=0.5))
        raise DataError("a file of the folder is gone", FailureCode.STORAGE)

    meanwhile(passes, monkeypatch, other)
    with pytest.raises(LimitError, match=r"data\.max_quarantined 0\.01"):
        prepare(config(str(tmp_path / "cache"), on_error="quarantine"))


def test_an_object_store_lists_quarantined_rows_once(
    tmp_path: Path, config: Any, passes: Passes, monkeypatch: Any
) -> None:
    """A command was killed between its last part and the manifest."""
    with_bad_rows(tmp_path)
    with s3_bucket() as bucket:
        chosen = config(
            f"{bucket}/cache",
            train={"path": str(tmp_path / "b.jsonl")},
            dedup={"leakage": "off"},
            on_error="quarantine",
            max_quarantined=1,
        )
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "commit", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                prepare(chosen)
        store = prepare(chosen)
        rows = [row["row"] for row in quarantined(store.storage)]
        assert len(set(rows)) == len(rows) == store.manifest.splits["train"].num_quarantined == 20
