"""The verdict of an evaluation: which model is the best, and when training stops early."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from running import tiny_run

from raytrain.tasks import make_task
from raytrain.tasks.base import Metrics
from raytrain.training import evaluate
from raytrain.training.evaluate import Judge
from raytrain.training.progress import Progress


def judged(folder: Path, progress: Progress, values: list[dict[str, float]], *overrides: str) -> list[bool]:
    """Whether each of the evaluations found a new best model. `values`: what they measured."""
    config = tiny_run(folder, "judged", *overrides)
    task = make_task(config.task, config.data.max_length)
    nothing = cast(Any, None)
    judge = Judge(config, task, {"labels": ["a", "b"]}, torch.device("cpu"), nothing, lambda: None)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for measured in values:
            patch.setattr(evaluate, "evaluate", lambda *_, measured=measured: Metrics(measured))
            found.append(judge.judge(nothing, [], progress).is_best)
            progress.step += 10
    return found


def test_values_of_another_metric_are_no_yardstick(tmp_path: Path) -> None:
    """A resumed run may pick the best model, and stop early, by another metric: loss 0.7 is not worse than accuracy
    0.6."""
    stopping = "training.early_stopping={{metric: {}, patience: 2}}"
    progress = Progress()
    rows = [{"accuracy": 0.6, "loss": 0.9}, {"accuracy": 0.5, "loss": 0.8}]
    assert judged(tmp_path, progress, rows, stopping.format("accuracy")) == [True, False]
    assert (progress.best_metric, progress.best_value, progress.best_step) == ("accuracy", 0.6, 0)
    progress = Progress.from_dict(progress.to_dict())
    rows = [{"accuracy": 0.5, "loss": 0.7}, {"accuracy": 0.5, "loss": 0.65}]
    assert judged(tmp_path, progress, rows, stopping.format("loss")) == [True, True]
    assert (progress.best_metric, progress.best_value, progress.best_step) == ("loss", 0.65, 30)
    assert not progress.is_stopped_early and progress.evals_without_improvement == 0
    assert judged(tmp_path, progress, [{"accuracy": 0.5, "loss": 0.66}] * 2, stopping.format("loss")) == [False, False]
    assert progress.is_stopped_early


def test_a_state_that_does_not_name_its_metric_keeps_its_value(tmp_path: Path) -> None:
    """Older versions did not write the name."""
    progress = Progress(best_value=0.9, best_step=10)
    assert judged(tmp_path, progress, [{"accuracy": 0.6, "macro_f1": 0.6, "loss": 0.9}]) == [False]
    assert progress.best_value == 0.9
