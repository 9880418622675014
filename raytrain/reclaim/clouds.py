"""What the clouds' metadata services report about the end of this machine. No Ray.

There is one class per cloud. Its `read()` returns the notices that are current, and descriptions of what could not be
read. It never raises: any failure (no answer, 5xx, garbage) is reported as a problem, so that one broken path does not
hide the others.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from raytrain.errors import ConfigError
from raytrain.reclaim.metadata import METADATA_URL, MetadataError, MetadataService, json_object, parse_time, text_of

SPOT_GRACE_S = 120.0  # AWS gives two minutes; used when the time in a notice can't be read
GCP_PREEMPTED_GRACE_S = 30.0
GCP_MAINTENANCE_GRACE_S = 60.0  # the minimum: machines with GPUs get an hour, but the service doesn't say which applies


@dataclass(frozen=True)
class Notice:
    """An upcoming action of the cloud on this machine.

    Attributes:
        key: Identifies the action; stays the same across reads.
        what: Description for the log and for the message of Ray's drain.
        deadline: Epoch seconds until which the machine stays up. None: unknown.
        drains: False: the notice is only logged, and the node keeps working.
        event_id: The event to acknowledge. None: it can't or must not be acknowledged.
    """

    key: str
    what: str
    deadline: float | None
    drains: bool = True
    event_id: str | None = None


@dataclass
class Reading:
    """The result of one read. If there are problems, a missing notice does not mean that it was withdrawn."""

    notices: list[Notice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Cloud(Protocol):
    """A cloud's metadata service."""

    name: str

    def answers(self) -> bool:
        """Whether this machine is on this cloud. Raises MetadataError if there is no usable answer."""

    def read(self) -> Reading:
        """All current notices. Never raises."""

    def acknowledge(self, event_id: str) -> None:
        """Tell the cloud that it need not wait. Raises MetadataError."""


def gather(sources: Iterable[Callable[[], Notice | None]]) -> Reading:
    """Read every source. The failure of one is reported as a problem and does not hide the others."""
    reading = Reading()
    for source in sources:
        try:
            notice = source()
        except MetadataError as error:
            reading.problems.append(str(error))
        else:
            reading.notices += [notice] if notice else []
    return reading


