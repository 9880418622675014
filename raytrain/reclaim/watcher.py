"""Drains the local Ray node when the cloud announces that it will reclaim this machine, so that training moves away.

Open-source Ray does not read the clouds' notices. `raytrain reclaim-watch` runs beside Ray on each node that may be
reclaimed (as a systemd unit, a line after `ray start` in the start-up commands, or a sidecar), polls the metadata
service every few seconds, and turns a notice into an ordinary Ray drain with reason PREEMPTION and the cloud's
deadline. It needs no permissions in the cloud.

Drained: EC2 spot interruptions; Compute Engine preemption and maintenance that stops the machine; Azure Preempt,
Terminate, Reboot and Redeploy. Only logged: EC2 rebalance recommendations (unless requested), live migrations, Azure
Freeze.

Rules:
- A node is drained once, and again only for a notice with an earlier deadline.
- A notice more than DRAIN_AHEAD_S ahead (Azure plans some events a week ahead) waits, and the node keeps working.
- While a notice is current, a Ray node that is restarted on this machine (as KubeRay and systemd do) is drained too.
- Ray can't cancel a drain: if a notice is withdrawn, the log says so, and the node stays out until Ray is restarted.
- If Ray can't be reached, the drain is retried with back-off from RETRY_S up to the interval, while the notice lasts.
- The same problem is logged once per hour, not at every poll.
- Azure is told that it need not wait (StartRequests) only with `acknowledge`, only once the drained node has left Ray,
  so that nothing of Ray runs there any more, and only for an event that names this machine alone. An accepted drain
  would be too early: the workers still have to save, and Azure may take the machine at once. Without an
  acknowledgement, Azure simply waits until the event is due.
"""

import logging
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from raytrain.errors import ConfigError
from raytrain.ray_core.drain import ChildDrain, Drain, DrainError
from raytrain.reclaim.clouds import Cloud, Notice, Reading, detect_cloud, make_cloud
from raytrain.reclaim.metadata import METADATA_URL, MetadataError

URL_VARIABLE = "RAYTRAIN_METADATA_URL"
DRAIN_AHEAD_S = 1200.0  # more than the 15 minutes of Azure's usual notices
RETRY_S = 0.5
SAY_AGAIN_S = 3600.0
NO_CLOUD = (
    "no cloud's metadata service answers: this machine is not on AWS, GCP or Azure, or the service can't be reached"
    " (in a container on AWS the instance's metadata hop limit must be 2). --cloud names one without asking"
)

logger = logging.getLogger(__name__)


