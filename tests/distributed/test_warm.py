"""What a new worker's process does beforehand works with a config as most people have it."""

import multiprocessing
from pathlib import Path

import pytest
from running import tiny_run

from raytrain.config import RunConfig


def _warm_up(raw: dict) -> None:
    from raytrain.training.warm import warm_up

    warm_up(RunConfig.model_validate(raw), use_gpu=False)


# Without the second option ZeRO-3 would keep the small parameter whole.
NOTHING_KEPT = "training.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"


@pytest.mark.parametrize(
    "options", [["training.zero_stage=auto"], ["training.zero_stage=3", NOTHING_KEPT]], ids=["auto", "3"]
)
def test_a_process_warms_up(tmp_path: Path, options: list[str]) -> None:
    config = tiny_run(tmp_path, "warm", *options)
    process = multiprocessing.get_context("spawn").Process(target=_warm_up, args=(config.model_dump(mode="json"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
