"""Whole sweeps, started as a user starts them: trials are stopped early, shared workers are given back, and what was
interrupted goes on."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ENV, kill_all, run_cli, start_cli, steps_done, tiny_run, wait_until, write_config
from tiny import write_conll

from raytrain.config import SPLITS

LR = "training.optimizer.learning_rate"
ASHA = {"kind": "asha", "grace_steps": 17, "reduction_factor": 2}


def sweep_config(folder: Path, name: str, *overrides: str) -> str:
    """A tiny run of 102 steps, evaluated every 17; two trials of one or two workers each live at once."""
    quick = ("training.epochs=2", "training.eval_every_steps=17", "workers.max=2", "workers.grow_delay_s=0.5")
    small = ("data.record_samples=false", "tracking.tensorboard=false", "ray.num_cpus=8", "data.test=null")
    return write_config(tiny_run(folder, name, *quick, *small, *overrides), folder)


def write_space(folder: Path, name: str, parameters: dict[str, Any], **more: Any) -> str:
    path = folder / "spaces" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"parameters": parameters, **more}, sort_keys=False))
    return str(path)


def trials(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(sweep.glob("trials/*/trial.json"))}


def summary(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "sweep.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def asha(folder: Path) -> Path:
    """A sweep over learning rates of which some learn nothing."""
    space = write_space(
        folder,
        "rates",
        {LR: {"kind": "grid", "values": [4e-3, 1e-6, 2e-3, 1e-7]}},
        scheduler=ASHA,
        budget={"trials": 4},
    )
    code, output = run_cli("tune", sweep_config(folder, "asha"), "--space", space, "--max-concurrent", "2")
    assert code == 0, output
    return folder / "runs" / "asha-rates"


def test_the_scheduler_stops_what_learns_nothing(asha: Path) -> None:
    rows = trials(asha)
    assert len(rows) == 4
    assert all(row["status"] in ("finished", "pruned") for row in rows.values())
    assert any(row["status"] == "pruned" and row["step"] < 102 for row in rows.values())
    best = summary(asha)
    assert best["status"] == "finished"
    assert best["best_values"][LR] in (4e-3, 2e-3)
    assert rows[best["best_trial"]]["status"] == "finished"


def test_a_trial_is_a_run(asha: Path) -> None:
    """With its own folder, which `raytrain train` would go on from."""
    for name, row in trials(asha).items():
        run = asha / "trials" / name
        assert (
            yaml.safe_load((run / "config.yaml").read_text())["training"]["optimizer"]["learning_rate"]
            == row["values"][LR]
        )
        assert (run / "metrics.jsonl").exists()
    assert len(list((asha.parent / "_prepared").iterdir())) == 1, "the data is prepared once"


def test_the_report(asha: Path) -> None:
    page = (asha / "sweep.html").read_text()
    assert "trial_0003" in page
    assert "ready for raytrain train" in page
    (asha / "sweep.html").unlink()
    code, output = run_cli("report", str(asha))
    assert code == 0, output
    assert (asha / "sweep.html").exists()


@pytest.mark.slow
def test_trials_are_compared_by_the_metric_that_a_single_run_has(folder: Path) -> None:
    """Tags that are not declared are known once the data is prepared; the refusal of another sweep does not wait."""
    paths = {split: write_conll(folder / "ner" / f"{split}.conll", 40, i) for i, split in enumerate(SPLITS)}
    words = ["task={kind: token_classification}", *(f"data.{split}.path={path}" for split, path in paths.items())]
    config = sweep_config(folder, "ner", *words, "training.epochs=1", "training.eval_every_steps=5")
    space = write_space(folder, "two", {LR: {"kind": "grid", "values": [4e-3, 1e-6]}}, budget={"trials": 2})
    code, output = run_cli("tune", config, "--space", space, "--max-concurrent", "2")
    assert code == 0, output
    sweep = folder / "runs" / "ner-two"
    assert summary(sweep)["metric"] == "entity_f1"
    assert yaml.safe_load((sweep / "sweep.yaml").read_text())["config"]["training"]["best_metric"] == "entity_f1"
    for name, row in trials(sweep).items():
        run = sweep / "trials" / name
        ended = json.loads((run / "summary.json").read_text())
        assert (ended["best_metric"], ended["best_value"]) == ("entity_f1", row["best_value"])
        states = [json.loads(path.read_text()) for path in run.glob("checkpoints/*/state.json")]
        assert states and {state["best_metric"] for state in states} == {"entity_f1"}
    for data in (sweep.parent / "_prepared").iterdir():
        shutil.rmtree(data)
    code, output = run_cli("tune", config, "--space", space, "training.micro_batch_size=2", "training.epochs=2")
    assert code == 2 and "training.epochs: was 1, is now 2" in output
    assert "starting Ray" not in output


@pytest.mark.slow
def test_the_winner_is_trained_by_name(asha: Path) -> None:
    code, output = run_cli("train", "--from-sweep", str(asha), "training.epochs=1")
    assert code == 0, output
    config = yaml.safe_load((asha.parent / "asha-rates-best" / "config.yaml").read_text())
    assert config["training"]["optimizer"]["learning_rate"] == summary(asha)["best_values"][LR]


def test_a_finished_sweep_is_not_run_again(asha: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in asha.glob("trials/*/metrics.jsonl")}
    code, output = run_cli("tune", str(folder / "asha.yaml"), "--space", str(folder / "spaces" / "rates.yaml"))
    assert code == 0, output
    assert "resuming: trials started before: 4; ended: 4" in output
    assert {path: path.stat().st_mtime_ns for path in asha.glob("trials/*/metrics.jsonl")} == before
    code, output = run_cli(
        "tune", str(folder / "asha.yaml"), "--space", str(folder / "spaces" / "rates.yaml"), "seed=1"
    )
    assert code == 2
    assert "seed: was 0, is now 1" in output


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_sweep_goes_on(folder: Path, signal_number: int) -> None:
    """P15: what is over is not trained again, what ran goes on, and the values are those of the seed."""
    name = f"interrupted{int(signal_number)}"
    space = write_space(folder, "tpe", {LR: {"kind": "loguniform", "low": 1e-4, "high": 1e-2}},
                        searcher={"kind": "tpe", "startup_trials": 2}, budget={"trials": 4})  # fmt: skip
    # Long enough for a trial to be caught in its middle.
    config = sweep_config(folder, name, "workers.max=1", "training.epochs=12")
    sweep = folder / "runs" / f"{name}-tpe"
    process = start_cli("tune", config, "--space", space, "--max-concurrent", "2")

    def one_over_one_running() -> bool:
        states = [(row["status"], row["name"]) for row in trials(sweep).values()] if sweep.exists() else []
        running = [name for status, name in states if status == "running"]
        is_one_over = any(status == "finished" for status, _ in states)
        return is_one_over and any(20 <= steps_done(sweep / "trials" / name) < 300 for name in running)

    wait_until(one_over_one_running, "a trial to end and another to be evaluated", 240)
    if signal_number == signal.SIGKILL:
        kill_all(process)
    else:
        process.send_signal(signal_number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert "the same command resumes the sweep" in output
        assert any(row["status"] == "stopped" for row in trials(sweep).values())
    before = trials(sweep)
    over = {name for name, row in before.items() if row["status"] == "finished"}
    lines = {name: len((sweep / "trials" / name / "metrics.jsonl").read_text().splitlines()) for name in over}
    code, output = run_cli("tune", config, "--space", space, "--max-concurrent", "2")
    assert code == 0, output
    after = trials(sweep)
    assert len(after) == 4
    assert all(row["status"] == "finished" for row in after.values())
    assert {name: row["values"] for name, row in after.items() if name in before} == {
        name: row["values"] for name, row in before.items()
    }
    for name in over:
        assert len((sweep / "trials" / name / "metrics.jsonl").read_text().splitlines()) == lines[name]
    resumed = [
        name for name in set(after) - over if '"restore"' in (sweep / "trials" / name / "events.jsonl").read_text()
    ]
    assert resumed, "what ran went on from its checkpoint"


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    """Of the population that was not killed."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_population_exchanges_models(folder: Path, outcome: dict[str, Any], is_killed: bool) -> None:
    """The worst of three goes on from the best one's model with values near its; killed while models change hands, the
    same command goes on, and the outcome is the same: a generation waits for all."""
    name = f"population{int(is_killed)}"
    more = {"metric": "loss", "budget": {"trials": 3}, "seed": 2}
    pbt = {"kind": "pbt", "every_steps": 34, "resample": 0.0}
    space = write_space(folder, name, {LR: {"kind": "loguniform", "low": 1e-7, "high": 4e-3}}, scheduler=pbt, **more)
    config = sweep_config(folder, name, "workers.max=1", "training.eval_every_steps=null")
    command, sweep = ("tune", config, "--space", space, "--max-concurrent", "2"), folder / "runs" / f"{name}-{name}"
    if is_killed:
        process = start_cli(*command)
        wait_until(lambda: (sweep / "population" / "0000.json").exists(), "the first generation's end", 240)
        kill_all(process)
        (sweep / "population" / "0000.done").unlink(missing_ok=True)
    code, output = run_cli(*command)
    assert code == 0, output
    rows = trials(sweep)
    assert all(row["status"] == "finished" and row["step"] == 102 for row in rows.values())
    decided = json.loads((sweep / "population" / "0000.json").read_text())["members"]
    worst, best = (choose(decided, key=lambda trial: decided[trial]["value"]) for choose in (min, max))
    assert decided[worst]["source"] == best
    assert rows[worst]["sources"][0] == [34, best]
    losses: dict[str, dict[int, float]] = {}
    for trial in (worst, best):
        lines = (sweep / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        losses[trial] = {row["step"]: row["loss"] for row in map(json.loads, lines)}
        assert set(losses[trial]) == set(range(1, 103)), "no step is left out"
    assert losses[worst][34] != losses[best][34]
    assert losses[worst][35] == pytest.approx(losses[best][35], abs=1e-6), "it is the source's model from here on"
    assert losses[worst][36] != losses[best][36], "with values of its own"
    outcome.setdefault("values", {name: row["values"] for name, row in rows.items()})
    assert outcome["values"] == {name: row["values"] for name, row in rows.items()}


class Told:
    """What a scheduler looks at of a trial."""

    def __init__(self, trial_id: str):
        self.trial_id, self.config = trial_id, {"plan": {"name": trial_id}}


@pytest.mark.parametrize("scheduler", [ASHA, {"kind": "median", "grace_steps": 17, "min_trials": 1}])
def test_what_is_told_again_stops_nobody(scheduler: dict[str, Any]) -> None:
    """P15: a trial that had passed a rung is not judged at it a second time, whatever order the trials speak in."""
    from types import SimpleNamespace

    from raytrain.tuning.space.space import Space
    from raytrain.tuning.trial import SETTLED, STEP, VALUE
    from raytrain.tuning.tuner import _scheduler

    tunes = _scheduler(
        Space.model_validate({"parameters": {LR: {"kind": "grid", "values": [1]}}, "scheduler": scheduler})
    )
    controller = SimpleNamespace(search_alg=None, get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    good, poor = (Told(name) for name in ("good", "poor"))

    def tell(trial: Any, value: float, *, is_settled: bool) -> str:
        return tunes.on_trial_result(controller, trial, {STEP: 17, VALUE: value, SETTLED: is_settled})

    for trial in (good, poor):
        tunes.on_trial_add(controller, trial)
    assert tell(good, 1.0, is_settled=False) == tunes.CONTINUE
    for _ in range(2):
        assert tell(poor, 0.0, is_settled=True) == tunes.CONTINUE
    if scheduler is ASHA:  # it is recorded at this rung now, and is asked again at the next one only
        return
    assert tell(poor, 0.0, is_settled=False) == tunes.STOP


def test_a_trial_keeps_its_bracket() -> None:
    """P15: HyperBand's brackets are drawn, and a sweep that goes on must draw them alike."""
    from raytrain.tuning.space.space import Space
    from raytrain.tuning.tuner import _scheduler

    scheduler = {"kind": "hyperband", "grace_steps": 17, "reduction_factor": 3, "brackets": 3}
    space = Space.model_validate({"parameters": {LR: {"kind": "grid", "values": [1]}}, "scheduler": scheduler})

    def brackets(names: list[str]) -> dict[str, int]:
        tunes = _scheduler(space)
        for name in names:
            tunes.on_trial_add(None, Told(name))
        return {name: tunes._brackets.index(tunes._trial_info[name]) for name in names}

    names = [f"trial_{number:04d}" for number in range(60)]
    drawn = brackets(names)
    assert drawn == brackets(names[::-1])
    sizes = [list(drawn.values()).count(number) for number in range(3)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


@pytest.mark.slow
def test_trials_that_fail_do_not_end_the_sweep(folder: Path) -> None:
    """One diverges, one is no config at all; the other two go on."""
    parameters = {
        LR: {"kind": "grid", "values": [1e30, 2e-3]},
        "data.canonical_shards": {"kind": "choice", "values": [8]},
        "training.global_batch_size": {"kind": "grid", "values": [8, 12]},
    }
    space = write_space(folder, "wild", parameters, budget={"trials": 4}, max_failed=0.9)
    config = sweep_config(folder, "failing", "workers.max=1", "training.epochs=1")
    code, output = run_cli("tune", config, "--space", space, "--max-concurrent", "2")
    assert code == 0, output
    rows = trials(folder / "runs" / "failing-wild").values()
    by_values = {(row["values"]["training.global_batch_size"], row["values"][LR]): row for row in rows}
    assert by_values[8, 2e-3]["status"] == "finished"
    assert by_values[8, 1e30]["failure"]["code"] == "diverged", by_values
    for rate in (1e30, 2e-3):
        failure = by_values[12, rate]["failure"]
        assert failure["code"] == "config"
        assert failure["message"].startswith(
            "these values are not valid together: data.canonical_shards 8 does not divide"
        )
    assert "3 failed" in output


@pytest.mark.slow
def test_too_many_failures_end_it(folder: Path) -> None:
    space = write_space(
        folder, "hopeless", {LR: {"kind": "uniform", "low": 1e29, "high": 1e30}}, budget={"trials": 12}, max_failed=0.3
    )
    config = sweep_config(folder, "hopeless", "workers.max=1")
    code, output = run_cli("tune", config, "--space", space, "--max-concurrent", "2")
    assert code == 1, output
    assert "max_failed of the space is 0.3" in output
    assert len(trials(folder / "runs" / "hopeless-hopeless")) < 12


@pytest.mark.slow
def test_two_objectives(folder: Path) -> None:
    """TPE is told both; the smallest model is always among those that no other beats; one is trained by its name."""
    width = "model.config.intermediate_size"
    parameters = {LR: {"kind": "loguniform", "low": 1e-3, "high": 4e-3}, width: {"kind": "choice", "values": [16, 64]}}
    space = write_space(
        folder, "sizes", parameters, also=[{"metric": "num_parameters"}], budget={"trials": 4},
        searcher={"kind": "tpe", "startup_trials": 2},
    )  # fmt: skip
    config = sweep_config(folder, "two", "workers.max=1", "training.epochs=1")
    code, output = run_cli("tune", config, "--space", space, "--max-concurrent", "2")
    assert code == 0, output
    sweep = folder / "runs" / "two-sizes"
    rows, front = trials(sweep), summary(sweep)["front"]
    sizes = {row["values"][width]: row["best_others"]["num_parameters"] for row in rows.values()}
    assert len(sizes) == 2
    assert sizes[64] - sizes[16] == 2 * 48 * (16 + 16 + 1), "two layers of so many more columns, rows and biases"
    smallest = [name for name, row in rows.items() if row["values"][width] == 16]
    assert set(front) & set(smallest)
    assert summary(sweep)["best_trial"] in front
    assert "no other trial is as good in everything" in output
    assert (sweep / "plots" / "num_parameters.png").exists()
    code, output = run_cli("train", "--from-sweep", str(sweep), "--trial", smallest[0], "training.epochs=1")
    assert code == 0, output
    assert (folder / "runs" / f"two-sizes-{smallest[0]}" / "best").exists()


IN_A_RAY_OF_OURS = """
import contextlib, json, psutil, sys, threading, time, ray
ray.init(address="local", num_cpus=8, include_dashboard={dashboard})
from raytrain.config.io import read_config
from raytrain.tuning.space.space import load_space
from raytrain.tuning.sweep import run_sweep
workers = set()
def watch():
    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "TrainingWorker" in " ".join(process.cmdline()):
                    workers.add(process.pid)
        time.sleep(0.5)
threading.Thread(target=watch, daemon=True).start()
result = run_sweep(read_config({config!r}), [], load_space({space!r}), "shared", max_concurrent={live})
deadline = time.monotonic() + 20
while ray.available_resources().get("CPU") != 8 and time.monotonic() < deadline:
    time.sleep(0.2)
print(json.dumps({{"status": result.status, "cpus": ray.available_resources().get("CPU"), "workers": len(workers)}}))
"""


def in_a_ray_of_ours(folder: Path, config: str, space: str, live: int) -> dict[str, Any]:
    """A sweep called from Python with so many live trials: its status, the CPUs that are free after it, and the
    workers' processes that it has had. Without the dashboard, which would clean up placement groups."""
    script = folder / "shared.py"
    script.write_text(IN_A_RAY_OF_OURS.format(config=config, space=space, live=live, dashboard=False))
    env = {**ENV, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"status"')))


@pytest.mark.slow
def test_a_process_goes_from_trial_to_trial(folder: Path) -> None:
    space = write_space(folder, "shared", {LR: {"kind": "grid", "values": [1e-3, 2e-3, 3e-3]}}, budget={"trials": 3})
    config = sweep_config(folder, "reusing", "workers.max=1", "training.epochs=1")
    left = in_a_ray_of_ours(folder, config, space, live=1)
    assert left == {"status": "finished", "cpus": 8, "workers": 1}
    assert all(row["status"] == "finished" for row in trials(folder / "runs" / "reusing-shared").values())


@pytest.mark.slow
def test_workers_are_shared_and_given_back(folder: Path) -> None:
    """P14: while three trials live, each has at least its minimum; a survivor grows into what a stopped one leaves; in
    the end the cluster's resources are all free."""
    space = write_space(
        folder,
        "shared",
        {LR: {"kind": "grid", "values": [2e-3, 1e-7, 1e-8]}},
        scheduler={"kind": "asha", "grace_steps": 17, "reduction_factor": 3},
        budget={"trials": 3},
    )
    shared = ("workers={max: 3, grow_delay_s: 0.5, grow_payback: 0}", "training.micro_batch_size=3")
    config = sweep_config(folder, "sharing", *shared, "training.epochs=12")
    left = in_a_ray_of_ours(folder, config, space, live=3)
    assert left["status"] == "finished"
    assert left["cpus"] == 8
    sizes: dict[str, list[int]] = {}
    for name in trials(folder / "runs" / "sharing-shared"):
        events = (folder / "runs" / "sharing-shared" / "trials" / name / "events.jsonl").read_text().splitlines()
        sizes[name] = [event["world_size"] for event in map(json.loads, events) if event["kind"] == "start"]
    survivor = summary(folder / "runs" / "sharing-shared")["best_trial"]
    assert max(sizes[survivor]) == 3, sizes
