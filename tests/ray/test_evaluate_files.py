"""`raytrain eval MODEL --data FILE` on real Ray: the rows of files, what is written, and what is recorded."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from saved_models import model_config, save_best
from tiny import make_reviews, write_parquet

import raytrain
from raytrain.config.io import dump_config
from raytrain.data.readers.base import ROW
from raytrain.errors import DataError
from raytrain.inference import evaluation
from raytrain.inference.evaluation import EvaluationRequest, evaluate_data
from raytrain.inference.pieces import JUDGED


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run as a training leaves it, but for what an evaluation does not need."""
    folder = tmp_path_factory.mktemp("runs")
    config = model_config(folder, {"kind": "sequence_classification"})
    save_best(config, {"labels": ["negative", "positive"]}, folder / "answers")
    (folder / "answers" / "config.yaml").write_text(dump_config(config))
    return str(folder / "answers")


@pytest.mark.usefixtures("local_ray")
def test_files_are_evaluated_piece_by_piece(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [{**row, "n": n} for n, row in enumerate(make_reviews(2600, seed=8))]
    rows[7]["label"] = "unheard of"
    write_parquet(tmp_path / "data" / "a.parquet", rows[:2500])
    (tmp_path / "data" / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[2500:]))
    out, source = tmp_path / "out.parquet", str(tmp_path / "data")

    class KilledError(Exception):
        pass

    class KillsAtHalf:
        """Ends the first command in its middle, as Ctrl-C would."""

        def prepared(self, done: int, total: int, rows_per_s: float) -> None:
            if done > 1000:
                raise KilledError

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    request = EvaluationRequest(source, ("workers.max=1",), predictions=str(out), by="label")
    with pytest.raises(KilledError):
        evaluate_data(run, request, KillsAtHalf())  # type: ignore[arg-type]
    kept = list(Path(f"{out}.work").glob(f"*/*{JUDGED}"))
    assert kept and not out.exists()
    read: list[Any] = []
    monkeypatch.setattr("raytrain.inference.batch.read_judged", _noting(read))
    found = evaluate_data(run, request)
    assert len(read) >= len(kept), "what was judged before is not judged again"
    alone = raytrain.evaluate(run, rows, by="label")  # in this process
    assert isinstance(alone, evaluation.DataEvaluation)
    assert found.metrics == pytest.approx(alone.metrics, rel=1e-9) and found.tables == alone.tables
    assert (found.num_samples, found.num_refused) == (2599, 1) == (alone.num_samples, alone.num_refused)
    assert [(one.value, one.num_rows) for one in found.slices] == [(one.value, one.num_rows) for one in alone.slices]
    assert [one.text for one in found.worst[:5]] == [one.text for one in alone.worst[:5]]
    told = pq.read_table(out).to_pylist()
    assert [int(row["n"]) for row in told] == [row["n"] for row in rows if row["n"] != 7]
    assert all(row["true_label"] == row["label"] for row in told)
    assert sum(row["loss"] for row in told) / len(told) == pytest.approx(found.metrics["loss"])
    right = sum(row["predicted_label"] == row["true_label"] for row in told) / len(told)
    assert right == pytest.approx(found.metrics["accuracy"])
    (refused,) = (tmp_path / "out.parquet.quarantined.jsonl").read_text().splitlines()
    assert json.loads(refused)["code"] == "unknown_label" and ROW not in refused
    (line,) = [json.loads(text) for text in (Path(run) / "evals.jsonl").read_text().splitlines()]
    assert (line["split"], line["step"], line["accuracy"]) == (source, 1, found.metrics["accuracy"])
    assert set(line["tables"]) == {"per_class", "confusion"}


def _noting(read: list[Any]) -> Any:
    from raytrain.inference.pieces import read_judged

    def noted(work: Any, done: Any) -> Any:
        read.append(done)
        return read_judged(work, done)

    return noted


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_too_many_bad_rows_leave_nothing(run: str, tmp_path: Path) -> None:
    rows = [*make_reviews(30, seed=1), {"text": "a film", "label": "other"}]
    write_parquet(tmp_path / "data.parquet", rows)
    out = tmp_path / "out.csv"
    with pytest.raises(DataError, match=r"1 of 31 rows.*max_quarantined"):
        evaluate_data(run, EvaluationRequest(str(tmp_path / "data.parquet"), predictions=str(out)))
    assert not out.exists()
