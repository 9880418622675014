"""Which Ray a command runs on: the cluster that it is told to join, or a private one that ends with it."""

import importlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.ray_core.nodes import knock

# Read by Ray when it is imported or started, so set before.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    # Of a sweep's processes many are meant, and those that are ended are no news. What fails, and which nodes are lost,
    # is told by its run; and where JSON is printed, nothing else may be.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started|A worker died or was killed|"
    "The node with node id",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
REACH_TIMEOUT_S = 5.0
DASHBOARD_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class RaySession:
    """A connection to Ray, and what the cluster has."""

    num_cpus: float
    num_gpus: float
    """GPUs that are there, or that the cluster's autoscaler may bring."""
    is_private: bool
    """Whether this Ray is this command's own: no node will join it."""
    can_grow: bool
    """Whether an autoscaler can add nodes."""


def cluster_address(config: RunConfig) -> str | None:
    """Address of the cluster to join; None: a private Ray is started."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(config: RunConfig, private_cpus: int, preload: str | None = None) -> Iterator[RaySession]:
    """Connect to the Ray that a config names for the length of a command; see `connection`."""
    with connection(cluster_address(config), private_cpus, preload) as session:
        yield session


@contextmanager
def connection(address: str | None, private_cpus: int, preload: str | None = None) -> Iterator[RaySession]:
    """Connect to a Ray for the length of a command.

    Args:
        address: Of the cluster; None: a private Ray is started.
        private_cpus: Logical CPUs of a private Ray. They exceed what the workers hold, or Ray Data would wait for
            ever; the machine's real cores are shared by the operating system.
        preload: Module that the command will need, imported while Ray starts.

    Raises:
        ConfigError: The cluster can't be reached.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address is None:
        _lock_private_ray()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():  # someone who called raytrain.train() has a Ray already: use it, and leave it running
        yield _session(is_private=False)
        return
    # Ray starts for seconds in other processes; this one can import meanwhile. It is waited for: two threads that
    # import modules of one circle, of which Ray has some, each see half of it.
    importing = threading.Thread(target=importlib.import_module, args=(preload or "ray",), daemon=True)
    importing.start()
    try:
        if address is None:
            os.environ.setdefault(TRACKING, "0")  # before its processes inherit the environment
            ray.init(
                address="local",
                num_cpus=private_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        else:
            _check_that_someone_listens(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConfigError:
        raise
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address {address}: can't join this cluster: {error}. Is it running, and is RAY_AUTH_MODE with its "
            "token set as on the cluster?"
        ) from None
    except Exception as error:
        told = f"Ray could not be started: {error}. Is the machine out of memory or processes?"
        raise TrainingError(told, FailureCode.RAY) from error
    try:
        importing.join()
        yield _session(is_private=address is None)
    finally:
        ray.shutdown()


def _track_state() -> None:
    """Have Ray Train keep its list of runs, for whoever looks at the cluster. A private Ray ends before anyone could.

    The actor that keeps it asks Ray's dashboard now and then whether the controllers live, and complains at length
    where there is none.
    """
    from ray._private.worker import get_dashboard_url

    os.environ.setdefault(TRACKING, "1")
    try:
        knock(get_dashboard_url() or ":0", DASHBOARD_TIMEOUT_S)
    except (OSError, OverflowError, ValueError):
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")


def _check_that_someone_listens(address: str) -> None:
    """Ray itself would try for minutes. Raises ConfigError."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is the URL of a job server, which `raytrain submit` speaks with; to join the cluster itself "
            "give the head's address with the port that `ray start --head` prints, HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # auto, local, ray://...: Ray knows what they mean
        return
    try:
        knock(address, REACH_TIMEOUT_S)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nobody answers at {address}: {error}. Give the head's address, with the port that `ray start --head` "
            "prints (6379 unless told otherwise), as --address, ray.address or RAY_ADDRESS"
        ) from None


def _session(*, is_private: bool) -> RaySession:
    import ray
    from ray._private.state import state

    if not is_private:
        _track_state()
    there = ray.cluster_resources()
    most = state.get_max_resources_from_cluster_config() or {}
    num_gpus = max(there.get("GPU", 0.0), most.get("GPU", 0.0))
    return RaySession(there.get("CPU", 0.0), num_gpus, is_private, can_grow=not is_private and bool(most))


def _lock_private_ray() -> None:
    """Ray's ports listen on all interfaces: a token that only this process and its children know keeps others out."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" in sys.modules:  # it has read the environment when it was imported
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
