"""`raytrain.ray_train_loop` in a trainer of the user's own: the same experiment as `raytrain train`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from cluster import NodePool, node_pool
from running import (
    ENV,
    assert_same_curve,
    committed_steps,
    kill_all,
    losses,
    run_cli,
    samples_of_steps,
    start_local_ray,
    steps_done,
    tiny_run,
    write_config,
)
from training import Training, endless_run

import raytrain
from raytrain.runs import ray_train_loop
from raytrain.storage import Storage
from raytrain.training.job import POINTER
from raytrain.training.records import read_jsonl

pytestmark = pytest.mark.slow  # its trainers leave processes in the Ray that other tests share

ONE_EPOCH = (
    "training={epochs: 1, global_batch_size: 8, micro_batch_size: 2, precision: fp32, dropout: 0.1, zero_stage: 2}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Path]:
    """Ray is a new one afterwards: trainers leave processes, and what they hold, behind."""
    yield tmp_path_factory.mktemp("loop")
    ray.shutdown()
    start_local_ray()


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> raytrain.RunResult:
    """One worker of `raytrain train`."""
    return raytrain.train(tiny_run(folder, "undisturbed", ONE_EPOCH))


def fit(folder: Path, loop: Any, name: str, **arguments: Any) -> Any:
    """The result of a trainer with two workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name=name, storage_path=str(folder / "own")),
        **arguments,
    ).fit()


def test_a_trainer_of_ones_own_is_the_same_experiment(folder: Path, undisturbed: raytrain.RunResult) -> None:
    loop = raytrain.ray_train_loop(tiny_run(folder, "fixed", ONE_EPOCH))
    result = fit(folder, loop, "fixed")
    run = folder / "runs" / "fixed"
    assert samples_of_steps(run) == samples_of_steps(Path(undisturbed.run_path))
    assert_same_curve(losses(run), losses(Path(undisturbed.run_path)))
    assert {row["world_size"] for row in read_jsonl(Storage(str(run)), "metrics.jsonl")} == {2}
    assert (result.return_value["status"], result.return_value["step"]) == ("finished", 51)
    assert result.return_value["final_metrics"] == pytest.approx(undisturbed.final_metrics, abs=1e-4)
    assert (result.metrics["step"], result.metrics["loss"]) == (51, losses(run)[51])
    with result.checkpoint.as_directory() as pointer:
        found = json.loads(Path(pointer, POINTER).read_text())
    assert found["step"] == committed_steps(run)[-1] == 51
    assert Path(found["manifest"]).exists()


def test_an_error_for_people_fails_the_trainer(folder: Path) -> None:
    """In a process group of the loop's own: there is no TorchConfig."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    config = tiny_run(folder, "diverging", ONE_EPOCH, "training.optimizer.learning_rate=1e30")
    trainer = DataParallelTrainer(
        raytrain.ray_train_loop(config),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="diverging", storage_path=str(folder / "own")),
    )
    with pytest.raises(Exception, match="the run diverged") as failed:
        trainer.fit()
    assert {type(error) for error in failed.value.worker_failures.values()} == {raytrain.TrainingError}
    events = read_jsonl(Storage(str(folder / "runs" / "diverging")), "events.jsonl")
    assert next(event["cause"] for event in events if event["kind"] == "failure").startswith("step ")


def test_the_traceback_of_a_worker_is_kept(folder: Path) -> None:
    """In the run's folder, where that of `raytrain train` is."""
    loop = raytrain.ray_train_loop(tiny_run(folder, "broken", ONE_EPOCH))

    def broken() -> Any:
        from raytrain.training.trainer import Trainer

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("made by the test")

        if ray.train.get_context().get_world_rank() == 1:
            Trainer._train_step = fail  # type: ignore[method-assign]
        return loop()

    with pytest.raises(Exception, match="made by the test"):
        fit(folder, broken, "broken")
    (file,) = (folder / "runs" / "broken" / "errors").iterdir()
    assert file.name.endswith("-worker-1.txt") and "made by the test" in file.read_text()


