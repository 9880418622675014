"""What a failure is called, and that its true cause is kept. No Ray is started."""

import errno
import importlib.util
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from raytrain.elastic.error_files import keep_traceback, keep_tracebacks
from raytrain.elastic.policy import FailureKind
from raytrain.elastic.worker_errors import code_of, death_of, error_of
from raytrain.elastic.worker_group import GroupFailure
from raytrain.errors import CheckpointError, ConfigError, DataError, FailureCode, RaytrainError, TrainingError
from raytrain.runs.result import RunResult
from raytrain.storage import Storage
from raytrain.training.outcome import Failed, Finished, RunStatus, Stopped
from raytrain.training.progress import Progress


def raised_by(module: ModuleType) -> Exception:
    try:
        module.fail()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def module_at(path: Path, body: str) -> ModuleType:
    """A module whose function `fail` does this."""
    path.parent.mkdir(parents=True)
    path.write_text(f"def fail():\n    {body}\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("body", ["raise ValueError('no room')", "raise RuntimeError('shape [2] is not [3]')"])
def test_a_bug_under_a_folder_named_igloo_is_a_bug(tmp_path: Path, body: str) -> None:
    """Once it was taken for the loss of a peer, whose library is gloo, and not reported as the cause."""
    found = error_of(raised_by(module_at(tmp_path / "igloo" / "NCCL" / "model.py", body)))
    assert (found.code, found.is_secondary) == (FailureCode.WORKER_ERROR, False)
    assert "igloo/NCCL/model.py:2" in found.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/CLASSROOM/a.parquet"), FailureCode.STORAGE),
        (CheckpointError("can't write /data/CLASSROOM/best"), FailureCode.STORAGE),
        (ValueError("row 3 of /data/CLASSROOM/out of memory.csv: the run diverged"), FailureCode.WORKER_ERROR),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), FailureCode.STORAGE),
    ],
)
def test_a_path_in_a_message_decides_nothing(error: Exception, code: FailureCode) -> None:
    """A failure whose path contains OOM was once "out of memory"."""
    assert code_of(error) is code


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. If reserved but unallocated memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OutOfMemoryError("Task was killed due to the node running low on memory"),
    ],
)
def test_memory(error: Exception) -> None:
    assert code_of(error) is FailureCode.OUT_OF_MEMORY


def test_memory_of_the_cpu() -> None:
    """torch raises a plain RuntimeError for it."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert error_of(caught.value).code is FailureCode.OUT_OF_MEMORY


def test_a_gpus_memory_comes_with_advice() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. If reserved but unallocated")
    except torch.OutOfMemoryError as error:
        told = error_of(error).message
    assert "lower training.micro_batch_size" in told
    assert "If reserved" not in told


@pytest.mark.parametrize("error", [dist.DistNetworkError("x"), dist.DistStoreError("x"), ActorDiedError()])
def test_errors_that_mean_that_a_peer_is_lost(error: Exception) -> None:
    assert code_of(error) is FailureCode.PEER_LOST


def test_an_error_in_a_task_of_ray_is_what_it_was_there() -> None:
    task_error = RayTaskError("read", "traceback", FileNotFoundError(errno.ENOENT, "No such file", "/gloo"))
    assert code_of(task_error.as_instanceof_cause()) is FailureCode.STORAGE


def test_what_it_was_explicitly_raised_from_counts() -> None:
    error = RuntimeError("elements [0, 3) are in none")
    error.__cause__ = CheckpointError("elements [0, 3) are in none")
    assert code_of(error) is FailureCode.STORAGE


def test_how_a_process_died() -> None:
    assert death_of(OutOfMemoryError("Task was killed")).code is FailureCode.OUT_OF_MEMORY
    assert death_of(ActorDiedError()).code is FailureCode.WORKER_DIED


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (ConfigError("x"), FailureCode.CONFIG, 2),
        (DataError("x"), FailureCode.DATA, 2),
        (DataError("x", FailureCode.UNKNOWN_LABEL), FailureCode.UNKNOWN_LABEL, 2),
        (CheckpointError("x"), FailureCode.STORAGE, 1),
        (TrainingError("x", FailureCode.DIVERGED), FailureCode.DIVERGED, 1),
    ],
)
def test_an_error_keeps_its_code_on_its_way(error: RaytrainError, code: FailureCode, exit_code: int) -> None:
    """It is pickled from worker to worker, and from there to the driver."""
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived)) == (type(error), "x")
    assert (arrived.code, arrived.exit_code) == (code, exit_code)


def test_the_traceback_of_a_worker_is_kept_without_credentials(tmp_path: Path) -> None:
    found = error_of(raised_by(module_at(tmp_path / "model.d" / "model.py", "open('s3://me:pa55word@host/x')")))
    assert found.traceback.startswith("Traceback") and 'model.py", line 2, in fail' in found.traceback
    failure = GroupFailure(FailureKind.ERROR, found.code, f"worker 1: {found.message}", {1: found.traceback})
    keep_tracebacks(Storage(str(tmp_path / "run")), failure)
    (file,) = (tmp_path / "run" / "errors").iterdir()
    text = file.read_text()
    assert text.startswith("worker 1: FileNotFoundError") and "==== worker 1 ====\nTraceback" in text
    assert "pa55word" not in text


def test_the_traceback_of_a_worker_without_our_driver(tmp_path: Path) -> None:
    """In a trainer of the user's own each worker writes for itself, unless it only lost another one."""
    lost = raised_by(
        module_at(tmp_path / "a" / "net.py", "import torch; raise torch.distributed.DistNetworkError('gone')")
    )
    keep_traceback(Storage(str(tmp_path)), 0, lost)
    assert not (tmp_path / "errors").exists()
    keep_traceback(
        Storage(str(tmp_path)), 3, raised_by(module_at(tmp_path / "b" / "model.py", "raise ValueError('mine')"))
    )
    (file,) = (tmp_path / "errors").iterdir()
    assert file.name.endswith("-worker-3.txt")
    assert file.read_text().startswith("ValueError: mine") and "==== worker 3 ====\nTraceback" in file.read_text()


@pytest.mark.parametrize("tracebacks", [{}, {0: "Traceback"}])
def test_that_a_traceback_can_not_be_kept_ends_nothing(tmp_path: Path, tracebacks: dict[int, str]) -> None:
    (tmp_path / "errors").write_text("a file where the folder should be")
    keep_tracebacks(Storage(str(tmp_path)), GroupFailure(FailureKind.ERROR, FailureCode.HANG, "", tracebacks))


def test_a_status_follows_from_the_outcome() -> None:
    assert Finished().status is RunStatus.FINISHED
    assert Finished(Progress(is_stopped_early=True)).status is RunStatus.STOPPED_EARLY
    assert (Stopped().status.is_done, Failed(FailureCode.HANG, "").status.is_done) == (False, False)


def test_the_summary_holds_words_that_a_program_reads() -> None:
    result = RunResult(RunStatus.FAILED, "runs/a", failure_code=FailureCode.OUT_OF_MEMORY, exit_code=1)
    written = json.loads(json.dumps(asdict(result)))
    assert (written["status"], written["failure_code"]) == ("failed", "out_of_memory")
