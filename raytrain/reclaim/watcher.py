"""The notice bridge: when the cloud is about to take this machine, its Ray node is drained, so that training leaves.

Open-source Ray reads no cloud's notice. `raytrain reclaim-watch` runs beside Ray on each node that may be reclaimed (a
systemd unit, a line after `ray start` in the node's start-up commands, a sidecar), asks the metadata service every few
seconds, and passes a notice on as an ordinary Ray drain with reason PREEMPTION and the cloud's deadline. It needs no
rights in the cloud.

What drains: EC2 spot interruptions; Compute Engine preemption and maintenance that stops the machine; Azure Preempt,
Terminate, Reboot and Redeploy. What is only logged: EC2 rebalance recommendations (unless asked for), live migrations,
Azure Freeze.

Rules:
- A node is drained once; again only when a notice with a nearer deadline comes.
- A notice further off than DRAIN_AHEAD_S (Azure plans some a week ahead) waits, and the node works on until then.
- While a notice stands, a Ray node that starts anew on this machine (KubeRay and systemd restart what leaves) is
  drained too.
- Ray has no way to take a drain back: when a notice is withdrawn the log says so, and the node stays out until Ray is
  restarted.
- Ray out of reach: tries again with back-off from RETRY_S up to the interval, for as long as the notice stands.
- The same trouble is logged once an hour, not at every look.
- Azure is told that it need not wait (StartRequests) only with `acknowledge`, only when the drained node has left Ray,
  which is when nothing of Ray runs there any more, and only for an event that names this machine alone. An accepted
  drain would be too early: the workers have yet to save, and Azure may take the machine at once. Without it Azure
  simply waits for its own time.
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
DRAIN_AHEAD_S = 1200.0  # more than the 15 minutes of Azure's ordinary notices
RETRY_S = 0.5
SAY_AGAIN_S = 3600.0
NO_CLOUD = (
    "no cloud's metadata service answers: this machine is on none of AWS, GCP and Azure, or the service is out of reach"
    " (in a container on AWS the instance's metadata hop limit must be 2). --cloud names one without asking"
)

logger = logging.getLogger(__name__)


class Watcher:
    """Looks at the metadata service, and passes on what it says.

    Args:
        cloud: Whose notices.
        drain: How Ray is told.
        interval_s: Seconds between two looks.
        acknowledge: Whether to tell the cloud that a machine which has left Ray may go.
    """

    def __init__(self, cloud: Cloud, drain: Drain, *, interval_s: float = 5.0, acknowledge: bool = False):
        self._cloud, self._drain = cloud, drain
        self._interval_s, self._acknowledge = interval_s, acknowledge
        self._standing: dict[str, Notice] = {}
        self._told: dict[str, float] = {}  # node id -> the deadline that Ray has, inf for none
        self._acknowledged: set[str] = set()
        self._said: dict[str, float] = {}  # trouble -> when it was logged
        self._retry_s = RETRY_S

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set; nothing that a service answers ends this."""
        while not stop.is_set():
            stop.wait(self.look())

    def look(self) -> float:
        """One look, and what follows from it; returns the seconds until the next."""
        try:
            self._take_note(self._cloud.read())
            self._act()
        except DrainError as error:
            self._say_once(str(error))
            pause_s, self._retry_s = min(self._retry_s, self._interval_s), 2 * self._retry_s
            return pause_s
        except Exception as error:  # a bug of ours must not cost the next notice
            self._say_once(f"unexpected: {error!r}", with_traceback=True)
        self._retry_s = RETRY_S
        return self._interval_s

    def _take_note(self, reading: Reading) -> None:
        """Keep the notices that stand, each with the nearest deadline that was seen."""
        for problem in reading.problems:
            self._say_once(f"{self._cloud.name} metadata: {problem}")
        for notice in reading.notices:
            known = self._standing.get(notice.key)
            if known is None:
                logger.warning("%s: %s", notice.what, _meaning(notice))
            if known is None or _deadline(notice) < _deadline(known):
                self._standing[notice.key] = notice
        if not reading.problems:  # what could not be read may well still stand
            self._forget(set(self._standing) - {notice.key for notice in reading.notices})

    def _forget(self, withdrawn: set[str]) -> None:
        for key in withdrawn:
            notice = self._standing.pop(key)
            stays = "; Ray can't take the drain back: restart Ray here to use this node again" if self._told else ""
            logger.warning("%s: no longer announced%s", notice.what, stays if notice.drains else "")
        if not any(notice.drains for notice in self._standing.values()):
            self._told.clear()

    def _act(self) -> None:
        """Drain what a notice that is near applies to; raises DrainError."""
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
        """The drained node has left Ray: the cloud need not wait for the deadline."""
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
        return "noted, the node stays"
    if notice.deadline is None:
        return "the machine will go, the time is not known"
    left_s = notice.deadline - time.time()
    waits = f"; the node works on until {DRAIN_AHEAD_S / 60:.0f} minutes before" if left_s > DRAIN_AHEAD_S else ""
    return f"the machine goes{_when(notice)}, in {max(left_s, 0):.0f} s{waits}"


def find_cloud(cloud: str, metadata_url: str | None = None, *, drain_on_rebalance: bool = False) -> Cloud | None:
    """The cloud that this machine is on, asked or named; None: `auto` found none.

    Args:
        cloud: auto, aws, gcp or azure. A named one is believed, also when it doesn't answer yet.
        metadata_url: Base URL of the metadata service; None: RAYTRAIN_METADATA_URL, or http://169.254.169.254.
        drain_on_rebalance: Whether an EC2 rebalance recommendation drains, without a deadline.

    Raises:
        ConfigError: No such cloud, or no URL.
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
    """Watch until SIGTERM or Ctrl-C, for a process of its own: it takes over SIGTERM. To be called in the main thread.

    Args:
        cloud: auto, aws, gcp or azure.
        interval_s: Seconds between two looks. AWS asks for 5, Azure for 1; a GCP notice leaves 30 s in all.
        address: `host:port` of the cluster; None: RAY_ADDRESS, or the Ray of this machine. Ray may start later.
        node_id: The node to drain, in hex; None: every Ray node on this machine.
        drain_on_rebalance: Whether an EC2 rebalance recommendation drains.
        acknowledge: Whether Azure is told that it need not wait once the node has left Ray.
        metadata_url: Base URL of the metadata service; None: RAYTRAIN_METADATA_URL, or http://169.254.169.254.

    Raises:
        ConfigError: An argument is wrong, or `auto` finds no cloud.
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
    """What a notice would find now: said at the start, when an address or a token can still be mended."""
    try:
        nodes = drain.nodes()
    except DrainError as error:
        return f"{error}. It is asked again when a notice comes"
    names = ", ".join(node_id[:8] for node_id in nodes)
    return f"a notice drains Ray node {names}" if nodes else "no Ray node runs here yet"


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # out of any wait, at once
