"""Data from Python and from a database on a real Ray: its order, its lineage, and that a run needs it only once."""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import ENV, committed_steps, kill_all, run_cli, samples_of_steps, tiny_run, wait_until

from raytrain.data.given import write_given
from raytrain.data.prepare import prepare
from raytrain.data.show import source_texts
from raytrain.errors import DataError
from raytrain.storage import Storage
from tests.tiny import make_reviews

ROWS = make_reviews(200, 0)


@pytest.mark.usefixtures("local_ray")
def test_the_rows_of_a_ray_dataset_keep_their_order(tmp_path: Path) -> None:
    import ray.data

    def slow_at_first(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(1.0 if batch["text"][0] == ROWS[0]["text"] else 0.0)
        return batch

    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("no such word")

    dataset = ray.data.from_items(ROWS, override_num_blocks=4)
    dataset.context.execution_options.preserve_order = False
    folder = write_given(Storage(str(tmp_path)), "train", dataset.map_batches(slow_at_first))
    assert pq.read_table(f"{folder}/rows-000000000001.parquet").to_pylist() == ROWS
    assert dataset.context.execution_options.preserve_order is False
    with pytest.raises(DataError, match="train: the Ray Dataset has failed: ") as caught:
        write_given(Storage(str(tmp_path)), "train", dataset.map_batches(fail))
    assert "no such word" in str(caught.value.__cause__)


@pytest.mark.usefixtures("local_ray")
def test_a_database_is_prepared_and_its_rows_are_found_again(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table reviews(id integer primary key, text, label)")
        connection.executemany("insert into reviews(text, label) values(:text, :label)", ROWS)
    words = [f"data.train.path=sqlite:///{tmp_path}/a.db", "data.train.order_by=id"]
    words += ["data.train.query=select * from reviews", "data.validation=null", "data.test=null"]
    config = tiny_run(tmp_path, "a", *words)
    store = prepare(config)
    assert store.manifest.splits["train"].num_samples == len(ROWS)
    place = f"sqlite:///{tmp_path}/a.db#train:7"
    assert source_texts(config, [place]) == {place: ROWS[6]["text"]}
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("delete from reviews where id = 7")
    assert prepare(config).manifest.splits["train"].num_samples == len(ROWS) - 1


@pytest.mark.slow
def test_a_run_on_data_from_python_is_resumed_without_it(tmp_path: Path) -> None:
    raw = tiny_run(tmp_path, "run").model_dump(mode="json", exclude_unset=True)
    for split in ("train", "validation", "test"):
        del raw["data"][split]
    inputs = [tmp_path / "raw.json", tmp_path / "rows.json"]
    for path, content in zip(inputs, (raw, ROWS), strict=True):
        path.write_text(json.dumps(content))
    code = (
        "import json, raytrain, pandas\n"
        "raw, rows = (json.load(open(name)) for name in ('raw.json', 'rows.json'))\n"
        "raytrain.train(raw, train=rows[:150], validation=pandas.DataFrame(rows[150:]))\n"
    )
    run = tmp_path / "runs" / "run"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=ENV, start_new_session=True)
    wait_until(lambda: committed_steps(run), "a checkpoint")
    kill_all(process)
    for path in inputs:
        path.unlink()
    exit_code, output = run_cli("resume", str(run), cwd=Path("/"))
    assert exit_code == 0 and "finished at step" in output, output
    paths = json.loads((run / "data.json").read_text())["paths"]
    assert [pq.read_table(paths[split][0]).to_pylist() for split in paths] == [ROWS[:150], ROWS[150:]]
    first_epoch = [id for step, ids in samples_of_steps(run).items() if step <= 19 for id in ids]
    assert sorted(first_epoch) == list(range(150))
