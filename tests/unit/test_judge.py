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
from raytrain.training.progress import LOSS_NOISE, Progress


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


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_of_two_equally_good_models_the_one_with_the_lower_loss_is_kept(tmp_path: Path, metric: str) -> None:
    progress = Progress()
    chosen = f"training.best_metric={metric}"
    rows = [{metric: 0.6, "loss": loss} for loss in (0.9, 0.95, 0.8, float("nan"), 0.8 - LOSS_NOISE / 2, 0.7)]
    assert judged(tmp_path, progress, rows, chosen) == [True, False, True, False, False, True]
    assert (progress.best_value, progress.best_step, progress.best_loss) == (0.6, 50, 0.7)
    progress = Progress.from_dict(progress.to_dict())
    assert judged(tmp_path, progress, [{metric: 0.7, "loss": 2.0}, {metric: 0.6, "loss": 0.1}], chosen) == [True, False]
    assert (progress.best_value, progress.best_loss) == (0.7, 2.0)


def test_a_tie_is_no_improvement_for_early_stopping(tmp_path: Path) -> None:
    progress = Progress()
    rows = [{"accuracy": 0.6, "loss": loss} for loss in (0.9, 0.8, 0.7)]
    stopping = "training.early_stopping={metric: accuracy, patience: 2}"
    assert judged(tmp_path, progress, rows, stopping) == [True, True, True]
    assert progress.is_stopped_early and progress.best_step == 20


def test_a_state_without_a_loss_keeps_its_model_at_a_tie(tmp_path: Path) -> None:
    """Older versions did not write it."""
    progress = Progress(best_metric="accuracy", best_value=0.6, best_step=10)
    assert judged(tmp_path, progress, [{"accuracy": 0.6, "loss": 0.1}], "training.best_metric=accuracy") == [False]
