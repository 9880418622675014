"""Which Ray a command runs on: the cluster that it is told to join, or a private one that ends with it."""

import importlib
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, TrainingError

# Read by Ray when it is imported or started, so set before.
QUIET = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more in each run, whose notices this version does not read
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class RaySession:
    """A connection to Ray, and what the cluster has."""

    num_cpus: float
    num_gpus: float


def cluster_address(config: RunConfig) -> str | None:
    """Address of the cluster to join; None: a private Ray is started."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(config: RunConfig, private_cpus: int) -> Iterator[RaySession]:
    """Connect to Ray for the length of a command.

    Args:
        config: `ray.address` and `ray.num_cpus` are used.
        private_cpus: Logical CPUs of a private Ray. They exceed what the workers hold, or Ray Data would wait for
            ever; the machine's real cores are shared by the operating system.

    Raises:
        ConfigError: The cluster can't be reached.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = cluster_address(config)
    if address is None:
        _lock_private_ray()
    import ray

    # Ray Train brings torch along, which takes seconds to import; Ray's own start is mostly waiting for processes.
    threading.Thread(target=importlib.import_module, args=("ray.train.torch",), daemon=True).start()
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():  # someone who called raytrain.train() has a Ray already: use it, and leave it running
        yield _session()
        return
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=private_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address {address}: can't join this cluster: {error}. Is it running, and is RAY_AUTH_MODE with its "
            "token set as on the cluster?"
        ) from None
    except Exception as error:
        raise TrainingError(f"Ray could not be started: {error}. Is the machine out of memory or processes?") from error
    try:
        yield _session()
    finally:
        ray.shutdown()


def _session() -> RaySession:
    import ray

    resources = ray.cluster_resources()
    return RaySession(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _lock_private_ray() -> None:
    """Ray's ports listen on all interfaces: a token that only this process and its children know keeps others out."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
