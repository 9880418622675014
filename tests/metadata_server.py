"""The metadata services of three clouds on loopback: paths, headers, statuses and bodies as documented."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Reply = tuple[int, str, dict[str, str]]
SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN = "/latest/api/token"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
EVENTS = "/metadata/scheduledevents"
NAME = "/metadata/instance/compute/name"


class MetadataServer:
    """A server in a thread. `pages` are the bodies of a healthy service; `broken` replaces whole replies, by path."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.broken: dict[str, Callable[[BaseHTTPRequestHandler], Reply | None]] = {}
        self.requests: list[tuple[str, str]] = []  # method, path
        self.posted: list[Any] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                path = urlsplit(self.path).path
                server.requests.append((self.command, path))
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length).decode()
                reply = server.broken[path](self) if path in server.broken else server.reply(self, path, body)
                if reply is None:  # it has seen to that itself
                    return
                status, text, headers = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def reply(self, request: BaseHTTPRequestHandler, path: str, body: str) -> Reply:
        raise NotImplementedError

    def breaks(self, path: str, status: int, text: str = "", **headers: str) -> None:
        """From now on `path` gives this, whatever is asked."""
        self.broken[path] = lambda request: (status, text, headers)

    def hangs(self, path: str, seconds: float) -> None:
        """From now on `path` answers too late."""

        def wait(request: BaseHTTPRequestHandler) -> Reply:
            time.sleep(seconds)
            return 200, "", {}

        self.broken[path] = wait

    def count(self, path: str) -> int:
        return sum(asked == path for _, asked in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class AwsServer(MetadataServer):
    """IMDSv2 with `HttpTokens: required`."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        self.issued = 0

    def reply(self, request: BaseHTTPRequestHandler, path: str, body: str) -> Reply:
        if path == TOKEN:
            if request.command != "PUT":
                return 405, "", {}
            ttl = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                return 400, "", {}
            self.issued += 1
            token = f"AQAEAL{self.issued}=="
            self.tokens.add(token)
            return 200, token, {"X-aws-ec2-metadata-token-ttl-seconds": ttl}
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, "", {}
        if path not in self.pages:
            return 404, '<?xml version="1.0"?><html><title>404 - Not Found</title></html>', {}
        return 200, self.pages[path], {}


class GcpServer(MetadataServer):
    def __init__(self) -> None:
        super().__init__()
        self.pages = {PREEMPTED: "FALSE", MAINTENANCE: "NONE", "/computeMetadata/v1/instance/id": "4520031799277581759"}

    def reply(self, request: BaseHTTPRequestHandler, path: str, body: str) -> Reply:
        headers = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        if request.command != "GET":
            return 405, "", headers
        if request.headers.get("Metadata-Flavor") != "Google":
            return 403, "<html>Missing Metadata-Flavor:Google header</html>", headers
        return (200, self.pages[path], headers) if path in self.pages else (404, "<html>Not Found</html>", headers)


class AzureServer(MetadataServer):
    def __init__(self) -> None:
        super().__init__()
        self.pages = {NAME: "worker_3"}
        self.show([])

    def show(self, events: list[Any]) -> None:
        self.pages[EVENTS] = json.dumps({"DocumentIncarnation": len(self.requests), "Events": events})

    def reply(self, request: BaseHTTPRequestHandler, path: str, body: str) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        if request.command == "PUT":
            return 405, "", {}
        if request.headers.get("Metadata") != "true" or "api-version" not in query:
            return 400, '{"error":"Bad request"}', {}
        if request.command == "POST":
            try:
                self.posted.append([start["EventId"] for start in json.loads(body)["StartRequests"]])
            except (ValueError, KeyError, TypeError):
                return 400, "", {}
            return 200, "", {}
        return (200, self.pages[path], {}) if path in self.pages else (404, '{"error":"Not found"}', {})


def azure_event(kind: str, **other: Any) -> dict[str, Any]:
    """A scheduled event of this machine, ten minutes off."""
    moment = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    event = {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventStatus": "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": ["worker_3"],
        "NotBefore": moment,
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return event | other
