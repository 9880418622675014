"""Tells a webhook of the events of a watch: a POST of JSON, tried again until it has arrived.

The URL of a webhook is often a secret by itself. It is kept in memory only; messages name its host.
"""

import http.client
import json
import queue
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from raytrain.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TIMEOUT_S = 10.0
DELAYS_S = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Between two attempts; the last one is repeated."""
MOST_WAITING = 1000
"""Events that wait for delivery. The oldest of more are given up, and counted."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the event to where the user has not named, and as a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def check_url(url: str) -> str:
    """The host of a webhook's URL. Raises ConfigError when it can't be one; the message does not have the URL."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError("--webhook: this is not a URL; give one such as https://example.com/hook") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("--webhook: give a URL such as https://example.com/hook")
    if parts.scheme == "http" and host not in LOOPBACK:
        raise ConfigError(f"--webhook: http to {host} is not encrypted: give an https:// URL; http is for this machine")
    return host


class Webhook:
    """Sends events in a thread of its own, in their order."""

    def __init__(self, url: str, waiting: list[dict[str, Any]]):
        """`waiting`: events of before that have not arrived. Raises ConfigError."""
        self.host, self._url = check_url(url), url
        # A proxy is for other machines.
        proxies = [urllib.request.ProxyHandler({})] if self.host in LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._queue = queue.Queue[dict[str, Any] | None]()
        self._arrived, self._is_over = queue.Queue[int](), threading.Event()
        self.problem = ""
        """Why the newest attempt has failed; "" when it has not."""
        for event in waiting:
            self._queue.put(event)
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def send(self, event: dict[str, Any]) -> None:
        """Send an event, later."""
        self._queue.put(event)

    def arrived(self) -> set[int]:
        """The ids of events that have arrived since this was asked."""
        found = set()
        while not self._arrived.empty():
            found.add(self._arrived.get())
        return found

    def close(self, seconds: float) -> None:
        """Wait for what is waiting, for some seconds at most."""
        self._queue.put(None)
        self._thread.join(0.0 if self.problem else seconds)
        self._is_over.set()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            number = 0
            while not self._is_over.is_set():
                self.problem = self._attempt(event)
                if not self.problem:
                    self._arrived.put(event["id"])
                    break
                self._is_over.wait(DELAYS_S[min(number, len(DELAYS_S) - 1)])
                number += 1

    def _attempt(self, event: dict[str, Any]) -> str:
        """Why it has failed; "": it has arrived."""
        headers = {"Content-Type": "application/json", "User-Agent": "raytrain"}
        request = urllib.request.Request(self._url, json.dumps(event).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return "" if 200 <= answer.status < 300 else f"answered {answer.status}"
        except urllib.error.HTTPError as error:
            return f"answered {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None)
            return f"can't be reached ({type(reason or error).__name__})"
