"""What a sweep remembers of its trials, and how it names what they failed of."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from ray.tune import TuneError

from raytrain.errors import FailureCode
from raytrain.storage import Storage
from raytrain.tuning.callback import failure_of
from raytrain.tuning.space.space import Objective
from raytrain.tuning.trials import BEST, TrialFailure, TrialTable


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "sweep"))


def test_a_board_is_read_again_as_it_was(root: Storage) -> None:
    trial_table = TrialTable(root, "max")
    for name in ("trial_0000", "trial_0001"):
        trial_table.add(name, {"seed": 1})
        trial_table.update(name, status="running")
    trial_table.evaluated("trial_0000", 10, 0.5, 1)
    trial_table.evaluated("trial_0000", 20, 0.4, 1)
    trial_table.update("trial_0000", status="pruned")
    again = TrialTable(root, "max")
    assert again.rows["trial_0000"] == trial_table.rows["trial_0000"]
    assert again.rows["trial_0000"].best_step == 10
    assert again.rows["trial_0001"].status == "running"
    assert again.add("trial_0000", {"seed": 2}).values == {"seed": 1}, "a known trial keeps its values"


def test_the_model_that_a_trial_keeps_at_a_tie_is_its_best(root: Storage) -> None:
    """Its values are those that `train --from-sweep` takes."""
    trial_table = TrialTable(root, "max")
    trial_table.add("a", {"rate": 1})
    trial_table.evaluated("a", 10, 0.5, 0, is_kept=True)
    trial_table.update("a", values={"rate": 2})
    assert trial_table.evaluated("a", 20, 0.5, 0).best_step == 10
    assert trial_table.evaluated("a", 30, 0.5, 0, is_kept=True).values_at_best == {"rate": 2}
    assert trial_table.evaluated("a", 40, 0.4, 0, is_kept=True).best_step == 30


def test_what_is_told_again_counts_once(root: Storage) -> None:
    trial_table = TrialTable(root, "max")
    trial_table.add("a", {})
    for step, value in [(10, 0.5), (20, 0.6), (10, 0.5), (20, 0.6), (30, float("nan"))]:
        trial_table.evaluated("a", step, value, 0)
    assert trial_table.rows["a"].history == [(10, 0.5), (20, 0.6)]
    assert trial_table.steps == 20


@pytest.mark.parametrize(("mode", "best"), [("max", "b"), ("min", "a")])
def test_the_best_did_not_fail(root: Storage, mode: str, best: str) -> None:
    trial_table = TrialTable(root, mode)
    for name, value in (("a", 0.1), ("b", 0.9), ("c", 0.99), ("d", 0.01)):
        trial_table.add(name, {})
        trial_table.evaluated(name, 5, value, 0)
    trial_table.update("c", status="failed")
    trial_table.update("d", status="failed")
    assert trial_table.best is not None
    assert trial_table.best.name == best
    assert trial_table.share_failed() == 1.0


def test_a_failure_is_told_in_the_trials_own_words(root: Storage) -> None:
    died = TuneError("Traceback:\nray.exceptions.ActorDiedError: The actor died")
    told = TrialFailure(FailureCode.WORKER_DIED, "ray.exceptions.ActorDiedError: The actor died")
    assert failure_of(root, "a", died) == told
    assert failure_of(root, "a", None) == TrialFailure(FailureCode.WORKER_DIED, "its process died")
    raised = RayTaskError("run", "Traceback:\nKeyError: 'CLASSROOM'", KeyError("CLASSROOM"))
    assert failure_of(root, "a", raised).code is FailureCode.INTERNAL
    own = TrialFailure(FailureCode.DIVERGED, "step 3: loss nan")
    root.write_bytes("trials/a/failure.json", json.dumps(asdict(own)).encode())
    assert failure_of(root, "a", died) == own
    assert str(own) == "diverged: step 3: loss nan"


def test_a_failure_is_read_again_as_it_was(root: Storage) -> None:
    failure = TrialFailure(FailureCode.OUT_OF_MEMORY, "worker 0: CUDA out of memory")
    table = TrialTable(root, "max")
    table.add("a", {})
    table.update("a", status="failed", failure=failure)
    assert TrialTable(root, "max").rows["a"].failure == failure


def test_a_replaced_trial_is_as_good_as_its_source(root: Storage) -> None:
    """Its own best model is gone; and what was best was so with the values of that time."""
    trial_table = TrialTable(root, "max")
    for name, rate, value in (("peaked", 0.1, 0.95), ("steady", 0.2, 0.90)):
        trial_table.add(name, {"rate": rate})
        trial_table.evaluated(name, 10, value, 0)
    best = {key: getattr(trial_table.rows["steady"], key) for key in BEST}
    trial_table.exchanged("peaked", {"rate": 0.16}, 20, "steady", best)
    for known in (trial_table, TrialTable(root, "max")):
        assert known.rows["peaked"].best_value == 0.90
        assert known.rows["peaked"].values_at_best == {"rate": 0.2}
        assert known.rows["peaked"].sources == [(20, "steady")]
    assert trial_table.evaluated("peaked", 30, 0.97, 0).values_at_best == {"rate": 0.16}


SIZE = Objective(metric="num_parameters")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_trial_beats(reached: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trial_table = TrialTable(Storage(folder), "max")
        for index, (accuracy, size) in enumerate(reached):
            trial_table.add(f"t{index}", {})
            trial_table.evaluated(f"t{index}", 5, accuracy, 0, {"num_parameters": size})
        front = {row.name for row in trial_table.front([SIZE])}
    for index, (accuracy, size) in enumerate(reached):
        is_beaten = any(a >= accuracy and s <= size and (a, s) != (accuracy, size) for a, s in reached)
        assert (f"t{index}" in front) == (not is_beaten)


def test_objectives_are_those_of_the_best_model(root: Storage) -> None:
    trial_table = TrialTable(root, "max")
    trial_table.add("a", {})
    for step, accuracy, loss in ((5, 0.5, 0.9), (10, 0.8, 0.7), (15, 0.7, 0.2)):
        trial_table.evaluated("a", step, accuracy, 0, {"loss": loss})
    assert trial_table.reached("a", [Objective(metric="loss")]) == [0.8, -0.7]
    assert TrialTable(root, "max").add("a", {}).name == "a"
    assert trial_table.reached("a", [SIZE]) is None, "one that is not known"
    trial_table.update("a", status="failed")
    assert trial_table.reached("a", [Objective(metric="loss")]) is None