def test_workers_that_leave_no_cpu_for_the_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train_loop, "_assigned", lambda resource: 2.0)
    monkeypatch.setattr(ray_train_loop.ray, "cluster_resources", lambda: {"CPU": 6.0})
    config = tiny_run(tmp_path, "crowded")
    assert ray_train_loop._no_room_for_data(config, 2) is None
    assert "lower ScalingConfig(num_workers) to 2" in str(ray_train_loop._no_room_for_data(config, 3))


class OwnTraining(Training):
    """`own_trainer.py`, running."""

    def start(self) -> subprocess.Popen[str]:
        env = {**ENV, "RAY_ADDRESS": self.pool.address, "RAY_AUTH_MODE": "disabled"}
        script, config = str(Path(__file__).with_name("own_trainer.py")), write_config(self.config, self.folder)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen([sys.executable, script, config, "1", "3"], env=env, **output)
        return self.process

    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl."""
        return read_jsonl(Storage(str(self.path)), "metrics.jsonl")

    def wait_for_row(self, condition: Callable[[dict[str, Any]], bool], what: str) -> float:
        """Wait until the newest step is such a one; returns the moment."""
        self.wait(lambda: condition(self.rows()[-1]), what)
        return time.time()

    def steps_redone(self) -> list[int]:
        """By each worker group but the first."""
        return [before["step"] + 1 - row["step"] for before, row in pairwise(self.rows()) if is_later(row, before)]

    def assert_undisturbed(self) -> None:
        """As of a Training that was ended in the middle of a step, without that step."""
        last = steps_done(self.path) - 2
        code, output = run_cli("train", write_config(endless_run(self.folder, "undisturbed", last), self.folder))
        assert code == 0, output
        alone = self.folder / "runs" / "undisturbed"
        assert {k: v for k, v in samples_of_steps(self.path).items() if k <= last} == samples_of_steps(alone)
        assert_same_curve({k: v for k, v in losses(self.path).items() if k <= last}, losses(alone))


@pytest.fixture
def pool() -> Iterator[NodePool]:
    """One node with room for one worker."""
    with node_pool(1) as cluster:
        yield cluster


def rays_workers() -> list[int]:
    """Process ids of Ray Train's workers on the nodes that this process has started."""
    found = psutil.Process().children(recursive=True)
    return sorted(process.pid for process in found if "RayTrainWorker" in " ".join(process.cmdline()))


def is_later(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a step was done by a later worker group."""
    return bool(row["attempt"] > before["attempt"])


@pytest.mark.timeout(900)
def test_rays_own_elasticity_grows_and_survives_a_kill(pool: NodePool, tmp_path: Path) -> None:
    """Ray Train decides on everything: two nodes are added, and later a worker's process is killed."""
    training = OwnTraining(pool, tmp_path, "checkpoint.save_every_steps=50", "training.zero_stage=2")
    try:
        training.wait_for_workers(1)
        added_at_s = time.time()
        pool.add()
        pool.add()
        grown_at_s = training.wait_for_row(lambda row: row["world_size"] == 3, "a step of three workers")
        left_at_s = training.events("finish")[-1]["time"]
        training.wait_for_workers(3)
        growth, before = training.steps_redone(), training.rows()[-1]
        killed_at_s = time.time()
        os.kill(rays_workers()[-1], signal.SIGKILL)
        again_at_s = training.wait_for_row(lambda row: is_later(row, before), "a step after the kill")
        step = steps_done(training.path)
        training.wait(lambda: steps_done(training.path) >= step + 20, "twenty more steps")
    finally:
        kill_all(training.process)
    redone = training.steps_redone()[len(growth)]
    print(
        f"growth in {len(growth)}: {grown_at_s - added_at_s:.1f} s, the last without a step for "
        f"{grown_at_s - left_at_s:.1f} s, {growth} redone; kill: {again_at_s - killed_at_s:.1f} s, {redone} redone"
    )
    assert not any(growth)
    assert 0 <= redone <= 100  # a checkpoint, and the one that was on its way
    training.assert_undisturbed()
