"""A real, private Ray for the tests that call Ray Data themselves; one for the whole session."""

import os
from collections.abc import Iterator

import pytest
from running import start_local_ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Four logical CPUs, so that several tasks run at once on any machine."""
    for name, value in {"RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    import ray

    start_local_ray()
    yield
    ray.shutdown()
