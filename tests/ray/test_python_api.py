"""The examples of docs/python_api.md, run as they stand there, in one process and on one Ray."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENV, tiny_run, write_config
from tiny import write_reviews

PAGE = Path(__file__).parents[2] / "docs" / "python_api.md"
HEAD = """
import sys
sys.path[:0] = {paths!r}
from running import start_local_ray
start_local_ray()
"""
CHECKS = """
assert (result.status, result.best_metric) == ("finished", "macro_f1")
assert found.split == {file!r} and found.num_samples == 29 and 0.0 <= found.metrics["loss"]
assert forecast.plan.total_steps and forecast.worlds[0].cost is None
assert set(sweep.best_values) == {{"training.optimizer.learning_rate"}} and sweep.num_trials == 2
assert best.run_path == sweep.path + "-best"
import ray
assert ray.is_initialized()
print("all is as the page says")
"""


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    write_config(tiny_run(tmp_path, "run", num_rows=64), tmp_path)
    file = write_reviews(tmp_path / "new_reviews.parquet", 29, seed=9)
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert all(f"raytrain.{name}(" in examples for name in ("train", "resume", "evaluate", "plan", "tune", "report"))
    paths = [str(PAGE.parents[1]), str(PAGE.parents[1] / "tests")]
    code = HEAD.format(paths=paths) + examples + CHECKS.format(file=file)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENV, text=True, capture_output=True, timeout=400
    )
    assert "all is as the page says" in done.stdout, done.stdout + done.stderr
    assert f"{tmp_path}/runs/run/report.html" in done.stdout
