"""What a run's folder says of the command that trained it: enough to do it again, and nothing that is secret."""

import json
import subprocess
from pathlib import Path

import pytest

from raytrain.data.prepared import SplitInfo
from raytrain.runs.provenance import MOST_LABELS, command_line, git_state, label_counts, observe_command, record_command
from raytrain.storage import Storage

SPLITS = {
    "train": SplitInfo(
        120,
        999,
        3,
        1,
        [],
        "",
        {"a": 100, "b": 20},
        num_removed={"dedup.leakage": 7, "dedup.near": 2},
        num_short_leaks=4,
        rows={"read": 135, "quarantined": 1, "dropped": 5, "duplicates": 9, "kept": 120},
    ),
    "test": SplitInfo(20, 99, 0, 0, [], "", {"b": 20}),
}


def test_each_command_of_a_run_leaves_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.setattr("sys.argv", ["/usr/bin/raytrain", "train", "run.yaml", "name=two words"])
    for _ in range(2):
        record_command(Storage(str(tmp_path)), SPLITS, observe_command())
    text = (tmp_path / "commands.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert first["command"] == second["command"] == "raytrain train run.yaml 'name=two words'"
    assert {"raytrain", "ray", "torch", "deepspeed", "transformers", "python"} <= first["versions"].keys()
    assert first["machine"]["cpus"] >= 1
    rows = {"read": 135, "quarantined": 1, "dropped": 5, "removed": 9, "leaks": 0, "short_leaks": 4}
    assert first["data"]["train"] == {"samples": 120, "tokens": 999, "truncated": 3, **rows}
    assert first["labels"] == {"a": {"train": 100, "test": 0}, "b": {"train": 20, "test": 20}}
    assert "a-secret" not in text


def test_of_many_labels_the_most_frequent_are_recorded() -> None:
    counts = {"train": {f"label{i:05d}": i for i in range(1, 1001)}, "test": {"label00001": 10_000}}
    labels = label_counts(counts)
    assert len(labels) == MOST_LABELS and list(labels) == sorted(labels)
    assert labels["label00001"] == {"train": 1, "test": 10_000}
    assert labels["label01000"] == {"train": 1000, "test": 0} and "label00002" not in labels
    assert label_counts({"train": {}}) == {}


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/raytrain/__main__.py", "train", "a.yaml"], "raytrain train a.yaml"),
        (["/home/me/train.py", "--token", "a-secret"], "python train.py"),
        ([""], "python"),
        (["/x/ray/_private/workers/default_worker.py", "--node-ip=1.2.3.4"], None),
    ],
)
def test_arguments_of_a_script_are_not_recorded(argv: list[str], command: str | None) -> None:
    assert command_line(argv) == command


def test_the_commit_of_the_working_directory(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert git_state(str(tmp_path)) is None, "no repository"
    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    state = git_state(str(tmp_path))
    assert state is not None and len(state["commit"]) == 40 and not state["is_modified"]
    (tmp_path / "notes.txt").write_text("not tracked")
    assert git_state(str(tmp_path)) == state
    (tmp_path / "code.py").write_text("a = 2\n")
    assert git_state(str(tmp_path)) == {**state, "is_modified": True}
