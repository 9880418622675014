"""What raytrain relies on in Ray Train's internals. After an upgrade of Ray a test that fails here says what has
changed, and which of our files has to be looked at. If ours is still right, write down what it found."""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TRAIN = "ray.train.v2._internal"
EXECUTION = f"{TRAIN}.execution"
GROUP = f"{EXECUTION}.worker_group.worker_group"
WORKER = f"{EXECUTION}.worker_group.worker"
CONTROLLER = f"{EXECUTION}.controller.controller"
CONTEXT = f"{EXECUTION}.context"
POLL = f"{EXECUTION}.worker_group.poll"
OURS, OUR_WORKER = "raytrain/elastic/ray_train.py", "raytrain/elastic/ray_train_worker.py"

# What of ours is written after it, and the SHA-256 of its source.
SOURCES = {
    (GROUP, "WorkerGroup._start_impl"): (
        f"_LeasedWorkerGroup._start_impl in {OURS}",
        "1f4c2b9acf4cc8d884da8335e18c7312dca4d5779bd51b2f3aaac5a1f9ba0be8",
    ),
    (GROUP, "WorkerGroup._start"): (
        f"_LeasedWorkerGroup._start in {OURS}",
        "3d300069da85547d0d945cf81af1f61314d23f32e214af7108ceb8fd0eebd31b",
    ),
    (GROUP, "WorkerGroup.shutdown"): (
        f"_LeasedWorkerGroup.shutdown in {OURS}",
        "80888b2c096ea3497642fc053b4b925bf420cc783e42efe9f8a836f7ce77fbc6",
    ),
    (GROUP, "WorkerGroup.abort"): (
        f"_LeasedWorkerGroup.abort in {OURS}",
        "c7eaec91b9a5fd321a5ba036e7d54a2a5592e37b9626d5c5350c7a2504b35506",
    ),
    (GROUP, "WorkerGroup.poll_status"): (
        f"_LeasedWorkerGroup.poll_status in {OURS}",
        "c349bde66237b1f59fceab27d0684dd07828c5a8a22a5537299e11f88089f899",
    ),
    (CONTROLLER, "TrainController._step"): (
        f"DrivenController._step in {OURS}",
        "0a500d496e95197c24afd80eb5f7a9b568cbca64bddfd8f4d33593a1db8c53f6",
    ),
    (CONTROLLER, "TrainController._poll_workers"): (
        f"DrivenController._poll_workers in {OURS}",
        "eb70de21750ed85554daeab4fcb049d92bca93499b5460596c87603c7f0de4eb",
    ),
    (CONTROLLER, "TrainController.abort"): (
        "TrainRun._abort in raytrain/elastic/train_run.py",
        "811b5b0144f81e434947c3c6c8cea00619238917166d76eb7f824c6650c70186",
    ),
    (WORKER, "RayTrainWorker.init_train_context"): (
        f"ReusableWorker.init_train_context in {OUR_WORKER}",
        "9b0f2f48a6f5632eff8e6717bbabf4177567ffe6e64d763e35b7bb2c8b28892c",
    ),
    (WORKER, "RayTrainWorker.poll_status"): (
        f"_LeasedWorkerGroup._judged in {OURS} and DirectReporter in {OUR_WORKER}",
        "703b285a0c2d81ffc97843039069514c43c74c78ab45118e584bd0ff36e459fc",
    ),
    (CONTEXT, "TrainContext.report"): (
        f"DirectReporter.report in {OUR_WORKER}",
        "a3134ab706d49a95fdef09e8ac44572ddcf6c74413173b21ccc7690d85590465",
    ),
    (CONTEXT, "TrainContext._wait_then_report"): (
        f"DirectReporter.report in {OUR_WORKER}",
        "b263a3661097c990afbe50fab890c205406a96d4a776a67aa8c7f81276b7e8dd",
    ),
}

FIELDS = {
    (POLL, "WorkerStatus"): "running error training_report return_value preemption_info",
    (POLL, "WorkerGroupPollStatus"): "worker_statuses worker_rank_to_replica_group_rank",
    (f"{EXECUTION}.worker_group.state", "WorkerGroupState"): "start_time placement_group_handle workers sync_actor",
    (WORKER, "Worker"): ("actor metadata resources distributed_context log_file_path placement_group_bundle_index"),
    (CONTEXT, "DistributedContext"): "world_rank world_size local_rank local_world_size node_rank",
    (CONTEXT, "TrainContext"): (
        "train_run_context distributed_context execution_context storage_context preemption_context controller_actor "
        "dataset_shard_provider has_validation_fn checkpoint current_report_index report_call_index collective_seq "
        "report_order_condition checkpoint_upload_threadpool"
    ),
    ("ray.train", "PreemptionInfo"): "deadline_ms preempted_node_to_ranks",
}

POLICIES = {
    (f"{EXECUTION}.scaling_policy", "ScalingPolicy"): (
        "_get_num_workers_for_resource_request make_decision_for_non_running_worker_group "
        "make_decision_for_running_worker_group"
    ),
    (f"{EXECUTION}.failure_handling", "FailurePolicy"): "make_decision",
}


