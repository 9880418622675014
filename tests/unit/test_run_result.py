"""summary.json of any version is read without a traceback (state.md 8)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raytrain.runs.result import RunResult, read_result
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus

RESULT = RunResult(RunStatus.FINISHED, "/runs/x", step=7, best_value=0.5, final_metrics={"loss": 1.0})


def written(folder: Path, content: Any) -> RunResult | None:
    run = Storage(str(folder))
    run.write_bytes("summary.json", content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_result(run)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert written(tmp_path, asdict(RESULT)) == RESULT


def test_a_key_more_is_passed_over_and_a_key_less_has_its_default(tmp_path: Path) -> None:
    fields = asdict(RESULT)
    del fields["resizes"], fields["failure_code"]
    assert written(tmp_path, {**fields, "of_the_future": [1]}) == RESULT


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 200_000, {}, {"status": "resting"}, {**asdict(RESULT), "step": "many"}],
)
def test_anything_else_is_as_good_as_none(tmp_path: Path, content: Any) -> None:
    assert written(tmp_path, content) is None


def test_none(tmp_path: Path) -> None:
    assert read_result(Storage(str(tmp_path))) is None


def test_a_run_and_a_sweep_do_not_share_a_folder(tmp_path: Path) -> None:
    from running import tiny_run

    from raytrain.errors import ConfigError
    from raytrain.runs.resume import begin_or_resume
    from raytrain.tuning.resume import check_same
    from raytrain.tuning.space.space import Space

    config, folder = tiny_run(tmp_path, "x"), Storage(str(tmp_path / "folder"))
    folder.write_bytes("sweep.yaml", b"{}")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds a sweep"):
            begin_or_resume(folder, config, overwrite=overwrite)
    folder.delete("sweep.yaml")
    folder.write_bytes("config.yaml", b"{}")
    space = Space.model_validate(
        {"parameters": {"training.optimizer.learning_rate": {"kind": "choice", "values": [0.1, 0.2]}}}
    )
    with pytest.raises(ConfigError, match="holds a run"):
        check_same(folder, config, space, None)


def test_a_notebook_shows_a_table_and_figures(tmp_path: Path) -> None:
    from raytrain.errors import ConfigError
    from raytrain.tuning.state import SweepResult

    run = RunResult(RunStatus.FINISHED, str(tmp_path), 7, message="<b>", best_value=0.5, best_metric="f1", best_step=3)
    shown = run._repr_html_()
    assert "f1 0.5000 at step 3" in shown and "&lt;b&gt;" in shown and "failures" not in shown
    assert "lr 0.1" in SweepResult(RunStatus.FINISHED, "s", "f1", "max", "t1", 0.5, {"lr": 0.1})._repr_html_()
    with pytest.raises(ConfigError, match=r"has no figure 'loss'; it has: none yet"):
        run.plot()
    step = {"step": 1, "loss": 0.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 9.0, "padding": 0.1, "world_size": 1}
    step |= {"step_s": 0.1, "data_wait_s": 0.0, "skipped_steps": 0, "loss_scale": None, "attempt": 0}
    rows = [json.dumps({**step, "step": number}) for number in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    picture = run.plot()
    picture.save(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == picture._repr_png_() and picture.png.startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"has no figure 'throughputs'.*did you mean throughput\?"):
        run.plot("throughputs")
