"""P12: SIGKILL of workers, of the driver and of the whole tree at random moments, with evaluations and saves at the
same steps. RAYTRAIN_TEST_KILLS=100 is the long form, which takes most of an hour on two cores; RAYTRAIN_TEST_SEED draws
others."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import (
    assert_same_curve,
    kill_all,
    losses,
    run_cli,
    samples_of_steps,
    start_cli,
    steps_done,
    wait_until,
    worker_processes,
    write_config,
)
from training import STARTED, endless_run

from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

KILLS, SEED = int(os.environ.get("RAYTRAIN_TEST_KILLS", "8")), int(os.environ.get("RAYTRAIN_TEST_SEED", "0"))
SAVE, SNAPSHOT = 40, 10  # steps
WAIT_S = 12.0  # at most, from the first new step to the next kill
SETTLED_S = 10.0  # after this a group's snapshots arrive: the actors that keep them have started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 60 * KILLS)]


class Killed:
    """A command that is given again whenever it was killed."""

    def __init__(self, folder: Path):
        validation = f"data.validation={{path: {folder / 'data' / 'validation.parquet'}}}"
        self.same = (validation, f"training.eval_every_steps={SAVE}")
        # With fewer in a group, a kill would often hit one that is to join, which costs no step.
        elastic = ("workers={min: 2, max: 2, max_failures: 1000}", "ray.num_cpus=4")
        saves = f"checkpoint={{save_every_steps: {SAVE}, snapshot_every_steps: {SNAPSHOT}}}"
        self.folder, self.path = folder, folder / "runs" / "killed"
        self.config = endless_run(folder, "killed", 100_000, *self.same, *elastic, saves)
        self.moment = random.Random(SEED)
        self.killed_at = 0
        """Steps that were done at the last kill."""
        self.start()

    def start(self) -> None:
        self.process = start_cli("train", write_config(self.config, self.folder))
        STARTED.append(self.process)

    def kill(self, what: str) -> None:
        """After some steps of the newest group, or sometimes while it begins."""
        if self.moment.random() < 0.8:
            wait_until(self._is_training, f"a group that trains, to kill its {what}")
            time.sleep(self.moment.uniform(0, WAIT_S))
        if what == "worker":
            wait_until(lambda: worker_processes(self.process.pid), "a worker's process")
        self.killed_at = steps_done(self.path)
        if what == "worker":
            self.moment.choice(worker_processes(self.process.pid)).kill()
        elif what == "driver":
            os.kill(self.process.pid, signal.SIGKILL)
        else:
            kill_all(self.process)
        if what != "worker":
            self.process.stdout.close()  # Ray's processes may keep it open for a while
            self.process.wait()
            self.start()

    def _is_training(self) -> bool:
        """Whether there were new steps since the last kill, which may have been one of a process that was to join."""
        assert self.process.poll() is None, f"the run ended: {self.process.communicate()[0]}"
        return steps_done(self.path) > self.killed_at

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_jsonl(Storage(str(self.path)), "events.jsonl") if event["kind"] in kinds]

    def stop(self) -> None:
        step = steps_done(self.path)
        wait_until(lambda: steps_done(self.path) >= step + 2 * SAVE, "the run to continue")
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=120)
        assert "raytrain resume" in output, output

    def check_redone_steps(self) -> list[tuple[str, int]]:
        """(kind, steps done again) of each group but the first."""
        committed, began_at_s, found = 0, 0.0, []
        for event in self.events("checkpoint", "restore", "begin", "failure", "resize", "damaged_checkpoint"):
            assert event["kind"] != "damaged_checkpoint", event
            if event["kind"] == "checkpoint":
                committed = event["step"]
            elif event["kind"] == "restore":
                assert event["step"] >= committed, f"step {committed} was committed before {event}"
            elif "steps_redone" in event:
                redone = event["steps_redone"]
                found.append((event["kind"], redone))
                assert redone <= (0 if event["kind"] == "resize" else 2 * SAVE), event
                if event["kind"] == "failure" and event["left_at_s"] - began_at_s > SETTLED_S:
                    assert redone <= 2 * SNAPSHOT, event  # one may be on its way
                began_at_s = event["time"]
        return found[1:]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    yield
    for process in STARTED:
        if process.poll() is None:
            kill_all(process)
    STARTED.clear()


def test_killed_again_and_again(tmp_path: Path) -> None:
    run = Killed(tmp_path)
    kinds = ["worker", "worker", "driver", "worker", "tree"]
    for number in range(KILLS):
        run.kill(kinds[number % len(kinds)])
    run.stop()
    redone = run.check_redone_steps()
    print("steps done again:", redone)
    num_new = sum(kind != "resize" for kind, _ in redone)
    assert num_new >= KILLS // 2, "only a kill while a group begins, or of a process that is to join, leaves no trace"
    alone = endless_run(tmp_path, "undisturbed", steps_done(run.path), *run.same)
    code, output = run_cli("train", write_config(alone, tmp_path), timeout_s=240 + 30 * KILLS)
    assert code == 0, output
    whole = tmp_path / "runs" / "undisturbed"
    assert samples_of_steps(run.path) == samples_of_steps(whole)
    assert_same_curve(losses(run.path), losses(whole))
