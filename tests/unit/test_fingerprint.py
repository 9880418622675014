"""The fingerprint of prepared data: changed by everything that decides the data, and by nothing else. No Ray."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from raytrain.config import ModelConfig, RunConfig
from raytrain.data.fingerprint import fingerprint
from raytrain.data.prepared import FORMAT_VERSION
from raytrain.data.sources import check_sources
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import check_tokenizer, load_tokenizer, tokenizer_fingerprint
from raytrain.tasks import make_task
from tests.tiny import TINY_BERT, tiny_tokenizer, write_reviews

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fingerprint")
    tiny_tokenizer(folder / "tokenizer")
    for name in ("train", "other", "test"):
        write_reviews(folder / f"{name}.parquet", 20, 0)
    return folder


def raw_config(folder: Path) -> Raw:
    return {
        "name": "a",
        "storage_path": str(folder / "runs"),
        "task": {"kind": "sequence_classification"},
        "model": {"config": TINY_BERT, "tokenizer": str(folder / "tokenizer")},
        "data": {"train": {"path": str(folder / "train.parquet")}, "max_length": 32},
    }


def of(raw: Raw, tokenizer: str = "t", rows_per_group: int = 16) -> str:
    config = RunConfig.model_validate(raw)
    files = check_sources(config.data, make_task(config.task, config.data.max_length))
    return fingerprint(config, files, tokenizer, rows_per_group)


def changed(raw: Raw, dotted: str, value: Any) -> Raw:
    copy: Raw = json.loads(json.dumps(raw))
    *above, last = dotted.split(".")
    at = copy
    for key in above:
        at = at.setdefault(key, {})
    at[last] = value
    return copy


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.max_length", 31),
        ("data.on_error", "quarantine"),
        ("data.validation", {"fraction": 0.1}),
        ("data.validation", {"fraction": 0.1, "group_column": "label"}),
        ("data.validation", {"fraction": 0.1, "stratify": True}),
        ("data.dedup.leakage", "report"),
        ("data.dedup.exact", True),
        ("data.dedup.near", True),
        ("data.validation", {"path": "{folder}/test.parquet"}),
        ("data.test", {"path": "{folder}/test.parquet"}),
        ("data.train.path", "{folder}/other.parquet"),
        ("data.train.path", ["{folder}/train.parquet", "{folder}/other.parquet"]),
        ("task.labels", ["negative", "positive"]),
        ("task.multi_label", True),
    ],
    ids=str,
)
def test_what_decides_the_data(folder, option, value):
    raw = raw_config(folder)
    filled = json.loads(json.dumps(value).replace("{folder}", str(folder)))
    assert of(changed(raw, option, filled)) != of(raw)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", "b"),
        ("seed", 7),
        ("storage_path", "elsewhere"),
        ("data.prepared_path", "elsewhere"),
        ("data.group_by_length", False),
        ("data.drop_last", True),
        ("data.shuffle_window_samples", 64),
        ("data.canonical_shards", 4),
        ("training.global_batch_size", 64),
        ("training.epochs", 9),
        ("training.zero_stage", 3),
        ("workers.data_cpus", 1.0),
        ("checkpoint.save_every_steps", 3),
    ],
    ids=str,
)
def test_what_does_not(folder, option, value):
    raw = raw_config(folder)
    assert of(changed(raw, option, value)) == of(raw)


def test_the_seed_decides_only_when_a_fraction_is_held_out(folder):
    raw = changed(raw_config(folder), "data.validation", {"fraction": 0.1})
    assert of(changed(raw, "seed", 1)) != of(raw)
    assert of(changed(raw, "data.validation.fraction", 0.2)) != of(raw)


def test_the_order_of_the_files(folder):
    paths = [str(folder / "train.parquet"), str(folder / "other.parquet")]
    raw = raw_config(folder)
    assert of(changed(raw, "data.train.path", paths)) != of(changed(raw, "data.train.path", paths[::-1]))


def test_how_a_file_is_read(tmp_path, folder):
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    raw = changed(raw_config(folder), "data.train.path", str(tmp_path / "a.csv"))
    assert of(changed(raw, "data.train.encoding", "cp1252")) != of(raw)


def test_a_file_that_was_written_again(tmp_path, folder):
    raw = changed(raw_config(folder), "data.train.path", write_reviews(tmp_path / "a.parquet", 20, 0))
    before = of(raw)
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    touched = of(raw)
    write_reviews(tmp_path / "a.parquet", 21, 0)
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert len({before, touched, of(raw)}) == 3


@pytest.mark.parametrize("whole_bytes", [1 << 30, 0])
def test_other_bytes_with_the_same_size_and_time(tmp_path, folder, monkeypatch, whole_bytes):
    """Of files that are too large to be hashed whole, the head and the tail are."""
    monkeypatch.setattr("raytrain.data.content.WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr("raytrain.data.content.END_BYTES", 64)
    path = tmp_path / "a.csv"
    raw = changed(raw_config(folder), "data.train.path", str(path))
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(100))
    seen = set()
    for first in ("good,a", "good,b", "gold,a"):
        path.write_text(f"text,label\n{first}\n{rows}")
        os.utime(path, ns=(1, 1))
        seen.add(of(raw))
    assert len(seen) == 3


def test_a_relative_path_is_the_same_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    raw = raw_config(folder)
    assert of(changed(raw, "data.train.path", "train.parquet")) == of(raw)


def test_another_format_has_another_name(folder, monkeypatch):
    """So an old store is left alone, and a new one made beside it."""
    before = of(raw_config(folder))
    monkeypatch.setattr("raytrain.data.fingerprint.FORMAT_VERSION", FORMAT_VERSION + 1)
    assert of(raw_config(folder)) != before


def test_the_algorithm_of_duplicates_where_it_is_used(folder, monkeypatch):
    off = changed(raw_config(folder), "data.dedup.leakage", "off")
    configs = [off, changed(off, "data.dedup.near", True), changed(off, "data.dedup.leakage", "report")]
    before = [of(raw) for raw in configs]
    monkeypatch.setattr("raytrain.data.fingerprint.algorithm", lambda: "another")
    assert [of(raw) == old for raw, old in zip(configs, before, strict=True)] == [True, False, False]


def test_tokenizer_and_row_groups(folder):
    raw = raw_config(folder)
    assert of(raw, "u") != of(raw) != of(raw, rows_per_group=64)
    assert of(raw) == of(raw)
    assert len(of(raw)) >= 16 and int(of(raw), 16) >= 0


class TestTokenizer:
    """A tokenizer is known by its content: where it lies and what it was used for do not matter."""

    def load(self, path: Any) -> Any:
        return load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=str(path)))

    def changed(self, folder: Path, tmp_path: Path, file: str, key: str, value: Any) -> str:
        """Fingerprint of a copy with one key of one of its files changed."""
        shutil.copytree(folder / "tokenizer", tmp_path / "copy")
        raw = json.loads((tmp_path / "copy" / file).read_text())
        (tmp_path / "copy" / file).write_text(json.dumps({**raw, key: value}))
        return tokenizer_fingerprint(self.load(tmp_path / "copy"))

    def test_a_copy_elsewhere_is_the_same(self, folder, tmp_path):
        shutil.copytree(folder / "tokenizer", tmp_path / "copy")
        here, there = self.load(folder / "tokenizer"), self.load(tmp_path / "copy")
        assert tokenizer_fingerprint(here) == tokenizer_fingerprint(there)

    def test_using_it_does_not_change_it(self, folder):
        tokenizer = self.load(folder / "tokenizer")
        before = tokenizer_fingerprint(tokenizer)
        tokenizer(["a film", "the plot was very good"], truncation=True, max_length=4, padding=True)
        assert tokenizer_fingerprint(tokenizer) == before

    @pytest.mark.parametrize(
        ("file", "key", "value"),
        [
            ("tokenizer.json", "normalizer", None),
            ("tokenizer.json", "post_processor", None),
            ("tokenizer_config.json", "truncation_side", "left"),
            ("tokenizer_config.json", "pad_token", "[MASK]"),
        ],
    )
    def test_its_content(self, folder, tmp_path, file, key, value):
        before = tokenizer_fingerprint(self.load(folder / "tokenizer"))
        assert self.changed(folder, tmp_path, file, key, value) != before

    def test_loaded_once(self, folder):
        assert self.load(folder / "tokenizer") is self.load(folder / "tokenizer")

    @pytest.mark.parametrize(("option", "other"), [("path", {}), ("tokenizer", {"config": TINY_BERT})])
    def test_a_folder_without_one(self, tmp_path, option, other):
        model = ModelConfig.model_validate({**other, option: str(tmp_path)})
        for load in (check_tokenizer, load_tokenizer):
            with pytest.raises(ConfigError) as refusal:
                load(model)
            for word in (f"model.{option}", str(tmp_path), "no tokenizer", "model.tokenizer"):
                assert word in str(refusal.value)

    @pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c"])
    def test_a_folder_that_is_not_there(self, path):
        with pytest.raises(ConfigError, match=rf"model\.path {path}: no such folder"):
            check_tokenizer(ModelConfig(path=path))

    def test_a_model_folder_that_is_not_there_beside_a_tokenizer_that_is(self, folder):
        with pytest.raises(ConfigError, match=r"model\.path /no/such/folder: no such folder"):
            check_tokenizer(ModelConfig(path="/no/such/folder", tokenizer=str(folder / "tokenizer")))

    def test_a_hub_id_without_a_network(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigError) as refusal:
            load_tokenizer(ModelConfig(path="nobody/no-such-model"))
        for word in ("model.path", "nobody/no-such-model", "local folder"):
            assert word in str(refusal.value)
