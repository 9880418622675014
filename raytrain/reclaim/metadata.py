"""HTTP client for the metadata service of a cloud, a link-local address, and parsers for its answers."""

import http.client
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from raytrain.errors import ConfigError

METADATA_URL = "http://169.254.169.254"  # used by all clouds; a name (metadata.google.internal) could hang in DNS
BODY_LIMIT_BYTES = 1 << 20


class MetadataError(Exception):
    """The metadata service gave no usable answer. The message names the path and the error, not the body."""


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of an HTTP response."""

    status: int
    text: str
    headers: http.client.HTTPMessage


class MetadataService:
    """HTTP client for one base URL. `http.client` follows no redirects and uses no proxy, as link-local requires.

    Args:
        url: `http://host[:port][/prefix]`.
        timeout_s: Timeout for connecting, and for each wait on the socket.

    Raises:
        ConfigError: The URL is not valid.
    """

    def __init__(self, url: str = METADATA_URL, timeout_s: float = 3.0):
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port or 80
        except ValueError as error:
            raise ConfigError(f"metadata URL {url}: {error}") from None
        if parts.scheme != "http" or not self._host or parts.query or parts.fragment:
            raise ConfigError(f"metadata URL {url}: expected http://host[:port][/prefix]")
        self._prefix, self._timeout_s = parts.path.rstrip("/"), timeout_s

    def ask(self, method: str, path: str, headers: dict[str, str], body: str | None = None) -> Answer:
        """Send one request. Raises MetadataError unless a complete response arrives."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, self._prefix + path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, self._body(response), response.headers)
        except TimeoutError:
            raise MetadataError(f"{path}: no answer in {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MetadataError(f"{path}: {type(error).__name__}") from None
        finally:
            connection.close()

    def _body(self, response: http.client.HTTPResponse) -> str:
        """Read the body within the timeout; the socket's own timeout would restart at every byte."""
        end, body = time.monotonic() + self._timeout_s, b""
        while (piece := response.read1(1 << 16)) and len(body) < BODY_LIMIT_BYTES:
            body += piece
            if time.monotonic() > end:
                raise TimeoutError
        return body.decode("utf-8", errors="replace").strip()

    def text(self, path: str, headers: dict[str, str]) -> str | None:
        """The body of a 200; None for a 404. Raises MetadataError for any other status."""
        return text_of(self.ask("GET", path, headers), path)


def text_of(answer: Answer, path: str) -> str | None:
    """The body of a 200; None for a 404. Raises MetadataError for any other status."""
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise MetadataError(f"{path}: HTTP {answer.status}")
    return answer.text


def json_object(text: str, path: str) -> dict[str, Any]:
    """Parse a JSON object. Raises MetadataError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise MetadataError(f"{path}: the answer is not JSON") from None
    if not isinstance(found, dict):
        raise MetadataError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def parse_time(text: object) -> float | None:
    """Parse `2017-09-18T08:22:00Z` or `Mon, 19 Sep 2016 18:29:47 GMT` to epoch seconds. None: neither form."""
    if not isinstance(text, str):
        return None
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
