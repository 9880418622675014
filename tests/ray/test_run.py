"""Whole runs, started as a user starts them: the same experiment at any world size, and after any interruption."""

import json
import re
import signal
from pathlib import Path

import pytest
from running import (
    assert_same_curve,
    committed_steps,
    kill_all,
    losses,
    run_cli,
    samples_of_steps,
    start_cli,
    steps_done,
    summary,
    tiny_run,
    wait_until,
    worker_processes,
    write_config,
)
from tiny import make_reviews, write_parquet, write_reviews

from raytrain.config import RunConfig
from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

EPOCH_STEPS = 51  # 403 samples in batches of 8: the last step has 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The run that all others are compared with: one worker, nothing happens to it."""
    code, output = train(folder, tiny_run(folder, "undisturbed"))
    assert code == 0, output
    return folder / "runs" / "undisturbed"


def train(folder: Path, config: RunConfig) -> tuple[int, str]:
    return run_cli("train", write_config(config, folder))


def assert_same_experiment(run: Path, undisturbed: Path) -> None:
    """P1, P2, P6 and the fp32 curve: the same samples in every step, the same losses within 1e-4."""
    assert samples_of_steps(run) == samples_of_steps(undisturbed)
    assert_same_curve(losses(run), losses(undisturbed))


def test_an_undisturbed_run_does_what_it_promises(undisturbed: Path) -> None:
    steps = samples_of_steps(undisturbed)
    assert list(steps) == list(range(1, 3 * EPOCH_STEPS + 1))
    for epoch in range(3):
        ids = [i for step in range(EPOCH_STEPS) for i in steps[1 + epoch * EPOCH_STEPS + step]]
        assert sorted(ids) == list(range(403))  # P1
    evaluations = [json.loads(line) for line in (undisturbed / "evals.jsonl").read_text().splitlines()]
    assert [(row["split"], row["step"]) for row in evaluations[:3]] == [
        ("validation", EPOCH_STEPS * i) for i in (1, 2, 3)
    ]
    assert [row["epoch"] for row in evaluations[:3]] == [1, 2, 3]
    assert evaluations[2]["best"]["step"] == summary(undisturbed)["best_step"]
    rows = read_jsonl(Storage(str(undisturbed)), "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1 + (row["step"] - 1) // EPOCH_STEPS for row in rows]
    assert evaluations[-1]["split"] == "test"
    assert sum(map(sum, evaluations[-1]["tables"]["confusion"]["counts"])) == 37  # every sample exactly once
    result = summary(undisturbed)
    assert (result["status"], result["step"], result["samples_seen"]) == ("finished", 3 * EPOCH_STEPS, 3 * 403)
    curve = losses(undisturbed)
    assert sum(curve[step] for step in range(140, 150)) < sum(curve[step] for step in range(1, 11))  # it learns
    account = json.loads((undisturbed / "goodput.json").read_text())
    assert sum(account["classes"].values()) == pytest.approx(account["worker_seconds"], abs=0.01)
    assert account["classes"]["other"] < 0.01 * account["worker_seconds"]
    assert account["worker_seconds"] == pytest.approx(
        result["duration_s"], rel=0.25
    )  # one worker; Ray's end is not in it
    for name in (
        "config.yaml",
        "plan.json",
        "commands.jsonl",
        "report.html",
        "best/model.safetensors",
        "best/README.md",
    ):
        assert (undisturbed / name).exists(), name
    assert not any(path.suffix in (".pt", ".pkl", ".bin") for path in undisturbed.rglob("*"))  # P13


def test_the_best_model_is_an_ordinary_transformers_folder(undisturbed: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(undisturbed / "best")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "best")
    logits = model(**tokenizer("a good film", return_tensors="pt", return_token_type_ids=False)).logits
    assert logits.shape == (1, 2)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    accuracy = summary(undisturbed)["final_metrics"]["accuracy"]
    assert re.search(rf"\| accuracy \| \d\.\d+ \| {accuracy:.4f} \|", (undisturbed / "best" / "README.md").read_text())


@pytest.mark.slow  # CI has tests/faults/test_resize.py, and `raytrain verify` at another number of workers
@pytest.mark.parametrize(("workers", "zero_stage"), [(2, 2), (3, 3)])
def test_another_world_size_is_the_same_experiment(
    folder: Path, undisturbed: Path, workers: int, zero_stage: int
) -> None:
    config = tiny_run(
        folder,
        f"workers_{workers}",
        f"workers.min={workers}",
        f"workers.max={workers}",
        f"training.zero_stage={zero_stage}",
    )
    code, output = train(folder, config)
    assert code == 0, output
    assert_same_experiment(folder / "runs" / config.name, undisturbed)
    assert summary(folder / "runs" / config.name)["final_metrics"] == pytest.approx(
        summary(undisturbed)["final_metrics"], abs=1e-4
    )


@pytest.mark.parametrize(
    "kill_at",
    [
        pytest.param(20, id="mid_epoch", marks=pytest.mark.slow),
        pytest.param(51, id="epoch_end"),
        pytest.param(70, id="second_epoch", marks=pytest.mark.slow),
    ],
)
def test_a_killed_driver_is_resumed_by_the_same_command(folder: Path, undisturbed: Path, kill_at: int) -> None:
    """kill -9 of everything; then the same command, at another world size and ZeRO stage."""
    name = f"killed_at_{kill_at}"
    run = folder / "runs" / name
    slow = tiny_run(folder, name, "checkpoint.save_every_steps=3", "tracking.tensorboard=false")
    process = start_cli("train", write_config(slow, folder))
    try:
        wait_until(lambda: steps_done(run) >= kill_at and committed_steps(run), f"step {kill_at} of {name}")
    finally:
        kill_all(process)
    assert kill_at <= steps_done(run) < 3 * EPOCH_STEPS, "the run was faster than the kill"
    again = tiny_run(folder, name, "workers.min=2", "workers.max=2", "training.zero_stage=auto")
    code, output = train(folder, again)
    assert code == 0, output
    assert "ZeRO stage 0, the lowest that fits" in output
    assert_same_experiment(run, undisturbed)


def test_sigterm_saves_and_leaves_and_resume_goes_on(folder: Path, undisturbed: Path) -> None:
    """Ctrl-C and SIGTERM: a checkpoint of that very step, exit code 1, and the way to go on."""
    name = "stopped"
    run = folder / "runs" / name
    config = tiny_run(folder, name, "checkpoint.save_every_steps=500", "training.epochs=3")
    process = start_cli("train", write_config(config, folder))
    wait_until(lambda: steps_done(run) >= 2, "two steps")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    if summary(run)["status"] == "finished":
        pytest.skip("the run was faster than the signal")
    assert process.returncode == 1, output
    assert "raytrain resume" in output
    assert output.count("press Ctrl-C again") == 1
    assert committed_steps(run) == [summary(run)["step"]] == [steps_done(run)]  # not a step is lost
    code, output = run_cli("resume", str(run))
    assert code == 0, output
    assert_same_experiment(run, undisturbed)
    attempts = [json.loads(line)["attempt"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(attempts) == 3 * EPOCH_STEPS  # nothing was done twice


def test_a_finished_run_is_not_run_again(folder: Path, undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    code, output = train(folder, tiny_run(folder, "undisturbed"))
    assert code == 0
    assert "already done" in output
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_by_key(folder: Path, undisturbed: Path) -> None:
    changed = tiny_run(folder, "undisturbed", "training.optimizer.learning_rate=1e-5", "seed=3")
    code, output = train(folder, changed)
    assert code == 2
    assert "training.optimizer.learning_rate: was 0.002, is now 1e-05" in output
    assert "seed: was 0, is now 3" in output
    assert "--overwrite" in output


@pytest.mark.slow
def test_changed_data_is_refused(tmp_path: Path) -> None:
    """P2: the order is a function of the data, so a run can't be resumed with other data."""
    config = tiny_run(tmp_path, "changed", "training.max_steps=3")
    code, output = train(tmp_path, config)
    assert code == 0, output
    (tmp_path / "runs" / "changed" / "summary.json").unlink()  # as if it had been killed at the very end
    write_reviews(tmp_path / "data" / "train.parquet", 99, seed=7)
    code, output = train(tmp_path, config)
    assert code == 2
    assert "have changed since this run's checkpoint of step 3" in output


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id=""),
        pytest.param(("workers.min=5", "workers.max=5", "ray.num_cpus=8"), id="5 workers", marks=pytest.mark.slow),
    ],
)
def test_eval_repeats_the_test_metrics(undisturbed: Path, words: tuple[str, ...]) -> None:
    """With more workers than a step has micro-batches too."""
    code, output = run_cli("eval", str(undisturbed), *words, "--split", "test")
    assert code == 0, output
    assert f"{summary(undisturbed)['final_metrics']['accuracy']:.4f}" in output


def test_eval_measures_a_file_that_the_config_does_not_name(folder: Path, undisturbed: Path) -> None:
    """By the run's labels, under a name of its own, and where the training data is gone."""
    rows = [row for row in make_reviews(60, seed=9) if row["label"] == "positive"]
    other = write_parquet(folder / "other" / "reviews.parquet", rows)
    train_file = folder / "data" / "train.parquet"
    train_file.rename(folder / "gone.parquet")
    try:
        code, output = run_cli("eval", str(undisturbed), f"data.test.path={other}")
    finally:
        (folder / "gone.parquet").rename(train_file)
    assert code == 0, output
    assert f"{other} of the best model" in output
    evaluations = [json.loads(line) for line in (undisturbed / "evals.jsonl").read_text().splitlines()]
    confusion = evaluations[-1]["tables"]["confusion"]
    assert (evaluations[-1]["split"], confusion["labels"]) == (other, ["negative", "positive"])
    assert (confusion["counts"][0], sum(confusion["counts"][1])) == ([0, 0], len(rows))
    assert f"{evaluations[-1]['accuracy']:.4f}" in output
    of_the_run = [row["accuracy"] for row in evaluations if row["split"] == "test"]
    assert set(of_the_run) == {summary(undisturbed)["final_metrics"]["accuracy"]}


@pytest.mark.slow
def test_early_stopping_keeps_its_patience_over_a_resume(folder: Path) -> None:
    """A learning rate of almost nothing never improves: patience 3 ends the run at the fourth evaluation."""
    name = "early"
    run = folder / "runs" / name
    overrides = (
        "training.optimizer.learning_rate=1e-12",
        "training.epochs=40",
        "training.eval_every_steps=20",
        "training.early_stopping={metric: accuracy, patience: 3}",
        "checkpoint.save_every_steps=2",
    )
    config = tiny_run(folder, name, *overrides)
    process = start_cli("train", write_config(config, folder))
    try:
        wait_until(lambda: any(step > 40 for step in committed_steps(run)), "a checkpoint after two evaluations")
    finally:
        kill_all(process)
    assert steps_done(run) < 80, "the run was faster than the kill"
    code, output = train(folder, config)
    assert code == 0, output
    assert summary(run)["status"] == "stopped_early"
    assert summary(run)["step"] == 80


def test_a_dead_worker_is_replaced(folder: Path, undisturbed: Path) -> None:
    """A worker that is killed costs the steps since the last checkpoint, and nothing else."""
    name = "dead_worker"
    run = folder / "runs" / name
    config = tiny_run(folder, name, "workers.min=2", "workers.max=2", "checkpoint.save_every_steps=3")
    process = start_cli("train", write_config(config, folder))

    wait_until(lambda: committed_steps(run), "a checkpoint")
    worker_processes(process.pid)[0].kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert summary(run)["failures"] == 1
    assert_same_experiment(run, undisturbed)


def test_a_run_is_verified_at_another_number_of_workers(folder: Path, undisturbed: Path) -> None:
    code, output = run_cli("verify", str(undisturbed), "--steps", "12")
    assert code == 0, output
    assert re.search(r"steps 1 to 12 of \S+/undisturbed; workers: 1, and again with 2\n", output)
    assert output.splitlines()[-1] == "they agree"
    repeated = losses(undisturbed / "verify" / "workers_2")
    assert_same_curve(repeated, {step: loss for step, loss in losses(undisturbed).items() if step <= 12})


@pytest.mark.slow  # tests/faults/test_resize.py kills a bitwise run too
def test_a_bitwise_run_has_the_same_bits_after_a_kill(folder: Path) -> None:
    """kill -9 of everything, then the same command with two workers; and again from the start by one."""
    words = ("training.exactness=bitwise", "training.max_steps=30", "training.eval_every_steps=15")
    slow = tiny_run(folder, "bitwise", *words, "checkpoint.save_every_steps=3", "tracking.tensorboard=false")
    run = folder / "runs" / "bitwise"
    process = start_cli("train", write_config(slow, folder))
    try:
        wait_until(lambda: steps_done(run) >= 8 and committed_steps(run), "step 8")
    finally:
        kill_all(process)
    code, output = train(folder, tiny_run(folder, "bitwise", *words, "workers.min=2", "workers.max=2"))
    assert code == 0, output
    code, output = run_cli("verify", str(run), "--steps", "30", "--workers", "1")
    assert code == 0, output
    assert re.search(r"weights, to the last bit +equal in every step", output)
    assert {row["world_size"] for row in read_jsonl(Storage(str(run)), "metrics.jsonl")} == {1, 2}


@pytest.mark.slow  # tests/unit/test_verification.py has the verdicts
def test_a_run_of_another_seed_is_found_out(folder: Path, undisturbed: Path) -> None:
    other = folder / "runs" / "other"
    other.mkdir()
    config = (undisturbed / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub(r"^seed: 0$", "seed: 1", config, flags=re.MULTILINE))
    for name in ("metrics.jsonl", "samples"):
        (other / name).symlink_to(undisturbed / name)
    code, output = run_cli("verify", str(other), "--steps", "3")
    assert code == 1, output
    assert "different from step 1 on" in output
    assert output.splitlines()[-1] == "they differ"
