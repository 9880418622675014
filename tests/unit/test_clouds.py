"""The clouds' notices, read from real HTTP servers, and what the watcher makes of them. tests/ray drains in Ray."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from metadata_server import (
    EVENTS,
    MAINTENANCE,
    NAME,
    PREEMPTED,
    REBALANCE,
    SPOT,
    TOKEN,
    AwsServer,
    AzureServer,
    GcpServer,
    MetadataServer,
    azure_event,
)
from running import ENV

from raytrain.errors import ConfigError
from raytrain.ray_core.drain import ChildDrain, DrainError
from raytrain.reclaim.clouds import Notice, Reading, detect_cloud, make_cloud
from raytrain.reclaim.metadata import parse_time
from raytrain.reclaim.watcher import DRAIN_AHEAD_S, Watcher, find_cloud

ACTION = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
ACTION_TIME = 1789719720.0  # date -d 2026-09-18T08:22:00Z +%s


@pytest.fixture
def aws() -> Iterator[AwsServer]:
    with AwsServer() as server:
        yield server


@pytest.fixture
def gcp() -> Iterator[GcpServer]:
    with GcpServer() as server:
        yield server


@pytest.fixture
def azure() -> Iterator[AzureServer]:
    with AzureServer() as server:
        yield server


def read(name: str, server: MetadataServer) -> Reading:
    return make_cloud(name, server.url, timeout_s=0.5).read()


def only(reading: Reading) -> Notice:
    assert not reading.problems
    assert len(reading.notices) == 1
    return reading.notices[0]


# --- times


@pytest.mark.parametrize(
    "text",
    ["2026-09-18T08:22:00Z", "2026-09-18T10:22:00+02:00", "2026-09-18T08:22:00", "Fri, 18 Sep 2026 08:22:00 GMT"],
)
def test_times_of_all_clouds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("TZ", "Asia/Tokyo")  # a time without a zone is UTC wherever the machine stands
        time.tzset()
        assert parse_time(text) == ACTION_TIME
    time.tzset()


@pytest.mark.parametrize("text", ["", "soon", None, 5, ["2026"], "Mon, 99 Foo 2026 99:99:99 GMT", "9" * 5000])
def test_what_is_no_time(text: object) -> None:
    assert parse_time(text) is None


# --- AWS


def test_aws_nothing_due_and_one_token_for_many_reads(aws: AwsServer) -> None:
    cloud = make_cloud("aws", aws.url)
    for _ in range(3):
        assert cloud.read() == Reading()
    assert aws.issued == 1
    assert aws.count(SPOT) == aws.count(REBALANCE) == 3


def test_aws_interruption(aws: AwsServer) -> None:
    aws.pages[SPOT] = ACTION
    notice = only(read("aws", aws))
    assert notice.deadline == ACTION_TIME
    assert notice.drains
    assert "terminate" in notice.what


def test_aws_an_interruption_counts_though_its_time_is_garbage(aws: AwsServer) -> None:
    aws.pages[SPOT] = '{"action": "stop", "time": 17}'
    assert only(read("aws", aws)).deadline == pytest.approx(time.time() + 120, abs=5)
    aws.pages[SPOT] = '{"action": "hibernate"}'
    assert only(read("aws", aws)).deadline == pytest.approx(time.time(), abs=5)


def test_aws_token_that_ran_out_is_renewed(aws: AwsServer) -> None:
    cloud = make_cloud("aws", aws.url)
    cloud.read()
    aws.tokens.clear()
    aws.pages[SPOT] = ACTION
    assert only(cloud.read()).deadline == ACTION_TIME
    assert aws.issued == 2


def test_aws_a_token_that_is_never_right_ends_in_a_problem(aws: AwsServer) -> None:
    aws.breaks(SPOT, 401)
    aws.breaks(REBALANCE, 401)
    reading = read("aws", aws)
    assert not reading.notices
    assert len(reading.problems) == 2 and all("401" in problem for problem in reading.problems)
    assert len(aws.requests) <= 8


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "\x00", "x" * 9999])
def test_aws_a_token_that_is_none_is_not_sent(aws: AwsServer, token: str) -> None:
    aws.breaks(TOKEN, 200, token)
    reading = read("aws", aws)
    assert reading.problems == [f"{TOKEN}: the answer is not a token"] * 2
    assert aws.count(SPOT) == 0


def test_aws_rebalance_drains_only_when_asked_to(aws: AwsServer) -> None:
    aws.pages[REBALANCE] = '{"noticeTime": "2026-09-18T08:22:00Z"}'
    assert not only(read("aws", aws)).drains
    notice = only(make_cloud("aws", aws.url, drain_on_rebalance=True).read())
    assert notice.drains and notice.deadline is None


GARBAGE = [
    "",
    "<html>",
    "[]",
    "null",
    "7",
    '{"action": 5}',
    '{"action"',
    "{}",
    "[" * 100_000,
    '{"action": ["terminate"]}',
]


@pytest.mark.parametrize("body", GARBAGE)
def test_aws_garbage_is_a_problem_and_no_notice(aws: AwsServer, body: str) -> None:
    aws.pages[SPOT] = body
    reading = read("aws", aws)
    assert not reading.notices
    assert len(reading.problems) == 1 and reading.problems[0].startswith(SPOT)


def test_one_sick_path_hides_no_other(aws: AwsServer) -> None:
    aws.pages[SPOT] = ACTION
    aws.breaks(REBALANCE, 503)
    reading = read("aws", aws)
    assert [notice.key for notice in reading.notices] == ["aws-terminate"]
    assert reading.problems == [f"{REBALANCE}: HTTP 503"]


# --- HTTP


def test_a_service_that_hangs_costs_the_timeout(aws: AwsServer) -> None:
    aws.hangs(TOKEN, 3)
    began = time.monotonic()
    reading = make_cloud("aws", aws.url, timeout_s=0.2).read()
    assert time.monotonic() - began < 1.5
    assert "no answer in 0.2 s" in reading.problems[0]


def test_a_body_that_drips_costs_the_timeout(gcp: GcpServer) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(40):
                request.wfile.write(b"T")
                time.sleep(0.1)
        except OSError:
            pass

    gcp.broken[PREEMPTED] = drip
    began = time.monotonic()
    reading = make_cloud("gcp", gcp.url, timeout_s=0.3).read()
    assert time.monotonic() - began < 2
    assert reading.problems == [f"{PREEMPTED}: no answer in 0.3 s"]


def test_a_dropped_connection_is_a_problem(gcp: GcpServer) -> None:
    gcp.broken[PREEMPTED] = lambda request: request.connection.shutdown(socket.SHUT_RDWR)  # type: ignore[func-returns-value]
    reading = read("gcp", gcp)
    assert not reading.notices
    assert len(reading.problems) == 1


def test_redirects_are_not_followed(gcp: GcpServer) -> None:
    gcp.pages["/elsewhere"] = "TRUE"
    gcp.breaks(PREEMPTED, 302, Location=f"{gcp.url}/elsewhere")
    assert read("gcp", gcp) == Reading(problems=[f"{PREEMPTED}: HTTP 302"])
    assert gcp.count("/elsewhere") == 0


def test_proxies_are_not_asked(gcp: GcpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert read("gcp", gcp) == Reading()


@pytest.mark.parametrize("url", ["169.254.169.254", "https://x", "http://", "http://x:99999999", "http://x/?a=b"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="metadata URL"):
        make_cloud("aws", url)


def test_a_cloud_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected auto, aws, gcp or azure"):
        find_cloud("oracle")


# --- GCP


def test_gcp_preemption(gcp: GcpServer) -> None:
    assert read("gcp", gcp) == Reading()
    gcp.pages[PREEMPTED] = "TRUE"
    notice = only(read("gcp", gcp))
    assert notice.drains
    assert notice.deadline == pytest.approx(time.time() + 30, abs=5)


def test_gcp_maintenance(gcp: GcpServer) -> None:
    gcp.pages[MAINTENANCE] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert not only(read("gcp", gcp)).drains
    gcp.pages[MAINTENANCE] = "TERMINATE_ON_HOST_MAINTENANCE"
    notice = only(read("gcp", gcp))
    assert notice.drains and notice.deadline == pytest.approx(time.time() + 60, abs=5)


@pytest.mark.parametrize("body", ["", "true?", "<html>TRUE</html>", '{"preempted": true}', "TRUE" * 1000, "\xff\xfe"])
def test_gcp_garbage_is_a_problem_and_no_notice(gcp: GcpServer, body: str) -> None:
    gcp.pages[PREEMPTED] = gcp.pages[MAINTENANCE] = body
    reading = read("gcp", gcp)
    assert not reading.notices
    assert len(reading.problems) == 2


# --- Azure


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Reboot", "Redeploy"])
def test_azure_events_that_end_the_machine(azure: AzureServer, kind: str) -> None:
    assert read("azure", azure) == Reading()
    azure.show([azure_event(kind)])
    notice = only(read("azure", azure))
    assert notice.drains and kind in notice.what
    assert notice.deadline == pytest.approx(time.time() + 600, abs=5)


def test_azure_a_freeze_and_events_of_other_machines_drain_nothing(azure: AzureServer) -> None:
    azure.show([azure_event("Freeze"), azure_event("Preempt", EventId="b", Resources=["worker_33"])])
    assert not only(read("azure", azure)).drains
    azure.show([azure_event("Preempt", Resources=["WORKER_3"])])  # Azure's names ignore case
    assert only(read("azure", azure)).drains


def test_azure_started_events(azure: AzureServer) -> None:
    """A machine that has just been rebooted still sees its own Reboot."""
    azure.show([azure_event("Reboot", EventStatus="Started", NotBefore="")])
    assert not only(read("azure", azure)).drains
    azure.show([azure_event("Preempt", EventStatus="Started", NotBefore="")])
    notice = only(read("azure", azure))
    assert notice.drains and notice.deadline == pytest.approx(time.time(), abs=5)
    assert notice.event_id is None


def test_azure_an_event_shared_with_other_machines_can_not_be_acknowledged(azure: AzureServer) -> None:
    azure.show([azure_event("Redeploy")])
    assert only(read("azure", azure)).event_id is not None
    azure.show([azure_event("Redeploy", Resources=["worker_3", "worker_4"])])
    assert only(read("azure", azure)).event_id is None


@pytest.mark.parametrize(
    "event",
    [7, None, [], {}, {"EventType": "Preempt"}, azure_event("Preempt", Resources="worker_3"), azure_event("Nap")],
)
def test_azure_a_malformed_event_hides_no_other(azure: AzureServer, event: Any) -> None:
    azure.show([event, azure_event("Preempt", EventId="good")])
    reading = read("azure", azure)
    assert [notice.key for notice in reading.notices] == ["azure-good"]
    assert len(reading.problems) == 1


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"Events": {}}', '{"Events": null}', "<html>"])
def test_azure_garbage_is_a_problem_and_no_notice(azure: AzureServer, body: str) -> None:
    azure.pages[EVENTS] = body
    reading = read("azure", azure)
    assert not reading.notices
    assert len(reading.problems) == 1


def test_azure_without_its_own_name_takes_no_event_for_its_own(azure: AzureServer) -> None:
    azure.breaks(NAME, 500)
    azure.show([azure_event("Preempt")])
    reading = read("azure", azure)
    assert not reading.notices and len(reading.problems) == 1


# --- which cloud


@pytest.mark.parametrize(("name", "kind"), [("aws", AwsServer), ("gcp", GcpServer), ("azure", AzureServer)])
def test_the_cloud_is_found(name: str, kind: Callable[[], MetadataServer], monkeypatch: pytest.MonkeyPatch) -> None:
    with kind() as server:
        assert detect_cloud(server.url) == name
        monkeypatch.setenv("RAYTRAIN_METADATA_URL", server.url)
        found = find_cloud("auto")
    assert found is not None and found.name == name


def test_a_machine_on_no_cloud_is_told_so_soon() -> None:
    with socket.socket() as silent:  # takes connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        assert detect_cloud(f"http://127.0.0.1:{silent.getsockname()[1]}", (0.1, 0.2)) is None
        assert time.monotonic() - began < 2
    assert detect_cloud("http://127.0.0.1:1") is None  # refuses


def test_any_web_server_is_no_cloud() -> None:
    with GcpServer() as server:
        for path in ("/computeMetadata/v1/instance/id", TOKEN, NAME):
            server.breaks(path, 200, "<html>Welcome to nginx</html>")
        assert detect_cloud(server.url) is None


# --- the watcher


class FakeRay:
    """What Ray was told."""

    def __init__(self) -> None:
        self.alive = ["node1"]
        self.drained: list[tuple[str, float]] = []
        self.failures = 0

    def nodes(self) -> list[str]:
        if self.failures:
            self.failures -= 1
            raise DrainError("no Ray")
        return self.alive

    def drain(self, node_id: str, message: str, deadline: float) -> None:
        self.drained.append((node_id, deadline))

    def close(self) -> None:
        pass


def watcher(name: str, server: MetadataServer, **options: Any) -> tuple[Watcher, FakeRay]:
    ray = FakeRay()
    cloud = make_cloud(name, server.url, drain_on_rebalance=options.pop("drain_on_rebalance", False), timeout_s=0.5)
    return Watcher(cloud, ray, **options), ray


def later(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def test_a_node_is_drained_once(gcp: GcpServer) -> None:
    watch, ray = watcher("gcp", gcp)
    watch.look()
    assert ray.drained == []
    gcp.pages[PREEMPTED] = "TRUE"
    for _ in range(3):
        assert watch.look() == 5.0
    assert len(ray.drained) == 1  # though its deadline, now + 30 s, moves on at each look


def test_a_nearer_deadline_is_passed_on(aws: AwsServer) -> None:
    watch, ray = watcher("aws", aws, drain_on_rebalance=True)
    aws.pages[REBALANCE] = '{"noticeTime": "2026-09-18T08:22:00Z"}'
    watch.look()
    aws.pages[SPOT] = f'{{"action": "terminate", "time": "{later(120)}"}}'
    for _ in range(2):
        watch.look()
    assert [deadline for _, deadline in ray.drained] == [math.inf, pytest.approx(time.time() + 120, abs=5)]


def test_a_notice_far_off_waits(azure: AzureServer) -> None:
    watch, ray = watcher("azure", azure)
    azure.show([azure_event("Redeploy", NotBefore=later(DRAIN_AHEAD_S + 100))])
    watch.look()
    assert ray.drained == []
    azure.show([azure_event("Redeploy", NotBefore=later(DRAIN_AHEAD_S - 100))])
    watch.look()
    assert len(ray.drained) == 1


def test_a_withdrawn_notice_is_said_and_a_new_one_counts(gcp: GcpServer, caplog: pytest.LogCaptureFixture) -> None:
    watch, ray = watcher("gcp", gcp)
    gcp.pages[PREEMPTED] = "TRUE"
    watch.look()
    gcp.pages[PREEMPTED] = "FALSE"
    watch.look()
    assert "restart Ray here" in caplog.text
    gcp.pages[PREEMPTED] = "TRUE"
    watch.look()
    assert len(ray.drained) == 2


def test_a_notice_that_can_not_be_read_stands(gcp: GcpServer, caplog: pytest.LogCaptureFixture) -> None:
    watch, ray = watcher("gcp", gcp)
    gcp.pages[PREEMPTED] = "TRUE"
    watch.look()
    gcp.breaks(PREEMPTED, 500)
    watch.look()
    assert "no longer" not in caplog.text
    gcp.broken.clear()
    watch.look()
    assert len(ray.drained) == 1


def test_a_node_that_starts_under_a_standing_notice_is_drained_too(gcp: GcpServer) -> None:
    watch, ray = watcher("gcp", gcp)
    gcp.pages[PREEMPTED] = "TRUE"
    ray.alive = []
    watch.look()
    ray.alive = ["node1"]
    watch.look()
    ray.alive = ["node2"]  # the raylet has left, and something has started it again
    watch.look()
    assert [node_id for node_id, _ in ray.drained] == ["node1", "node2"]


def test_the_first_deadline_holds_where_the_cloud_gives_none(gcp: GcpServer) -> None:
    watch, ray = watcher("gcp", gcp)
    gcp.pages[PREEMPTED] = "TRUE"
    ray.alive = []
    watch.look()
    seen = time.time()
    time.sleep(0.2)
    ray.alive = ["node1"]
    watch.look()
    assert ray.drained[0][1] <= seen + 30


def test_ray_out_of_reach_is_tried_again_with_back_off(gcp: GcpServer, caplog: pytest.LogCaptureFixture) -> None:
    watch, ray = watcher("gcp", gcp, interval_s=3.0)
    gcp.pages[PREEMPTED] = "TRUE"
    ray.failures = 5
    assert [watch.look() for _ in range(6)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert len(ray.drained) == 1
    assert caplog.text.count("no Ray") == 1


def test_trouble_is_logged_once_and_never_ends_the_watch(gcp: GcpServer, caplog: pytest.LogCaptureFixture) -> None:
    watch, ray = watcher("gcp", gcp)
    for body in ("garbage", "more garbage", ""):
        gcp.pages[PREEMPTED] = body
        assert watch.look() == 5.0
    assert len(caplog.records) == 1
    gcp.breaks(PREEMPTED, 503)
    for _ in range(3):
        watch.look()
    assert len(caplog.records) == 2
    gcp.broken.clear()
    gcp.pages[PREEMPTED] = "TRUE"
    watch.look()
    assert len(ray.drained) == 1


def test_azure_is_told_to_go_ahead_only_when_the_node_has_left(azure: AzureServer) -> None:
    watch, ray = watcher("azure", azure, acknowledge=True)
    azure.show([azure_event("Terminate")])
    for _ in range(2):
        watch.look()
    assert len(ray.drained) == 1
    assert azure.posted == []
    ray.alive = []
    azure.breaks(EVENTS, 500)  # trouble when it would be acknowledged
    watch.look()
    assert azure.posted == []
    azure.broken.clear()
    for _ in range(3):
        watch.look()
    assert azure.posted == [["602d9444-d2cd-49c7-8624-8643e7171297"]]


@pytest.mark.parametrize(
    ("acknowledge", "resources"), [(False, ["worker_3"]), (True, ["worker_3", "worker_4"])], ids=["unasked", "shared"]
)
def test_azure_is_not_told_to_go_ahead(azure: AzureServer, acknowledge: bool, resources: list[str]) -> None:
    watch, ray = watcher("azure", azure, acknowledge=acknowledge)
    azure.show([azure_event("Terminate", Resources=resources)])
    watch.look()
    ray.alive = []
    watch.look()
    assert len(ray.drained) == 1
    assert azure.posted == []


def test_a_machine_without_ray_is_not_let_go(azure: AzureServer, caplog: pytest.LogCaptureFixture) -> None:
    watch, ray = watcher("azure", azure, acknowledge=True)
    azure.show([azure_event("Terminate")])
    ray.alive = []
    watch.look()
    assert "no Ray node runs on this machine" in caplog.text
    assert azure.posted == []


# --- the command


def start_watch(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "raytrain", "reclaim-watch", *arguments]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def children_of(process: "subprocess.Popen[str]") -> list[str]:
    return subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_watches_and_leaves_nothing(aws: AwsServer, number: signal.Signals) -> None:
    process = start_watch("--interval-s", "0.1", "--metadata-url", aws.url, "--address", "127.0.0.1:1")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "watching aws" in line
        assert "can't reach Ray at 127.0.0.1:1" in line
        assert wait_until(lambda: aws.count(SPOT) >= 3)
        children = children_of(process)
        assert children
        process.send_signal(number)
        assert process.wait(5) == (0 if number == signal.SIGTERM else -number)
        assert ("stopped\n" in process.stdout.read()) == (number == signal.SIGTERM)
        assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
    finally:
        process.kill()
        process.wait()


def test_the_command_on_no_cloud() -> None:
    process = start_watch("--metadata-url", "http://127.0.0.1:1")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "not on AWS, GCP or Azure" in output


def test_a_child_that_dies_is_seen_at_once_and_started_again() -> None:
    """Ray ends a process whose control store is away for a minute."""
    drain = ChildDrain("127.0.0.1:1")
    try:
        with pytest.raises(DrainError, match="can't reach Ray at 127.0.0.1:1"):
            drain.nodes()
        drain._process.kill()
        began = time.monotonic()
        with pytest.raises(DrainError, match="has ended"):
            drain.drain("node1", "", math.inf)
        assert time.monotonic() - began < 5
        with pytest.raises(DrainError, match="can't reach Ray at 127.0.0.1:1"):
            drain.nodes()
    finally:
        drain.close()