class Watcher:
    """Polls the metadata service and acts on its notices.

    Args:
        cloud: Source of the notices.
        drain: Connection to Ray.
        interval_s: Seconds between two polls.
        acknowledge: Whether to tell the cloud that the machine may go once its node has left Ray.
    """

    def __init__(self, cloud: Cloud, drain: Drain, *, interval_s: float = 5.0, acknowledge: bool = False):
        self._cloud, self._drain = cloud, drain
        self._interval_s, self._acknowledge = interval_s, acknowledge
        self._standing: dict[str, Notice] = {}
        self._told: dict[str, float] = {}  # node id -> deadline that Ray was given, inf for none
        self._acknowledged: set[str] = set()
        self._said: dict[str, float] = {}  # problem -> when it was logged
        self._retry_s = RETRY_S

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop` is set, whatever the service answers."""
        while not stop.is_set():
            stop.wait(self.look())

    def look(self) -> float:
        """Poll once and act on the result. Returns the seconds until the next poll."""
        try:
            self._take_note(self._cloud.read())
            self._act()
        except DrainError as error:
            self._say_once(str(error))
            pause_s, self._retry_s = min(self._retry_s, self._interval_s), 2 * self._retry_s
            return pause_s
        except Exception as error:  # a bug of ours must not lose the next notice
            self._say_once(f"unexpected: {error!r}", with_traceback=True)
        self._retry_s = RETRY_S
        return self._interval_s

    def _take_note(self, reading: Reading) -> None:
        """Keep the current notices, each with the earliest deadline seen."""
        for problem in reading.problems:
            self._say_once(f"{self._cloud.name} metadata: {problem}")
        for notice in reading.notices:
            known = self._standing.get(notice.key)
            if known is None:
                logger.warning("%s: %s", notice.what, _meaning(notice))
            if known is None or _deadline(notice) < _deadline(known):
                self._standing[notice.key] = notice
        if not reading.problems:  # a notice that could not be read may still be current
            self._forget(set(self._standing) - {notice.key for notice in reading.notices})

    def _forget(self, withdrawn: set[str]) -> None:
        for key in withdrawn:
            notice = self._standing.pop(key)
            stays = "; Ray can't take the drain back: restart Ray here to use this node again" if self._told else ""
            logger.warning("%s: no longer announced%s", notice.what, stays if notice.drains else "")
        if not any(notice.drains for notice in self._standing.values()):
            self._told.clear()

    def _act(self) -> None:
        """Drain the nodes if a notice is near. Raises DrainError."""
        soon = time.time() + DRAIN_AHEAD_S
        near = [n for n in self._standing.values() if n.drains and (n.deadline is None or n.deadline < soon)]
        if not near:
            return
        nodes = self._drain.nodes()
        if not nodes and not self._told:
            self._say_once("no Ray node runs on this machine: nothing to drain yet")
        first = min(near, key=_deadline)
        for node_id in nodes:
            if _deadline(first) + 1 < self._told.get(node_id, math.inf) or node_id not in self._told:
                self._drain.drain(node_id, f"{first.what}{_when(first)}", _deadline(first))
                self._told[node_id] = _deadline(first)
                logger.warning("told Ray to drain node %s: %s%s", node_id[:8], first.what, _when(first))
        if self._acknowledge and self._told and not nodes:
            self._let_go(near)

    def _let_go(self, notices: list[Notice]) -> None:
        """Acknowledge the notices once the drained node has left Ray, so that the cloud need not wait."""
        for notice in notices:
            if notice.event_id is None or notice.event_id in self._acknowledged:
                continue
            try:
                self._cloud.acknowledge(notice.event_id)
            except MetadataError as error:
                self._say_once(f"could not acknowledge: {error}")
            else:
                self._acknowledged.add(notice.event_id)
                logger.warning("%s: acknowledged, the node has left Ray", notice.what)

    def _say_once(self, trouble: str, *, with_traceback: bool = False) -> None:
        now = time.monotonic()
        if now - self._said.get(trouble, -math.inf) < SAY_AGAIN_S:
            return
        self._said = {text: at for text, at in self._said.items() if now - at < SAY_AGAIN_S} | {trouble: now}
        logger.warning("%s", trouble, exc_info=with_traceback)


def _deadline(notice: Notice) -> float:
    return math.inf if notice.deadline is None else notice.deadline


def _when(notice: Notice) -> str:
    if notice.deadline is None:
        return ""
    return f" at {time.strftime('%H:%M:%S', time.localtime(notice.deadline))}"


def _meaning(notice: Notice) -> str:
    if not notice.drains:
        return "logged only, the node stays"
    if notice.deadline is None:
        return "the machine will go, at an unknown time"
    left_s = notice.deadline - time.time()
    waits = f"; the node keeps working until {DRAIN_AHEAD_S / 60:.0f} minutes before" if left_s > DRAIN_AHEAD_S else ""
    return f"the machine goes{_when(notice)}, in {max(left_s, 0):.0f} s{waits}"


def find_cloud(cloud: str, metadata_url: str | None = None, *, drain_on_rebalance: bool = False) -> Cloud | None:
    """The cloud that this machine is on, as named or detected. None: `auto` found none.

    Args:
        cloud: auto, aws, gcp or azure. A named one is used even if it does not answer yet.
        metadata_url: Base URL of the metadata service; None: RAYTRAIN_METADATA_URL, or http://169.254.169.254.
        drain_on_rebalance: Whether an EC2 rebalance recommendation drains the node, without a deadline.

    Raises:
        ConfigError: Unknown cloud, or an invalid URL.
    """
    url = metadata_url or os.environ.get(URL_VARIABLE) or METADATA_URL
    name = detect_cloud(url) if cloud == "auto" else cloud
    return make_cloud(name, url, drain_on_rebalance=drain_on_rebalance) if name else None


def watch_this_node(
    cloud: str = "auto",
    *,
    interval_s: float = 5.0,
    address: str | None = None,
    node_id: str | None = None,
    drain_on_rebalance: bool = False,
    acknowledge: bool = False,
    metadata_url: str | None = None,
) -> None:
    """Watch until SIGTERM or Ctrl-C. Installs a SIGTERM handler, so it must be called in the main thread.

    Args:
        cloud: auto, aws, gcp or azure.
        interval_s: Seconds between two polls. AWS recommends 5, Azure 1; a GCP notice leaves only 30 s.
        address: `host:port` of the cluster. None: RAY_ADDRESS, or the Ray of this machine. Ray may start later.
        node_id: The node to drain, in hex. None: every Ray node on this machine.
        drain_on_rebalance: Whether an EC2 rebalance recommendation drains the node.
        acknowledge: Whether to tell Azure that it need not wait once the node has left Ray.
        metadata_url: Base URL of the metadata service; None: RAYTRAIN_METADATA_URL, or http://169.254.169.254.

    Raises:
        ConfigError: An argument is invalid, or `auto` finds no cloud.
    """
    signal.signal(signal.SIGTERM, _leave)
    drain = ChildDrain(address, node_id)
    try:
        found = find_cloud(cloud, metadata_url, drain_on_rebalance=drain_on_rebalance)
        if found is None:
            raise ConfigError(NO_CLOUD)
        logger.warning("watching %s every %g s; %s", found.name, interval_s, _ray_state(drain))
        Watcher(found, drain, interval_s=interval_s, acknowledge=acknowledge).run(threading.Event())
    except KeyboardInterrupt:
        logger.warning("stopped")
    finally:
        drain.close()


def _ray_state(drain: Drain) -> str:
    """What a notice would do now. Logged at the start, when a wrong address or token can still be fixed."""
    try:
        nodes = drain.nodes()
    except DrainError as error:
        return f"{error}. It is asked again when a notice comes"
    names = ", ".join(node_id[:8] for node_id in nodes)
    return f"a notice drains Ray node {names}" if nodes else "no Ray node runs here yet"


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # interrupts any wait at once
