"""Goodput in a real run: stalls of known length are found again in their class, and the classes sum to the whole."""

import json
import subprocess
import sys

import pytest
from running import ENV, tiny_run, write_config

pytestmark = pytest.mark.slow

STALL_S = 4.0
# The command, with a worker that sleeps: once while it waits for data, in a save, and in loading.
STALLING = """
import sys, time
import raytrain.elastic.training_worker
from raytrain.elastic.training_worker import TrainingWorker

class StallingWorker(TrainingWorker):
    def work(self, assignment, job):
        from raytrain.data.stream import Stream
        from raytrain.training.saving import Saver
        from raytrain.training.worker import WorkerRun

        def slow(owner, name, at):
            calls, function = [], getattr(owner, name)
            def stalled(self, *args):
                calls.append(1)
                if len(calls) == at:
                    time.sleep({stall_s})
                return function(self, *args)
            setattr(owner, name, stalled)

        slow(Stream, "next_step", 20)
        slow(Saver, "save", 2)
        slow(WorkerRun, "_new_model", 1)
        return super().work(assignment, job)

raytrain.elastic.training_worker.worker_class = StallingWorker
from raytrain.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """goodput.json and summary.json of a run with the stalls."""
    folder = tmp_path_factory.mktemp("stalls")
    script = folder / "stalling.py"
    script.write_text(STALLING.format(stall_s=STALL_S))
    config = write_config(tiny_run(folder, "stalled", "training.epochs=1"), folder)
    done = subprocess.run([sys.executable, str(script), "train", config], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs" / "stalled"
    return tuple(json.loads((run / name).read_text()) for name in ("goodput.json", "summary.json"))


@pytest.mark.parametrize("name", ["data_wait", "checkpoint", "load"])
def test_a_stall_is_in_its_class(accounts: tuple[dict, dict], name: str) -> None:
    """To within 5 %, and in no other class: no step waits a second by itself here."""
    classes = accounts[0]["classes"]
    assert classes[name] >= 0.95 * STALL_S
    assert classes["useful"] + classes["other"] + classes["redone"] < STALL_S


def test_the_classes_sum_to_the_wall_time(accounts: tuple[dict, dict]) -> None:
    """One worker: its seconds are the command's, but for its last moments, in which no worker is left."""
    account, summary = accounts
    assert sum(account["classes"].values()) == pytest.approx(account["worker_seconds"], rel=0.01)
    assert account["worker_seconds"] <= summary["duration_s"]
    assert account["classes"]["other"] < 0.01 * account["worker_seconds"] + 1.0
