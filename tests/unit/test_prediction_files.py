"""The files of a prediction: what is refused or replaced, and parts whose columns differ."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.config import SourceFormat
from raytrain.data.readers.base import SourceFile
from raytrain.errors import ConfigError, TrainingError
from raytrain.inference import output
from raytrain.inference.output import Target, assemble, target_of
from raytrain.inference.source import check_target
from raytrain.storage import Storage


def write_parts(target: Target, *tables: pa.Table) -> list[str]:
    """Parts as workers leave them; returns their names."""
    names = []
    for number, table in enumerate(tables):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        names.append(f"00000-{number:07d}.arrow")
        target.work.commit_bytes(names[-1], sink.getvalue().to_pybytes())
    return names


def read(path: Path) -> list[SourceFile]:
    return [SourceFile(str(path), SourceFormat.JSONL, 1, "")]


@pytest.mark.parametrize("kind", ["itself", "link", "folder"])
@pytest.mark.parametrize("name", ["p.csv", "p.csv.quarantined.jsonl", "p.csv.work/rows.jsonl"])
def test_an_input_is_not_replaced(tmp_path: Path, name: str, kind: str) -> None:
    """Neither by the predictions, nor by the rows without one, nor by the parts, whatever path names it."""
    (tmp_path / "data").mkdir()
    source, target = tmp_path / "data" / name, target_of(f"{tmp_path}/data/p.csv")
    source.parent.mkdir(exist_ok=True)
    source.write_text("{}\n")
    path = source
    if kind == "link":
        path = tmp_path / "link.jsonl"
        path.symlink_to(source)
    elif kind == "folder":
        (tmp_path / "other").symlink_to(tmp_path / "data")
        path = tmp_path / "other" / name
    with pytest.raises(ConfigError, match="give another name"):
        check_target(target, read(path), overwrite=True)


def test_rows_without_a_prediction_are_kept(tmp_path: Path) -> None:
    """Each prediction has a file of its own for them, which only --overwrite replaces."""
    csv, parquet = target_of(f"{tmp_path}/p.csv"), target_of(f"{tmp_path}/p.parquet")
    assert csv.refused == "p.csv.quarantined.jsonl" != parquet.refused
    (tmp_path / csv.refused).write_text("{}\n")
    with pytest.raises(ConfigError, match=r"p\.csv\.quarantined\.jsonl exists already"):
        check_target(csv, [], overwrite=False)
    check_target(csv, [], overwrite=True)
    check_target(parquet, [], overwrite=False)
    assemble(parquet, write_parts(parquet, pa.table({"a": [1]})), [])
    assert (tmp_path / csv.refused).read_text() == "{}\n"
    (tmp_path / parquet.refused).mkdir()
    (tmp_path / "p.parquet").unlink()
    with pytest.raises(ConfigError, match="is a folder"):
        check_target(parquet, [], overwrite=True)


@pytest.mark.parametrize("shows_parts", [False, True], ids=["file system", "object store"])
@pytest.mark.parametrize("name", ["out/", "out.jsonl"])
def test_a_command_that_was_killed_while_it_wrote_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shows_parts: bool
) -> None:
    """Also where a reader can see what it has left, as on an object store."""
    if shows_parts:
        monkeypatch.setattr(Storage, "local_path", lambda *_: None)
    monkeypatch.setattr(output, "SHARD_ROWS", 10)
    target = target_of(f"{tmp_path}/{name}")
    parts = write_parts(target, *(pa.table({"a": list(range(20 * n, 20 * n + 20))}) for n in range(3)))
    target.work.commit_bytes("bad", b"{}\n")
    real_fitted, num_calls = output._fitted, 0

    def killed(*given: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        return real_fitted(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output, "_fitted", killed)
        # as SIGKILL would, which leaves what is written
        patch.setattr(Storage, "delete", lambda *_: None)
        assemble(target, parts, ["bad"])
    assert target.parent.exists(target.name) == shows_parts
    check_target(target, [], overwrite=False)
    assemble(target, parts, ["bad"])
    if name == "out/":
        found = pq.read_table(tmp_path / "out")["a"].to_pylist()
    else:
        found = [json.loads(line)["a"] for line in (tmp_path / name).read_text().splitlines()]
    assert found == list(range(60)) and (tmp_path / target.refused).read_text() == "{}\n"
    with pytest.raises(ConfigError, match="exists already"):
        check_target(target, [], overwrite=False)


def test_an_error_leaves_no_part_of_a_file_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a file shows it, though it is cut off."""
    monkeypatch.setattr(Storage, "local_path", lambda *_: None)
    target = target_of(f"{tmp_path}/out.jsonl")
    parts = write_parts(target, pa.table({"a": [1]}), pa.table({"a": [2]}))
    monkeypatch.setattr(output, "json_value", lambda row: row if row["a"] == 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        assemble(target, parts, [])
    assert not (tmp_path / "out.jsonl").exists()


LARGE = 2**53 + 1


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ([pa.array([LARGE]), pa.array([0.5]), pa.array([None])], [str(LARGE), "0.5", None]),
        ([pa.array([LARGE]), pa.array([7]), pa.array([None])], [LARGE, 7, None]),
        ([pa.array([1]), pa.array([0.5])], [1.0, 0.5]),
        ([pa.array([-1]), pa.array([2**63], pa.uint64())], ["-1", str(2**63)]),
        ([pa.array([[LARGE]]), pa.array([[0.5]])], [f"[{LARGE}]", "[0.5]"]),
        ([pa.array([{}]), pa.array([{}, None])], ["{}", "{}", None]),
    ],
)
def test_parts_whose_values_have_no_common_type(tmp_path: Path, columns: list[pa.Array], told: list[Any]) -> None:
    target = target_of(f"{tmp_path}/out.parquet")
    assemble(target, write_parts(target, *(pa.table({"x": column}) for column in columns)), [])
    assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == told


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    target = target_of(f"{tmp_path}/out.parquet")
    (name,) = write_parts(target, pa.table({"a": [1]}))
    target.work.commit_bytes(name, b"not a table, but longer than its head")
    with pytest.raises(TrainingError, match=r"can't be written to .*out\.parquet.* if a file in it is damaged"):
        assemble(target, [name], [])
