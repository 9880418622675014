"""What a new worker's process does beforehand works with a config as most people have it."""

import multiprocessing
from pathlib import Path

import pytest
from running import tiny_run

from raytrain.config import RunConfig


def _warm_up(raw: dict) -> None:
    from raytrain.training.warm import warm_up

    warm_up(RunConfig.model_validate(raw), use_gpu=False)


@pytest.mark.parametrize("zero_stage", ["auto", "3"])
def test_a_process_warms_up(tmp_path: Path, zero_stage: str) -> None:
    config = tiny_run(tmp_path, "warm", f"training.zero_stage={zero_stage}")
    process = multiprocessing.get_context("spawn").Process(target=_warm_up, args=(config.model_dump(mode="json"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
