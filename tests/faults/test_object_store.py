"""A run whose folder is on an S3 server: killed in the middle, resumed, and the same as one on a disk (P9, P11)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import assert_same_curve, losses, run_cli, samples_of_steps, start_cli, wait_until, write_config
from s3 import s3_bucket
from training import endless_run

from raytrain.checkpoint.store import CheckpointStore
from raytrain.storage import Storage

pytestmark = pytest.mark.slow
SAVES = "checkpoint={save_every_steps: 20, snapshot_every_steps: null}"
STEPS = 200


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


def test_killed_and_resumed(tmp_path: Path, bucket: str) -> None:
    config = endless_run(tmp_path, "remote", STEPS, SAVES, f"storage_path={bucket}/runs")
    path = write_config(config, tmp_path)
    process = start_cli("train", path)
    run = Storage(f"{bucket}/runs/remote")
    store = CheckpointStore(run.at("checkpoints"))
    wait_until(lambda: [saved for saved in store.candidates() if saved.step >= 40], "the checkpoint of step 40")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, output = run_cli("train", path)
    assert code == 0, output
    alone = endless_run(tmp_path, "alone", STEPS)
    code, output = run_cli("train", write_config(alone, tmp_path))
    assert code == 0, output
    local = Storage(str(tmp_path / "runs" / "alone"))
    assert_same_curve(losses(run), losses(local))
    assert samples_of_steps(run) == samples_of_steps(local)
    assert sorted(run.list_names("best")) == sorted(local.list_names("best"))
    assert not [name for name in run.list_names() if name.startswith("best.")]
