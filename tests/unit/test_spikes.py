"""The guard for spikes of the loss: what it leaves out, and that a resumed run decides alike."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import tiny_run
from whole_run import next_life, without_ray

from raytrain.config.training import LossSpikesConfig
from raytrain.elastic.allocation import Terms
from raytrain.errors import TrainingError
from raytrain.runs.run import run_training
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus, StopReason
from raytrain.training.progress import Progress
from raytrain.training.records import read_jsonl
from raytrain.training.spikes import count_spike, is_spike, note_applied, spike_limit, stop_if_spikes_last

CONFIG = LossSpikesConfig(window=8, sigmas=3.0, max_consecutive=2)


def after(*losses: float) -> Progress:
    progress = Progress()
    for loss in losses:
        note_applied(loss, progress, CONFIG)
    return progress


def test_the_rule() -> None:
    losses = [1.0, 2.0, 3.0, 4.0]
    limit = np.mean(losses) + 3 * np.std(losses, ddof=1)
    assert spike_limit(losses, CONFIG) == pytest.approx(limit)
    assert spike_limit(losses[:3], CONFIG) == float("inf"), "half of the window"
    assert spike_limit([100.0] * 5 + losses * 2, CONFIG) == pytest.approx(2.5 + 3 * np.std(losses * 2, ddof=1))
    assert is_spike(limit + 0.01, after(*losses), CONFIG) and not is_spike(limit - 0.01, after(*losses), CONFIG)
    assert not is_spike(float("nan"), after(*losses), CONFIG) and not is_spike(float("inf"), after(*losses), CONFIG)
    assert not is_spike(1e9, after(*losses), None), "off"


def test_the_state_passes_through_json() -> None:
    progress = after(*np.random.default_rng(0).random(11).tolist())
    restored = Progress.from_dict(json.loads(json.dumps(progress.to_dict())))
    assert restored == progress and len(restored.recent_losses) == 8
    assert after().recent_losses == [] and Progress.from_dict({"step": 3}).recent_losses == []


def test_spikes_that_last_end_the_run() -> None:
    progress = after(1.0, 1.1, 1.2, 1.0)
    for _ in range(2):
        stop_if_spikes_last(9.0, progress, CONFIG)
        progress.step += 1
        count_spike(progress)
    with pytest.raises(TrainingError, match=r"spiked in 2 steps in a row, from step 1 on: it is 9, and 1\.\d+ was"):
        stop_if_spikes_last(9.0, progress, CONFIG)
    assert progress.updates == 0
    note_applied(1.0, progress, CONFIG)
    stop_if_spikes_last(1.0, progress, CONFIG)


def run_of(folder: Path, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bytes]:
    run = folder / "runs" / name
    rows = list(read_jsonl(Storage(str(run)), "metrics.jsonl"))
    events = [e for e in read_jsonl(Storage(str(run)), "events.jsonl") if e["kind"] == "loss_spike"]
    return rows, events, (run / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_spike_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """A low bar makes spikes of usual losses. A run that is resumed in between skips the same steps, and neither
    weights nor learning rate move in them."""
    options = ["training.max_steps=16", "training.epochs=null", "data.validation=null", f"training.zero_stage={stage}"]
    options += ["checkpoint.save_every_steps=16", "training.skip_loss_spikes={sigmas: 0.3, window: 8}"]
    options += ["training.schedule={kind: linear, warmup_ratio: 0}"]
    options += ["training.exactness=bitwise"] if stage == 3 else []
    faults, found = without_ray(monkeypatch, tmp_path / "runs"), []
    for name, pause in (("whole", None), ("paused", 9)):
        config = tiny_run(tmp_path, name, *options, num_rows=64)
        faults.begin(None)
        if pause:
            assert run_training(config, terms=Terms(until_step=pause)).stop_reason is StopReason.PAUSED
            next_life(faults)
        result = run_training(config)
        assert result.status is RunStatus.FINISHED
        found.append(run_of(tmp_path, name))
        assert result.skipped_spikes == found[-1][0][-1]["skipped_spikes"] == len(found[-1][1]) > 0
        next_life(faults)
    (rows, events, weights), (others, other_events, other_weights) = found
    assert [row["loss"] for row in rows] == [row["loss"] for row in others] and weights == other_weights
    assert [event["step"] for event in events] == [event["step"] for event in other_events]
    spikes = {event["step"] for event in events}
    for row, after_it in itertools.pairwise(rows):
        is_left_out = row["step"] in spikes
        assert (row["grad_norm"] is None) is is_left_out
        assert (row["lr"] == after_it["lr"]) is is_left_out, "the schedule goes by applied updates"
        if "weights" in row and after_it["step"] in spikes:
            assert row["weights"] == after_it["weights"]
