"""`raytrain.ray_train_loop` in a trainer of the user's own: the same experiment as `raytrain train`."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import assert_same_curve, committed_steps, losses, samples_of_steps, tiny_run

import raytrain
from raytrain.storage import Storage
from raytrain.training.job import POINTER
from raytrain.training.records import read_jsonl

ONE_EPOCH = "training={epochs: 1, global_batch_size: 8, micro_batch_size: 4, precision: fp32, dropout: 0.0}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    return tmp_path_factory.mktemp("loop")


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
