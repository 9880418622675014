"""Connects a command to Ray: to the configured cluster, or to a private Ray that ends with the command."""

import importlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.ray_core.nodes import knock
from raytrain.ray_core.quiet import quieten

TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
REACH_TIMEOUT_S = 5.0
DASHBOARD_TIMEOUT_S = 1.0
STARTS = 2  # of a private Ray, before its error is told


@dataclass(frozen=True)
class RaySession:
    """A connection to Ray and the capacity of the cluster."""

    num_cpus: float
    num_gpus: float
    """GPUs of the cluster, including those that its autoscaler may add."""
    is_private: bool
    """Whether this command started Ray for itself: no nodes will join it."""
    can_grow: bool
    """Whether an autoscaler can add nodes."""


def cluster_address(config: RunConfig) -> str | None:
    """Address of the cluster to join. None: start a private Ray."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(config: RunConfig, private_cpus: int, preload: str | None = None) -> Iterator[RaySession]:
    """Connect to the Ray that a config names, for the duration of a command; see `connection`."""
    with connection(cluster_address(config), private_cpus, preload) as session:
        yield session


@contextmanager
def connection(address: str | None, private_cpus: int, preload: str | None = None) -> Iterator[RaySession]:
    """Connect to Ray for the duration of a command.

    Args:
        address: Address of the cluster. None: start a private Ray.
        private_cpus: Logical CPUs of a private Ray. Must exceed what the workers hold, or Ray Data would wait
            indefinitely; the operating system shares the machine's real cores.
        preload: Module that the command needs, imported while Ray starts.

    Raises:
        ConfigError: The cluster can't be reached.
    """
    quieten()
    if address is None:
        _lock_private_ray()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():  # the caller of raytrain.train() has connected already: use it, and leave it running
        yield _session(is_private=False)
        return
    # Ray starts in other processes for several seconds, in which this one can import. The import is waited for: Ray has
    # circular imports, of which two threads importing at the same time would each see half.
    importing = threading.Thread(target=importlib.import_module, args=(preload or "ray",), daemon=True)
    importing.start()
    try:
        if address is None:
            _start_private(private_cpus)
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


def _start_private(num_cpus: int) -> None:
    """Start a Ray of this process. Ray gives its node 30 s to come up, which a busy machine may exceed: then it is
    started anew. Raises the last error."""
    import ray

    os.environ.setdefault(TRACKING, "0")  # before child processes inherit the environment
    for left in reversed(range(STARTS)):
        try:
            with _hangup_blocked():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
            return
        except Exception:
            if not left:
                raise
            ray.shutdown()


@contextmanager
def _hangup_blocked() -> Iterator[None]:
    """Context in which processes are started that SIGHUP does not end, as Ray does with Ctrl-C: the end of a terminal
    sends it to all that the command has started, and without them nothing could be saved."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _track_state() -> None:
    """Have Ray Train keep its list of runs for users of the cluster. A private Ray ends before anyone could look.

    The actor that keeps the list polls Ray's dashboard for live controllers, and logs long errors if there is no
    dashboard.
    """
    from ray._private.worker import get_dashboard_url

    os.environ.setdefault(TRACKING, "1")
    try:
        knock(get_dashboard_url() or ":0", DASHBOARD_TIMEOUT_S)
    except (OSError, OverflowError, ValueError):
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")


def _check_that_someone_listens(address: str) -> None:
    """Fail fast: Ray itself would retry for minutes. Raises ConfigError."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is the URL of a job server, which only `raytrain submit` uses; to join the cluster itself "
            "give the head's address with the port that `ray start --head` prints, HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # auto, local, ray://...: left to Ray
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
    """Ray's ports listen on all interfaces; a token known only to this process and its children keeps others out."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" in sys.modules:  # it read the environment when it was imported
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