class Aws:
    """EC2. A spot interruption notice drains the node; a rebalance recommendation drains it only on request.

    A recommendation says "at elevated risk", names no time, and is often not followed by an interruption: giving up
    healthy nodes costs more than an earlier warning gains. AWS's own node termination handler has the same default.
    """

    name = "aws"

    def __init__(self, service: MetadataService, *, drain_on_rebalance: bool = False):
        self._service, self._drain_on_rebalance = service, drain_on_rebalance
        self._token: str | None = None

    def answers(self) -> bool:
        """Whether IMDSv2 issues a token, which no other cloud does."""
        self._token = self._new_token()
        return True

    def read(self) -> Reading:
        """All current notices. Never raises."""
        return gather([self._interruption, self._rebalance])

    def acknowledge(self, event_id: str) -> None:
        """No effect: EC2 has no acknowledgement."""

    def _interruption(self) -> Notice | None:
        path = "/latest/meta-data/spot/instance-action"
        if (text := self._get(path)) is None:
            return None
        found = json_object(text, path)
        action, moment = found.get("action"), parse_time(found.get("time"))
        if action not in ("terminate", "stop", "hibernate"):
            raise MetadataError(f"{path}: unknown action")
        if moment is None:  # hibernation begins at once; for other actions the notice matters more than its time
            moment = time.time() + (0.0 if action == "hibernate" else SPOT_GRACE_S)
        return Notice(f"aws-{action}", f"EC2 spot interruption: {action}", moment)

    def _rebalance(self) -> Notice | None:
        path = "/latest/meta-data/events/recommendations/rebalance"
        if (text := self._get(path)) is None:
            return None
        if "noticeTime" not in json_object(text, path):
            raise MetadataError(f"{path}: no noticeTime")
        return Notice("aws-rebalance", "EC2 rebalance recommendation", None, drains=self._drain_on_rebalance)

    def _get(self, path: str) -> str | None:
        """GET with a token, which is renewed once if it has expired."""
        for _ in range(2):
            self._token = self._token or self._new_token()
            answer = self._service.ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if answer.status != 401:
                return text_of(answer, path)
            self._token = None
        raise MetadataError(f"{path}: HTTP 401 with a fresh token")

    def _new_token(self) -> str:
        path = "/latest/api/token"
        answer = self._service.ask("PUT", path, {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
        token = text_of(answer, path)
        if token is None or not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):  # it travels in a header
            raise MetadataError(f"{path}: the answer is not a token")
        return token


class Gcp:
    """Compute Engine. Preemption drains the node, and so does maintenance that stops the machine, but not live
    migration."""

    name = "gcp"
    HEADERS = {"Metadata-Flavor": "Google"}

    def __init__(self, service: MetadataService):
        self._service = service

    def answers(self) -> bool:
        """Whether the service identifies itself in a header."""
        answer = self._service.ask("GET", "/computeMetadata/v1/instance/id", self.HEADERS)
        return answer.status == 200 and answer.headers.get("Metadata-Flavor") == "Google"

    def read(self) -> Reading:
        """All current notices. Never raises."""
        return gather([self._preempted, self._maintenance])

    def acknowledge(self, event_id: str) -> None:
        """No effect: Compute Engine has no acknowledgement."""

    def _preempted(self) -> Notice | None:
        path = "/computeMetadata/v1/instance/preempted"
        text = self._service.text(path, self.HEADERS)
        if text not in (None, "TRUE", "FALSE"):
            raise MetadataError(f"{path}: neither TRUE nor FALSE")
        deadline = time.time() + GCP_PREEMPTED_GRACE_S  # the watcher keeps the deadline of the first read
        return Notice("gcp-preempted", "Compute Engine preemption", deadline) if text == "TRUE" else None

    def _maintenance(self) -> Notice | None:
        path = "/computeMetadata/v1/instance/maintenance-event"
        text = self._service.text(path, self.HEADERS)
        if text in (None, "NONE"):
            return None
        if text == "MIGRATE_ON_HOST_MAINTENANCE":
            return Notice("gcp-migrate", "Compute Engine live migration", None, drains=False)
        if text != "TERMINATE_ON_HOST_MAINTENANCE":
            raise MetadataError(f"{path}: unknown event")
        deadline = time.time() + GCP_MAINTENANCE_GRACE_S
        return Notice("gcp-terminate", "Compute Engine host maintenance stops the machine", deadline)


class Azure:
    """Azure scheduled events. Preempt, Terminate, Reboot and Redeploy end the node; a Freeze pauses it for seconds.

    Every machine of a scale set sees the events of all, so events that do not name this machine are skipped. For
    Preempt and Terminate, `Started` means that the machine is going down now. For Reboot and Redeploy it means that it
    is too late to drain, or that the reboot is over if this process started after it: draining a node that has just
    come back would remove it from the cluster needlessly.

    The first request enables the service and may take two minutes to be answered; until then, reads time out.
    """

    name = "azure"
    HEADERS = {"Metadata": "true"}
    EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
    NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    DRAINING = ("Preempt", "Terminate", "Reboot", "Redeploy")

    def __init__(self, service: MetadataService):
        self._service = service
        self._machine: str | None = None

    def answers(self) -> bool:
        """Whether the machine has a name here. Does not request events, whose first answer may take minutes."""
        return bool(self._machine_name())

    def read(self) -> Reading:
        """All current notices. Never raises."""
        try:
            machine = self._machine_name()
            text = self._service.text(self.EVENTS_PATH, self.HEADERS)
            if text is None:
                raise MetadataError(f"{self.EVENTS_PATH}: HTTP 404")
            events = json_object(text, self.EVENTS_PATH).get("Events")
            if not isinstance(events, list):
                raise MetadataError(f"{self.EVENTS_PATH}: no list of Events")
        except MetadataError as error:
            return Reading(problems=[str(error)])
        return gather(partial(self._notice, event, machine) for event in events)

    def acknowledge(self, event_id: str) -> None:
        """Let the event start before its time. Raises MetadataError."""
        body = json.dumps({"StartRequests": [{"EventId": event_id}]})
        headers = {**self.HEADERS, "Content-Type": "application/json"}
        text_of(self._service.ask("POST", self.EVENTS_PATH, headers, body), self.EVENTS_PATH)

    def _notice(self, event: Any, machine: str) -> Notice | None:
        kind, event_id, status, resources = _event_fields(event, self.EVENTS_PATH)
        if machine.casefold() not in [name.casefold() for name in resources]:
            return None
        is_started = status == "Started"
        if kind == "Freeze":
            return Notice(f"azure-{event_id}", "Azure scheduled event Freeze", None, drains=False)
        if kind not in self.DRAINING:
            raise MetadataError(f"{self.EVENTS_PATH}: an event of unknown type")
        if is_started and kind in ("Reboot", "Redeploy"):
            return Notice(f"azure-{event_id}-started", f"Azure {kind} has begun or is over", None, drains=False)
        deadline = time.time() if is_started else parse_time(event.get("NotBefore"))
        # An acknowledgement releases the event for all machines that it names, not only for this one.
        may = not is_started and len(resources) == 1
        what = f"Azure scheduled event {kind}"
        return Notice(f"azure-{event_id}", what, deadline, event_id=event_id if may else None)

    def _machine_name(self) -> str:
        if self._machine is None:
            text = self._service.text(self.NAME_PATH, self.HEADERS)
            if not text or not re.fullmatch(r"[\w.\-]{1,128}", text):
                raise MetadataError(f"{self.NAME_PATH}: the answer is not a name")
            self._machine = text
        return self._machine


def _event_fields(event: Any, path: str) -> tuple[str, str, str, list[str]]:
    """(type, id, status, machines) of a scheduled event. Raises MetadataError if it has another form."""
    if not isinstance(event, dict):
        raise MetadataError(f"{path}: an event is not an object")
    kind, event_id, resources = event.get("EventType"), event.get("EventId"), event.get("Resources")
    if not isinstance(kind, str) or not isinstance(event_id, str) or not isinstance(resources, list):
        raise MetadataError(f"{path}: an event lacks EventType, EventId or Resources")
    return kind, event_id, str(event.get("EventStatus")), [str(name) for name in resources]


def make_cloud(
    name: str, url: str = METADATA_URL, *, drain_on_rebalance: bool = False, timeout_s: float = 3.0
) -> Cloud:
    """The reader for a cloud: aws, gcp or azure. Raises ConfigError for any other name."""
    service = MetadataService(url, timeout_s)
    if name == "aws":
        return Aws(service, drain_on_rebalance=drain_on_rebalance)
    if name not in ("gcp", "azure"):
        raise ConfigError(f"cloud {name}: expected auto, aws, gcp or azure")
    return Gcp(service) if name == "gcp" else Azure(service)


def detect_cloud(url: str = METADATA_URL, timeouts_s: Iterable[float] = (1.0, 2.0)) -> str | None:
    """Find the cloud whose metadata service answers. None: none does.

    All three are asked at once. On a machine outside these clouds this takes at most the sum of `timeouts_s`, and often
    no time because the network refuses the address. The second round is for a service that is still starting.
    """
    names = ("gcp", "azure", "aws")
    for timeout_s in timeouts_s:
        clouds = [make_cloud(name, url, timeout_s=timeout_s) for name in names]
        with ThreadPoolExecutor(len(clouds)) as pool:
            answers = list(pool.map(_answers, clouds))
        if any(answers):
            return names[answers.index(True)]
    return None


def _answers(cloud: Cloud) -> bool:
    try:
        return cloud.answers()
    except MetadataError:
        return False