def _named(place: tuple[str, str]) -> Any:
    found: Any = __import__(place[0], fromlist=["_"])
    for name in place[1].split("."):
        found = getattr(found, name)
    return found


def _ids(places: dict[tuple[str, str], Any]) -> list[Any]:
    return [pytest.param(place, id=place[1]) for place in places]


@pytest.mark.parametrize("place", _ids(SOURCES))
def test_the_source_that_ours_is_written_after(place: tuple[str, str]) -> None:
    ours, known = SOURCES[place]
    found = hashlib.sha256(inspect.getsource(_named(place)).encode()).hexdigest()
    assert found == known, f"Ray's {place[1]} has changed: compare {ours} with {place[0]}, then put {found} here"


@pytest.mark.parametrize("place", _ids(FIELDS))
def test_the_fields(place: tuple[str, str]) -> None:
    """New ones have to be filled, or passed on, where ours makes one."""
    found = [field.name for field in dataclasses.fields(_named(place))]
    assert found == FIELDS[place].split(), f"Ray's {place[1]} has changed: look where {OURS} and {OUR_WORKER} use it"


def test_the_arguments_of_a_report() -> None:
    """It is no dataclass."""
    from ray.train.v2._internal.execution.training_report import _TrainingReport

    found = list(inspect.signature(_TrainingReport).parameters)
    assert found == ["checkpoint", "metrics", "validation"], f"look at DirectReporter.report in {OUR_WORKER}"
    assert set(vars(_TrainingReport(None, {}, False))) == set(found)


@pytest.mark.parametrize("place", _ids(POLICIES))
def test_what_a_policy_has_to_do(place: tuple[str, str]) -> None:
    found = sorted(_named(place).__abstractmethods__)
    assert found == POLICIES[place].split(), f"look at the policies in {OURS}"


def test_defaults_of_the_context_that_belong_to_the_class() -> None:
    """All contexts of a process share these two, so a worker that is used again makes its own: see ReusableWorker. One
    more such default would be shared unnoticed."""
    from ray.train.v2._internal.execution.context import TrainContext

    simple = (type(None), bool, int, str)
    found = {
        field.name
        for field in dataclasses.fields(TrainContext)
        if field.default is not dataclasses.MISSING and not isinstance(field.default, simple)
    }
    assert found == {"report_order_condition", "checkpoint_upload_threadpool"}, f"look at {OUR_WORKER}"


DEFAULT_CALLBACKS = [
    "AcceleratorSetupCallback",
    "BackendSetupCallback",
    "PlacementGroupCleanerCallback",
    "DatasetsCallback",
    "WorkingDirectorySetupCallback",
    "ControllerMetricsCallback",
    "WorkerMetricsCallback",
    "StateManagerCallback",
    "UserCallbackHandler",
]


@pytest.mark.slow
def test_the_default_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new one has to be looked at: does it suit workers that outlive their group, and no placement group? If not,
    it belongs in LEFT_OUT."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from raytrain.elastic import ray_train

    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    monkeypatch.delenv("RAY_TRAIN_CALLBACKS", raising=False)
    created, started = [], []

    def create(self: Any) -> list[Any]:
        created.extend(callbacks := of_ray(self))
        return callbacks

    of_ray = DataParallelTrainer._create_default_callbacks
    monkeypatch.setattr(DataParallelTrainer, "_create_default_callbacks", create)
    monkeypatch.setattr(ray_train, "ObjectRefWrapper", lambda function: function)  # which would start a Ray
    monkeypatch.setattr(ray_train, "start_actor", lambda *arguments, **options: started.append(arguments))
    ray_train.start_controller(lambda: None, "run", str(tmp_path), (1, 2), {"CPU": 1.0}, 3, [])
    assert [type(callback).__name__ for callback in created] == DEFAULT_CALLBACKS, f"look at LEFT_OUT in {OURS}"
    left_out = {callback.__name__ for callback in ray_train.LEFT_OUT}
    assert left_out == {"PlacementGroupCleanerCallback", "DatasetsCallback", "WorkingDirectorySetupCallback"}
    expected = [name for name in DEFAULT_CALLBACKS if name not in left_out]
    assert [type(callback).__name__ for callback in started[0][3]] == [*expected, "_NoDatasetShards"]


def test_the_barrier_heeds_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain.elastic.ray_train import _new_synchronizer

    plain = _new_synchronizer()
    assert (plain._timeout_s, plain._warn_interval_s) == (None, 60)
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "7")
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_WARN_INTERVAL_S", "3")
    told = _new_synchronizer()
    assert (told._timeout_s, told._warn_interval_s) == (7, 3)


