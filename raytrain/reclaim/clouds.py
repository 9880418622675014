"""What the clouds' metadata services say about the end of this machine. No Ray here.

Each cloud has one class with `read()`: every notice that stands right now, and what could not be read. A reader never
raises: whatever the service answers (nothing, 5xx, garbage) becomes a problem in words, so that one sick path hides no
other.
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

SPOT_GRACE_S = 120.0  # AWS: two minutes from notice to end, for a notice whose time can't be read
GCP_PREEMPTED_GRACE_S = 30.0
GCP_MAINTENANCE_GRACE_S = 60.0  # the least: machines with a GPU get an hour, and the service doesn't say which holds


@dataclass(frozen=True)
class Notice:
    """One thing that the cloud is about to do to this machine.

    Attributes:
        key: The same at each read for as long as the cloud means the same thing.
        what: For people: the log, and the message of Ray's drain.
        deadline: Epoch seconds before which the machine stays; None: the cloud doesn't say.
        drains: False: worth a line in the log, but the node stays.
        event_id: What an acknowledgement names; None: nothing can or may be acknowledged.
    """

    key: str
    what: str
    deadline: float | None
    drains: bool = True
    event_id: str | None = None


@dataclass
class Reading:
    """What one look at the metadata service gave; with problems, a missing notice does not mean a withdrawn one."""

    notices: list[Notice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Cloud(Protocol):
    """A cloud's metadata service."""

    name: str

    def answers(self) -> bool:
        """Whether this machine is on this cloud; raises MetadataError when nothing usable answers."""

    def read(self) -> Reading:
        """Everything that stands now; never raises."""

    def acknowledge(self, event_id: str) -> None:
        """Tell the cloud that it need not wait; raises MetadataError."""


def gather(sources: Iterable[Callable[[], Notice | None]]) -> Reading:
    """Ask each source; the failure of one is a problem, and hides no other."""
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
    """EC2: the spot interruption notice drains; the rebalance recommendation does so only when asked to.

    A recommendation says "at elevated risk", names no time, and often nothing follows: a healthy node given up for
    nothing costs more than an earlier warning gains. AWS's own node termination handler has the same default.
    """

    name = "aws"

    def __init__(self, service: MetadataService, *, drain_on_rebalance: bool = False):
        self._service, self._drain_on_rebalance = service, drain_on_rebalance
        self._token: str | None = None

    def answers(self) -> bool:
        """IMDSv2 gives out a token, which no other cloud does."""
        self._token = self._new_token()
        return True

    def read(self) -> Reading:
        """Everything that stands now; never raises."""
        return gather([self._interruption, self._rebalance])

    def acknowledge(self, event_id: str) -> None:
        """EC2 asks for none."""

    def _interruption(self) -> Notice | None:
        path = "/latest/meta-data/spot/instance-action"
        if (text := self._get(path)) is None:
            return None
        found = json_object(text, path)
        action, moment = found.get("action"), parse_time(found.get("time"))
        if action not in ("terminate", "stop", "hibernate"):
            raise MetadataError(f"{path}: no known action")
        if moment is None:  # hibernation begins at once; for the others the notice itself is what counts
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
        """GET with a token, which is renewed once when it has run out."""
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
            raise MetadataError(f"{path}: the answer is no token")
        return token


