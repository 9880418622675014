"""An S3 server on loopback that takes 20 ms for each answer: any number of files with the same content, in no memory.

It knows what pyarrow asks while files are listed and read: ListObjectsV2, HEAD, and GET with a range.
"""

import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

ANSWER_S = 0.02
PAGE = 1000  # keys of a listing's answer
ENDING = "parquet"


@contextmanager
def slow_s3(num_files: int, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yields (URI of a folder with this many files, a function that returns the number of requests so far by kind).

    The environment is set up so that this process reaches the server, which is a process of its own.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, num_files, content), daemon=True)
    server.start()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{here.recv()}",
        AWS_EC2_METADATA_DISABLED="true",
    )

    def requests() -> dict[str, int]:
        here.send(None)
        return here.recv()

    try:
        yield "s3://bucket/data", requests
    finally:
        server.kill()
        server.join()


def _serve(pipe: Any, num_files: int, content: bytes) -> None:
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one packet an answer

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_GET(self) -> None:
            self._answer("GET")

        def _answer(self, method: str) -> None:
            time.sleep(ANSWER_S)
            url = urlparse(self.path)
            query = parse_qs(url.query)
            counts["LIST" if "list-type" in query else method] += 1
            if "list-type" in query:
                self._send(200, _listing(query, num_files, len(content)), is_head=method == "HEAD")
            elif f".{ENDING}" not in url.path:
                self._send(404, b"", is_head=True)
            elif method == "HEAD":
                self._send(200, content, is_head=True)
            else:
                begin, end = map(int, re.findall(r"\d+", self.headers.get("Range", f"0-{len(content) - 1}")))
                self._send(206, content[begin : end + 1], is_head=False)

        def _send(self, status: int, body: bytes, *, is_head: bool) -> None:
            self.send_response(status)
            self.send_header("ETag", '"etag"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not is_head:
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    while True:
        pipe.recv()
        pipe.send(dict(counts))


def _listing(query: dict[str, list[str]], num_files: int, num_bytes: int) -> bytes:
    begin = int(query.get("continuation-token", ["0"])[0])
    end = min(num_files, begin + PAGE)
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < num_files else ""
    files = "".join(
        f"<Contents><Key>data/part-{i:06d}.{ENDING}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;etag&quot;</ETag><Size>{num_bytes}</Size></Contents>"
        for i in range(begin, end)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><KeyCount>{end - begin}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(end < num_files).lower()}</IsTruncated>{more}{files}</ListBucketResult>"
    ).encode()
