"""Whole runs on a real GPU, started as a user starts them: what `auto` takes, and what a run goes through there.

Skipped on a machine without a GPU. With one GPU a group has one worker; what NCCL does between several is not seen.
"""

import json
import time
from pathlib import Path

import pytest
import torch
from cluster import node_pool
from running import (
    assert_same_curve,
    kill_all,
    losses,
    resolved,
    run_cli,
    start_cli,
    steps_done,
    summary,
    tiny_run,
    wait_until,
    worker_processes,
    write_config,
)
from training import Training, endless_run

from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

# GPU and CPU add up in other orders, and a run's 153 steps carry the difference on.
FP32_TOLERANCE = 2e-3
ON_THE_GPU = ("workers.gpu=true", "workers.max=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def train(folder: Path, name: str, *overrides: str) -> Path:
    code, output = run_cli("train", write_config(tiny_run(folder, name, *overrides), folder))
    assert code == 0, output
    return folder / "runs" / name


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> Path:
    return train(folder, "cpu", "workers.gpu=false", "workers.max=1")


@pytest.fixture(scope="module")
def on_gpu(folder: Path) -> Path:
    return train(folder, "gpu", *ON_THE_GPU)


def test_the_same_curve_as_on_a_cpu(on_cpu: Path, on_gpu: Path) -> None:
    assert_same_curve(losses(on_gpu), losses(on_cpu), FP32_TOLERANCE)
    assert summary(on_gpu)["final_metrics"] == pytest.approx(summary(on_cpu)["final_metrics"], abs=0.06)


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_16_bits_learn_as_well(folder: Path, on_cpu: Path, precision: str) -> None:
    run = train(folder, precision, f"training.precision={precision}", "workers.max=1", "training.zero_stage=2")
    assert json.loads((run / "plan.json").read_text())["use_gpu"]  # workers.gpu is auto
    curve, other = losses(run), losses(on_cpu)
    assert sum(curve.values()) / len(curve) == pytest.approx(sum(other.values()) / len(other), abs=0.02)
    rows = read_jsonl(Storage(str(run)), "metrics.jsonl")
    assert ("loss_scale" in rows[-1]) == (precision == "fp16")
    assert resolved(run)["training"]["precision"] == precision
    print(precision, rows[-1])


def test_a_killed_worker_goes_on_from_a_snapshot(folder: Path) -> None:
    config = endless_run(
        folder, "killed", 1000, *ON_THE_GPU, "checkpoint={save_every_steps: 100000, snapshot_every_steps: 5}"
    )
    process, run = start_cli("train", write_config(config, folder)), folder / "runs" / "killed"
    try:
        wait_until(lambda: steps_done(run) >= 400 or process.poll() is not None, "some hundred steps", 90)
        workers = worker_processes(process.pid)
        assert workers
        for worker in workers:
            worker.kill()
        output, _ = process.communicate(timeout=120)
    finally:
        kill_all(process)
    assert process.returncode == 0, output
    events = read_jsonl(Storage(str(run)), "events.jsonl")
    assert [event["source"] for event in events if event["kind"] == "restore"] == ["snapshot"]
    print([event for event in events if event["kind"] not in ("checkpoint",)][-6:])
    whole = endless_run(folder, "whole", 1000, *ON_THE_GPU)
    code, output = run_cli("train", write_config(whole, folder))
    assert code == 0, output
    assert_same_curve(losses(run), losses(folder / "runs" / "whole"))


def test_a_drained_node_hands_the_run_over(tmp_path: Path) -> None:
    """Two raylets, each with this machine's first GPU: the run saves on one and goes on, on the other."""
    with node_pool(0) as pool:
        first = pool.add(num_gpus=1)
        training = Training(pool, tmp_path, "workers={max: 1, cpus: 2, data_cpus: 0.33, gpu: true}")
        try:
            training.wait_for_workers(1)
            pool.add(num_gpus=1)
            time.sleep(2)
            pool.drain(first, deadline_s=60)
            training.wait(lambda: len(training.events("start")) > 1, "a second group")
            training.wait_for_workers(1)
            output = training.stop()
        finally:
            kill_all(training.process)
        assert training.nodes() != [first.node_id]
        assert "Traceback" not in output


def test_a_model_that_does_not_fit_is_told_what_to_do(folder: Path) -> None:
    """The GPU is all but full, and the message is not a stack trace."""
    free, _ = torch.cuda.mem_get_info()
    taken = [torch.empty(free - 1_500 * 2**20, dtype=torch.uint8, device="cuda")]
    try:
        large = "model.config={model_type: bert, vocab_size: 64, hidden_size: 2048, num_hidden_layers: 6, "
        large += "num_attention_heads: 16, intermediate_size: 8192, max_position_embeddings: 128}"
        config = tiny_run(folder, "large", *ON_THE_GPU, large, "workers.max_failures=1")
        code, output = run_cli("train", write_config(config, folder))
    finally:
        taken.clear()
        torch.cuda.empty_cache()
    print(output[-3000:])
    assert code == 1
    assert "out of memory" in output
    assert "training.micro_batch_size" in output
    assert "raytrain plan" in output


def test_the_doctor_finds_the_gpu() -> None:
    code, output = run_cli("doctor")
    print(output)
    assert torch.cuda.get_device_name(0).split()[-1] in output
    assert code in (0, 1)
