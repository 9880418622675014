"""Selects the trackers of a config, checks that they are available, and drives all of them."""

import functools
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping

from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.storage import Storage
from raytrain.tracking.base import TRACKING, Opener, Row, TrackedRun
from raytrain.tracking.mlflow import Mlflow
from raytrain.tracking.sender import Sender
from raytrain.tracking.tensorboard import TensorBoard
from raytrain.tracking.wandb import Wandb

logger = logging.getLogger(__name__)

# How long a group that leaves for a resize or a stop waits for its trackers, and one at the end of the run.
LEAVE_WAIT_S, END_WAIT_S = 3.0, 30.0


def check_trackers(config: RunConfig) -> None:
    """Raises ConfigError for a tracker whose package is missing, or that would not save anything."""
    for name in ("wandb", "mlflow"):
        if getattr(config.tracking, name) is not None and not _is_installed(name):
            raise ConfigError(
                f"tracking.{name}: the package {name} is not installed: pip install 'raytrain[{name}]' here and on "
                f"every node, or set tracking.{name}=null"
            )
    section = config.tracking.wandb
    if section is not None and section.mode == "offline" and Storage(config.storage_path).local_path() is None:
        raise ConfigError(
            f"tracking.wandb.mode offline writes files, which {config.storage_path} can't be appended to; set it to "
            "online, or storage_path to a local or shared folder"
        )


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # W&B leaves folders named wandb, which look like packages


def openers(run: TrackedRun) -> dict[str, Opener]:
    """Tracker name -> function that opens it, for each tracker that the config enables."""
    tracking = run.config.tracking
    chosen: dict[str, Opener] = {}
    if tracking.tensorboard and run.folder.local_path() is not None:  # event files can't be appended on object stores
        chosen["tensorboard"] = functools.partial(TensorBoard, run)
    if tracking.wandb is not None:
        chosen["wandb"] = functools.partial(Wandb, run, tracking.wandb)
    if tracking.mlflow is not None:
        chosen["mlflow"] = functools.partial(Mlflow, run, tracking.mlflow)
    return chosen


class Trackers:
    """The trackers of a run, on rank 0."""

    def __init__(self, run: TrackedRun, now: Callable[[], float] = time.time, *, only_servers: bool = False):
        """`now`: seconds since the epoch. `only_servers`: leave out trackers that write files."""
        self._now = now
        chosen = {name: opener for name, opener in openers(run).items() if not only_servers or _is_server(run, name)}
        self._senders = [Sender(name, run.folder.path_of(), opener) for name, opener in chosen.items()]

    def log(self, values: Mapping[str, float | None], step: int, *, is_redone: bool) -> None:
        """Send a step's values, except those that are None, to all trackers."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        for sender in self._senders:
            sender.log(Row(step, self._now(), known, is_redone))

    def close(self, status: str) -> None:
        """See `Tracker.close`. Waits a short time for all trackers together."""
        end_s = time.monotonic() + (LEAVE_WAIT_S if status == "stopped" else END_WAIT_S)
        for sender in self._senders:
            sender.close(status)
        for sender in self._senders:
            sender.wait(end_s - time.monotonic())

    def complaints(self) -> Iterator[tuple[str, str]]:
        """(tracker, problem) pairs, once for each tracker."""
        for sender in self._senders:
            if (text := sender.take_complaint()) is not None:
                yield sender.name, text


def conclude(run: TrackedRun, status: str) -> None:
    """Report to servers how a run ended if its workers can't: they were killed, or left to be replaced. Never raises.

    Args:
        status: failed or killed.
    """
    try:
        if not run.folder.exists(TRACKING):  # no tracker was ever opened
            return
    except OSError as error:
        logger.warning("the trackers could not be told how the run has ended: %s", error)
        return
    trackers = Trackers(run, only_servers=True)
    trackers.log({}, 0, is_redone=True)  # opens them
    trackers.close(status)


def _is_server(run: TrackedRun, name: str) -> bool:
    section = run.config.tracking.wandb
    return name == "mlflow" or (name == "wandb" and section is not None and section.mode == "online")
