"""A cluster of several raylets on this machine; a fresh one for each test."""

from collections.abc import Iterator

import pytest
from cluster import NodePool, node_pool
from running import kill_all
from training import STARTED


@pytest.fixture
def pool() -> Iterator[NodePool]:
    """One node with room for one worker."""
    with node_pool(1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_command_is_left() -> Iterator[None]:
    """A test that fails leaves its command running otherwise."""
    yield
    for process in STARTED:
        if process.poll() is None:
            kill_all(process)
    STARTED.clear()
