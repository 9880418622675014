"""A sweep in TensorBoard's HParams tab, as TensorBoard itself shows it."""

from pathlib import Path

import pytest
from hparams_tab import hparams_tab

from raytrain.storage import Storage
from raytrain.tuning.hparams import write_hparams
from raytrain.tuning.trials import TrialRow

LR, KIND = "training.optimizer.learning_rate", "training.schedule.kind"


def test_the_tab_has_a_row_a_trial(tmp_path: Path) -> None:
    root = Storage(str(tmp_path))
    ended = TrialRow("trial_0000", {LR: 1e-3, KIND: "cosine", "seed": 3}, "finished", best_value=0.75, best_step=20)
    write_hparams(root, TrialRow("trial_0000", ended.values, "stopped", best_value=0.5, best_step=10), "accuracy")
    write_hparams(root, ended, "accuracy")  # it has gone on
    write_hparams(root, TrialRow("trial_0001", {LR: 1e-1, "model.config": None}, "failed"), "accuracy")
    rows = hparams_tab(tmp_path)
    assert set(rows) == {"trial_0000", "trial_0001"}
    assert rows["trial_0000"]["values"] == {LR: 1e-3, KIND: "cosine", "seed": 3}
    assert rows["trial_0000"]["metrics"] == {"best/accuracy": pytest.approx(0.75)}
    assert rows["trial_0001"]["values"][LR] == 1e-1
    assert rows["trial_0001"]["metrics"].get("best/accuracy") is None
    assert [rows[name]["status"] for name in sorted(rows)] == ["STATUS_SUCCESS", "STATUS_FAILURE"]
