"""A whole run whose storage fails at one place, for each place in the code that asks it for something (P11, P12)."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running import assert_same_curve, losses, samples_of_steps
from whole_run import CHANGES, Killed, StorageFaults, next_life, small_run, without_ray

from raytrain.checkpoint.store import CheckpointStore
from raytrain.data.prepare import find_prepared
from raytrain.elastic.allocation import Terms
from raytrain.errors import ConfigError
from raytrain.runs.result import RunResult
from raytrain.runs.run import run_training
from raytrain.storage import Storage
from raytrain.training.export import check_exported
from raytrain.training.outcome import StopReason
from raytrain.training.records import read_jsonl

INTERVAL = 2  # steps between checkpoints
OUTAGE_S = 60.0
# Of all places, the tests that are not slow take every so-manieth one.
EVERY = 120

Place = tuple[tuple[str, ...], int]


class Runs:
    """The same run again and again, each time in a new folder."""

    def __init__(self, folder: Path, faults: StorageFaults, is_object_store: bool):
        self.folder, self.runs, self.faults = folder, folder / "runs", faults
        faults.is_object_store, faults.draws_report = is_object_store, True
        self.config = small_run(folder)
        self.train(None)
        self.places: list[Place] = []
        for place, count in sorted(faults.seen.items()):
            self.places += [(place, number) for number in sorted({1, count})]
        self.losses, self.samples = losses(self.run), samples_of_steps(self.run)
        self.best = self._best()
        self.check()

    @property
    def run(self) -> Storage:
        return Storage(str(self.runs / "a"))

    def train(self, place: Place | None, how: str = "before", outage_s: float = 0.0) -> RunResult:
        """Give the command in a folder where nothing is; it pauses once, as a trial of a population does, and is
        resumed."""
        shutil.rmtree(self.runs, ignore_errors=True)
        self.faults.begin(place, how, outage_s)
        if place is not None:
            self.faults.draws_report = any("reports." in name for name in place[0])
        paused = run_training(self.config, terms=Terms(until_step=5))
        if paused.stop_reason is not StopReason.PAUSED:
            return paused
        next_life(self.faults)
        return run_training(self.config)

    def again(self) -> RunResult:
        """Give it again, with storage that works."""
        self.faults.begin(None)
        next_life(self.faults)
        return run_training(self.config)

    def check(self) -> None:
        """What the run has left is right and whole."""
        self.faults.begin(None)
        assert_same_curve(losses(self.run), self.losses)
        assert samples_of_steps(self.run) == self.samples
        found = CheckpointStore(self.run.at("checkpoints")).newest_good(report=lambda *damage: pytest.fail(str(damage)))
        assert found is not None and found.step == 8
        assert self._best() == self.best
        check_exported(str(self.runs / "a" / "best"), sorted(self.best["files"]), self.best)
        measured = {(row["split"], row["step"]) for row in read_jsonl(self.run, "evals.jsonl")}
        assert measured == {("validation", 4), ("validation", 8), ("test", self.best["step"])}
        assert json.loads(self.run.read_bytes("summary.json"))["status"] == "finished"
        left = [name for name in self.run.list_names() if name.startswith("best") or ".tmp" in name]
        assert left == ["best"], left
        assert find_prepared(self.config) is not None
        self.check_events()

    def check_events(self) -> None:
        """No checkpoint was taken for damaged, none that was committed was passed over, and no more steps were done
        again than lie between two."""
        self.faults.begin(None)
        saved, done = 0, 0
        for event in read_jsonl(self.run, "events.jsonl"):
            assert event["kind"] not in ("damaged_checkpoint", "damaged_snapshot"), event
            if event["kind"] == "checkpoint":
                saved = event["step"]
            if event["kind"] == "restore":
                assert event["step"] >= saved, f"step {saved} was saved, and the group went back to {event['step']}"
        attempts = Counter(row["step"] for row in read_jsonl(self.run, "metrics.jsonl"))
        done = sum(attempts.values()) - len(attempts)
        assert done <= 2 * INTERVAL, f"{done} steps were done again"

    def _best(self) -> dict[str, Any]:
        return json.loads(self.run.read_bytes("best/raytrain.json"))


@pytest.fixture(params=["file system", "object store"])
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, without_ray(monkeypatch, tmp_path / "runs"), request.param == "object store")


ALL = pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.slow)])


@ALL
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("first", "how", "outage_s"), [(0, "before", 0.0), (40, "after", 0.0), (80, "before", OUTAGE_S)]
)
def test_storage_that_fails(runs: Runs, every: int, first: int, how: str, outage_s: float) -> None:
    """Once, or for a minute: the run comes through, and it costs no worker group. Only the check of storage_path, which
    finds mistakes, is made once: it refuses the command, which comes through the next time."""
    num_missed = 0
    places = runs.places[first % every :: every]
    for place in places:
        try:
            result = runs.train(place, how, outage_s)
            assert (result.is_done, result.failures) == (True, 0), (place, result)
        except ConfigError as error:
            if "can't write there" not in str(error):
                raise
            assert runs.again().is_done
        num_missed += not runs.faults.is_hit  # how often logs are uploaded depends on the time
        runs.check()
    assert num_missed <= 1 + len(places) // 10


@ALL
@pytest.mark.timeout(1800)
def test_a_process_that_ends(runs: Runs, every: int) -> None:
    """Killed after each change of the storage: the same command comes through."""
    for place in [place for place in runs.places if place[0][0] in CHANGES][::every]:
        try:
            runs.train(place, "killed")
            assert not runs.faults.is_hit, f"{place}: the end of the process was caught"
        except Killed:
            pass
        runs.check_events()
        assert runs.again().is_done
        runs.check()
