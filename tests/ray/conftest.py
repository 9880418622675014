"""A real, private Ray for the tests that call Ray Data themselves: one for all files of the process, until one needs a
cluster of its own."""

import os

import pytest
from running import start_local_ray


@pytest.fixture(scope="module")
def local_ray() -> None:
    """Four logical CPUs, so that several tasks run at once on any machine. It ends with the process."""
    for name, value in {"RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        start_local_ray()