@pytest.fixture(scope="module")
def folder(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield tmp_path_factory.mktemp("seams")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """Three groups of Ray's own."""
    from driven import PlainRun

    run = PlainRun(folder / "plain")
    run.record()
    return run


@pytest.fixture(scope="module")
def driven(folder: Path) -> Any:
    """Three groups of ours, of the same two processes."""
    from driven import DrivenRun

    run = DrivenRun(folder / "driven")
    run.record()
    return run


def test_hooks_are_called_in_rays_order(plain: Any, driven: Any) -> None:
    """Of the controller and of the workers: a group that fails, one that is resized, and one that comes to its end."""
    order = plain.hook_order()
    assert order.count("after_worker_group_start") == order.count("after_worker_group_shutdown") == 3
    assert driven.hook_order() == order
    for rank in (0, 1):
        expected = ["after_init_train_context", "before_worker_shutdown"] * 3
        assert plain.worker_order(rank) == driven.worker_order(rank) == expected


def test_groups_are_formed_of_the_same_processes(plain: Any, driven: Any) -> None:
    assert driven.pids(1) == driven.pids(2) == driven.pids(3) == driven.are_alive
    assert not set(plain.pids(1)) & set(plain.pids(2)), "of Ray's own each group has new ones: this test can tell"


def test_a_checkpoint_is_uploaded_in_a_thread_in_each_group(driven: Any) -> None:
    """Ray shuts the pool of upload threads down at the end of a group, and it belongs to a class."""
    kept = {
        (group, rank): number for name, group, rank, *rest in driven.workers.read() if name == "kept" for number in rest
    }
    assert kept == {(2, 0): 1, (2, 1): 1, (3, 0): 2, (3, 1): 2}
    assert driven.result.metrics == {"group": 3}
    with driven.result.checkpoint.as_directory() as path:
        assert (Path(path) / "group").read_text() == "3"
    assert driven.result.return_value == "group 3"
    assert driven.result.error is None


def test_the_state_is_rays(plain: Any, driven: Any) -> None:
    assert driven.state() == ("FINISHED", ["ERRORED", "FINISHED", "FINISHED"])
    assert plain.state() == driven.state()


def test_an_aborted_run(folder: Path) -> None:
    """Hooks and state; and our worker lives."""
    import ray
    from driven import DrivenRun, PlainRun

    plain, driven = PlainRun(folder / "plain_aborted"), DrivenRun(folder / "driven_aborted")
    for run in (plain, driven):
        run.start(1)
        run.abort()
    assert driven.hook_order() == plain.hook_order()
    assert "after_worker_group_abort" in driven.hook_order()
    assert driven.worker_order(0) == plain.worker_order(0)
    assert driven.state() == plain.state() == ("ABORTED", ["ABORTED"])
    (actor,) = driven.actors
    assert [ray.get(actor.get_metadata.remote()).pid] == driven.pids(1)
    ray.kill(actor)


def test_a_run_that_is_aborted_between_two_groups(folder: Path) -> None:
    """Its controller waits for an order then. It stays aborted, and makes no error of it."""
    from driven import DrivenRun

    run = DrivenRun(folder / "aborted_early")
    run.start(0)
    run.abort_between_groups()
    assert run.state() == ("ABORTED", [])
    assert run.hook_order() == []


def test_a_run_that_is_told_that_it_has_failed(folder: Path) -> None:
    import ray
    from driven import DrivenRun

    run = DrivenRun(folder / "failed")
    done = run.start(1)
    run.workers.wait_for(("reported", 1, 0))
    (run.folder / "end_1").touch()
    run.controller.conclude.remote("there was no room")
    run.end(done)
    assert run.state() == ("ERRORED", ["ERRORED"])
    assert "there was no room" in str(run.result.error)
    ray.kill(run.actors[0])


@pytest.mark.parametrize("content", [b"", b"{", b'{"ray_version": "0"}', b'{"checkpoint_results": [{"a": 1}]}'])
def test_a_damaged_list_of_reports_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """It is a mirror: raytrain's own checkpoints are what a run is resumed from."""
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    from raytrain.elastic.ray_train_checkpoints import MirroredCheckpoints

    storage = StorageContext(str(tmp_path), "run")
    Path(storage.checkpoint_manager_snapshot_path).parent.mkdir(parents=True, exist_ok=True)
    Path(storage.checkpoint_manager_snapshot_path).write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017, PT011  Ray Train's own, of one kind or another
        CheckpointManager(CheckpointConfig(), storage)
    assert MirroredCheckpoints(CheckpointConfig(), storage).latest_checkpoint_result is None


def test_storage_that_refuses_the_list_of_reports_ends_nothing(tmp_path: Path) -> None:
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.storage import StorageContext

    from raytrain.elastic.ray_train_checkpoints import MirroredCheckpoints

    storage = StorageContext(str(tmp_path), "run")
    checkpoints = MirroredCheckpoints(CheckpointConfig(num_to_keep=1), storage)
    checkpoints._save_state_and_delete_old_checkpoints()
    path = Path(storage.checkpoint_manager_snapshot_path)
    assert path.exists()
    assert not path.with_name(f"{path.name}.new").exists()
    path.unlink()
    path.mkdir()  # as a file can't replace it, the write fails
    (path / "in the way").touch()
    checkpoints._save_state_and_delete_old_checkpoints()