class Gcp:
    """Compute Engine: preemption, and maintenance that stops the machine. A live migration drains nothing."""

    name = "gcp"
    HEADERS = {"Metadata-Flavor": "Google"}

    def __init__(self, service: MetadataService):
        self._service = service

    def answers(self) -> bool:
        """The service names itself in a header."""
        answer = self._service.ask("GET", "/computeMetadata/v1/instance/id", self.HEADERS)
        return answer.status == 200 and answer.headers.get("Metadata-Flavor") == "Google"

    def read(self) -> Reading:
        """Everything that stands now; never raises."""
        return gather([self._preempted, self._maintenance])

    def acknowledge(self, event_id: str) -> None:
        """Compute Engine asks for none."""

    def _preempted(self) -> Notice | None:
        path = "/computeMetadata/v1/instance/preempted"
        text = self._service.text(path, self.HEADERS)
        if text not in (None, "TRUE", "FALSE"):
            raise MetadataError(f"{path}: neither TRUE nor FALSE")
        deadline = time.time() + GCP_PREEMPTED_GRACE_S  # the watcher keeps the first, which is the nearest
        return Notice("gcp-preempted", "Compute Engine preemption", deadline) if text == "TRUE" else None

    def _maintenance(self) -> Notice | None:
        path = "/computeMetadata/v1/instance/maintenance-event"
        text = self._service.text(path, self.HEADERS)
        if text in (None, "NONE"):
            return None
        if text == "MIGRATE_ON_HOST_MAINTENANCE":
            return Notice("gcp-migrate", "Compute Engine live migration", None, drains=False)
        if text != "TERMINATE_ON_HOST_MAINTENANCE":
            raise MetadataError(f"{path}: no known event")
        deadline = time.time() + GCP_MAINTENANCE_GRACE_S
        return Notice("gcp-terminate", "Compute Engine host maintenance stops the machine", deadline)


class Azure:
    """Scheduled events: Preempt, Terminate, Reboot and Redeploy end what runs here; a Freeze pauses it for seconds.

    A scale set shows every machine's events to all, so those that don't name this machine are passed over. `Started`
    means for Preempt and Terminate that the machine is going now. For Reboot and Redeploy it means that it is too late,
    or, read by a process that is itself younger than the reboot, that it is over: draining a node that has just come
    back would take it from the cluster for nothing.

    The service is switched on by the first question, whose answer may take two minutes; until then the reads time out.
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
        """The machine has a name here; the events are not asked, since their first answer may take minutes."""
        return bool(self._machine_name())

    def read(self) -> Reading:
        """Everything that stands now; never raises."""
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
        """Let the event begin before its time; raises MetadataError."""
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
            raise MetadataError(f"{self.EVENTS_PATH}: an event of no known type")
        if is_started and kind in ("Reboot", "Redeploy"):
            return Notice(f"azure-{event_id}-started", f"Azure {kind} has begun or is over", None, drains=False)
        deadline = time.time() if is_started else parse_time(event.get("NotBefore"))
        # An acknowledgement lets the event go ahead for all the machines that it names, not for this one alone.
        may = not is_started and len(resources) == 1
        what = f"Azure scheduled event {kind}"
        return Notice(f"azure-{event_id}", what, deadline, event_id=event_id if may else None)

    def _machine_name(self) -> str:
        if self._machine is None:
            text = self._service.text(self.NAME_PATH, self.HEADERS)
            if not text or not re.fullmatch(r"[\w.\-]{1,128}", text):
                raise MetadataError(f"{self.NAME_PATH}: the answer is no name")
            self._machine = text
        return self._machine


def _event_fields(event: Any, path: str) -> tuple[str, str, str, list[str]]:
    """Type, id, status and machines of a scheduled event; raises MetadataError for another shape."""
    if not isinstance(event, dict):
        raise MetadataError(f"{path}: an event is no object")
    kind, event_id, resources = event.get("EventType"), event.get("EventId"), event.get("Resources")
    if not isinstance(kind, str) or not isinstance(event_id, str) or not isinstance(resources, list):
        raise MetadataError(f"{path}: an event lacks EventType, EventId or Resources")
    return kind, event_id, str(event.get("EventStatus")), [str(name) for name in resources]


def make_cloud(
    name: str, url: str = METADATA_URL, *, drain_on_rebalance: bool = False, timeout_s: float = 3.0
) -> Cloud:
    """The reader of a cloud by its name: aws, gcp or azure; raises ConfigError."""
    service = MetadataService(url, timeout_s)
    if name == "aws":
        return Aws(service, drain_on_rebalance=drain_on_rebalance)
    if name not in ("gcp", "azure"):
        raise ConfigError(f"cloud {name}: expected auto, aws, gcp or azure")
    return Gcp(service) if name == "gcp" else Azure(service)


def detect_cloud(url: str = METADATA_URL, timeouts_s: Iterable[float] = (1.0, 2.0)) -> str | None:
    """Which cloud's metadata service answers; None: none does.

    All three are asked at once. A machine on no cloud costs the sum of `timeouts_s`, often nothing: its network refuses
    the address. The second round is for a service that is still waking up.
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
