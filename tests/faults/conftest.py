"""A cluster of several raylets on this machine; a fresh one for each test."""

import os
from collections.abc import Iterator

import pytest
from cluster import NodePool


@pytest.fixture
def pool() -> Iterator[NodePool]:
    """One node with room for one worker."""
    before = dict(os.environ)
    cluster = NodePool(1)
    yield cluster
    cluster.close()
    for name in set(os.environ) - set(before):
        del os.environ[name]
