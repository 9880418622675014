"""A real, private Ray for the tests that call Ray Data themselves; one for the whole session."""

import logging
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Four logical CPUs, so that several tasks run at once on any machine."""
    for name, value in {"RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    import ray

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": root}},  # what tests define is found by Ray's processes too
    )
    yield
    ray.shutdown()
