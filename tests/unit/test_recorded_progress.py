"""A command that ends without a word of its workers tells what the run's logs have, and not step 0."""

from pathlib import Path

from raytrain.storage import Storage
from raytrain.training.progress import Progress
from raytrain.training.records import JsonlWriter
from raytrain.training.run_log import recorded_progress


def test_it_is_that_of_the_last_lines(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for name, rows in {
        "metrics.jsonl": [{"step": 1, "samples_seen": 8}, {"step": 2, "samples_seen": 16, "tokens_seen": 90}],
        "evals.jsonl": [{"split": "validation", "step": 2, "best": {"metric": "loss", "value": 0.5, "step": 2}}],
    }.items():
        writer = JsonlWriter(run, name)
        for row in rows:
            writer.write(row)
        writer.close()
    assert recorded_progress(run) == Progress(
        step=2, samples_seen=16, tokens_seen=90, best_metric="loss", best_value=0.5, best_step=2
    )


def test_of_a_run_that_has_not_begun_it_is_nothing(tmp_path: Path) -> None:
    assert recorded_progress(Storage(str(tmp_path))) == Progress()
