"""Ray Train's controller is one more process that may die, or that user code may end."""

from pathlib import Path

import pytest
from cluster import NodePool
from running import worker_processes
from training import Training

pytestmark = pytest.mark.slow


def test_a_controller_that_dies_is_replaced(pool: NodePool, tmp_path: Path) -> None:
    """The workers train on, save, and are taken over by another one: no step is redone, no failure is charged."""
    pool.add()
    training = Training(pool, tmp_path, "workers.max_failures=0")
    training.wait_for_workers(2)
    workers = training.nodes()
    for _ in range(2):
        num_groups = len(training.events("start"))
        worker_processes(name="DrivenController")[0].kill()
        training.wait(lambda before=num_groups: len(training.events("start")) > before, "another group")
        training.wait_for_workers(2)
    assert training.nodes() == workers
    assert [event["steps_redone"] for event in training.events("resize", "failure")] == [0, 0]
    output = training.stop()
    assert "Ray Train's controller died" in output
    assert "Traceback" not in output
    training.assert_undisturbed()
    pool.assert_nothing_is_held()
