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
