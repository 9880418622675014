"""training.compile changes no loss, and where it can't be had a run says so and goes on."""

from pathlib import Path

import pytest
from running import assert_same_curve, losses, run_cli, tiny_run, write_config

from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

pytestmark = pytest.mark.slow


def trained(folder: Path, name: str, *overrides: str) -> tuple[dict[int, float], dict[str, float], str]:
    """Losses by step, the last evaluation, and the output."""
    config = tiny_run(folder, name, "training={max_steps: 12, eval_every_steps: 6, precision: fp32}", *overrides)
    code, output = run_cli("train", write_config(config, folder), timeout_s=500)
    assert code == 0, output
    run = folder / "runs" / name
    evals = [row for row in read_jsonl(Storage(str(run)), "evals.jsonl") if row["split"] == "validation"]
    return losses(run), {str(row["step"]): row["loss"] for row in evals}, output


def test_the_same_losses_compiled_or_not(tmp_path: Path) -> None:
    plain, judged, _ = trained(tmp_path, "plain", "workers={min: 1, max: 1}")
    for stage in (0, 2):
        two = (f"training.zero_stage={stage}", "training.compile=true", "workers={min: 2, max: 2}")
        found, evaluated, output = trained(tmp_path, f"compiled{stage}", *two)
        assert "not compiled" not in output, output
        assert_same_curve(found, plain)
        assert evaluated == pytest.approx(judged, abs=1e-4)
    found, _, output = trained(tmp_path, "sharded", "training.zero_stage=3", *two[1:])
    assert "training.compile: layers are not compiled: at ZeRO stage 3" in output, output
    assert_same_curve(found, plain)
