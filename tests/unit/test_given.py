"""Data from Python: what it becomes, and what is refused. No Ray."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import tiny_run

import raytrain
from raytrain.config.from_python import parse
from raytrain.config.io import parse_config
from raytrain.data.given import with_given, write_given
from raytrain.data.readers.base import CHUNK_ROWS
from raytrain.errors import ConfigError, DataError
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus
from raytrain.tuning import sweep
from raytrain.tuning.state import SweepResult
from tests.tiny import make_reviews

ROWS = make_reviews(CHUNK_ROWS + 10, 0)


def rows_in(folder: str) -> list[dict[str, Any]]:
    """In the order in which a run reads them."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
    return [row for name in names for row in pq.read_table(f"{folder}/{name}").to_pylist()]


@pytest.fixture
def prepared(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "prepared"))


def test_the_same_rows_are_the_same_folder(prepared: Storage) -> None:
    frame, table = pd.DataFrame(ROWS), pa.Table.from_pylist(ROWS)
    folder = write_given(prepared, "train", ROWS)
    assert os.path.dirname(folder) == prepared.path_of("_given")
    assert rows_in(folder) == ROWS
    os.utime(f"{folder}/rows-000000000001.parquet", (1, 1))
    same: list[Any] = [frame, frame.set_index(frame.index[::-1]), frame.astype({"label": "category"}), table]
    same += [table.set_column(0, "text", table["text"].cast(pa.large_string())), table.combine_chunks().to_batches()[0]]
    assert {write_given(prepared, "train", one) for one in same} == {folder}
    assert os.path.getmtime(f"{folder}/rows-000000000001.parquet") == 1, "what is there is not written again"
    os.remove(f"{folder}/given.json")  # as where writing was interrupted, by a command whose files ended elsewhere
    pq.write_table(table.slice(0, 7), f"{folder}/rows-000000000008.parquet")
    assert write_given(prepared, "train", table) == folder
    assert rows_in(folder) == ROWS
    assert write_given(prepared, "train", ROWS[::-1]) != folder


def test_gaps_and_types_that_change_between_blocks(prepared: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "x"}, {"b": 1.5}, {"a": None, "b": float("nan")}]
    found = rows_in(write_given(prepared, "train", rows))
    assert found[:2] == [{"a": "x", "b": None}, {"a": None, "b": 1.5}] and math.isnan(found[2]["b"])
    blocks = [pa.table({"a": [None, None], "b": [1, 2]}), pa.table({"a": ["x"], "b": [3]}), pa.table({"a": ["y"]})]
    blocks += [pa.table({"a": pa.nulls(2)})]
    monkeypatch.setattr("raytrain.data.given._tables_of", lambda split, data: iter(data))
    folder = write_given(prepared, "train", blocks)
    assert rows_in(folder) == [row for block in blocks for row in block.to_pylist()]
    assert sorted(os.listdir(folder))[1:] == [f"rows-{first:012d}.parquet" for first in (1, 3, 4)]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], DataError, "train has no rows"),
        (pd.DataFrame({"text": []}), DataError, "train has no rows"),
        ([{"a": 1}, "text"], DataError, "train, row 2 is of type str; give dicts"),
        ([{1: "x"}], DataError, "row 1 has the key 1; give dicts from column names"),
        ([{"a": "x"}, {"a": "y"}, {"a": 5}], DataError, "row 3: 'a' is 5, of type int; most are of type str"),
        (pd.DataFrame({"a": ["x", 5, None, "y"]}), DataError, "row 2: 'a' is 5, of type int; most are of type str"),
        ([{"a": "x"}, {"a": "\ud800"}], DataError, "row 2: 'a' can't be stored"),
        ([{"a": 2**70}], DataError, "row 1: 'a' can't be stored"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), DataError, "several columns are named 'a'"),
        (pa.table({"a": pa.array([()], pa.struct([]))}), DataError, "train can't be stored as Parquet"),
        ("train.csv", ConfigError, "of type builtins.str; give a .* for files, set data.train.path in the config"),
        ({"text": ["a"]}, ConfigError, "of type builtins.dict; give a ray.data.Dataset, a pandas DataFrame"),
    ],
)
def test_what_is_refused(prepared: Storage, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        write_given(prepared, "train", data)
    assert not prepared.exists("_given")


def test_the_config_names_the_files(tmp_path: Path) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    raw["data"] = {"train": {"sources": [{"path": "a.csv", "weight": 1}]}, "validation": {"fraction": 0.1}}
    config = parse(raw, with_given(raw, ["name=b"], {"train": ROWS[:50], "test": pd.DataFrame(ROWS[:9])}))
    assert config.name == "b" and isinstance(config.data.train.path, str) and config.data.train.sources is None
    assert config.data.train.path.startswith(f"{tmp_path}/runs/_prepared/_given/")
    assert rows_in(config.data.train.path) == ROWS[:50]
    assert config.data.validation is not None and config.data.validation.fraction == 0.1
    given = with_given(raw, [], {"train": ROWS[:50], "validation": ROWS[50:60]})
    validation = parse(raw, given).data.validation
    assert validation is not None and validation.fraction is None and validation.path is not None
    del raw["data"]
    config = parse(raw, with_given(raw, [{"data.prepared_path": tmp_path / "cache"}], {"train": ROWS[:50]}))
    assert config.data.train.paths[0].startswith(f"{tmp_path}/cache/_given/") and config.data.validation is None


def test_a_wrong_config_is_told_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    with pytest.raises(ConfigError, match="training.epochz"):
        raytrain.train(config, {"training.epochz": 1}, train=ROWS)
    with pytest.raises(TypeError, match="there is no argument 'trian'; data is given as train, validation, test"):
        raytrain.train(config, trian=ROWS)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="train: with from_sweep, the data is the sweep's"):
        raytrain.train(from_sweep=tmp_path, train=ROWS)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_given_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[raytrain.RunConfig] = []

    def note(raw: dict[str, Any], words: list[str], *_: Any, **__: Any) -> SweepResult:
        seen.append(parse_config(raw, words))
        return SweepResult(status=RunStatus.FINISHED, path="runs/a-space", metric="accuracy", mode="max")

    monkeypatch.setattr(sweep, "run_sweep", note)
    raytrain.tune(tiny_run(tmp_path, "a"), "name=b", train=ROWS[:50])
    assert seen[0].name == "b" and rows_in(seen[0].data.train.paths[0]) == ROWS[:50]


def test_objects_are_recognized_without_importing_their_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from raytrain.data.given import write_given; from raytrain.storage import Storage\n"
        f"write_given(Storage({str(tmp_path)!r}), 'train', [{{'a': 'x'}}])\n"
        "print([name for name in ('datasets', 'ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_hugging_face_dataset(prepared: Storage) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["negative", "positive"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = [{**row, "label": names.index(row["label"])} for row in ROWS]
    data = datasets.Dataset.from_list(rows, features=features)
    assert rows_in(write_given(prepared, "train", data)) == ROWS
    assert rows_in(write_given(prepared, "train", data.select([5, 3, 4]))) == [ROWS[5], ROWS[3], ROWS[4]]
    with pytest.raises(ConfigError, match="a DatasetDict with the splits a, b: give one of them"):
        write_given(prepared, "train", datasets.DatasetDict({"a": data, "b": data}))
