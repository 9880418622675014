"""An S3 server on loopback."""

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager


class _Requests(logging.Handler):
    """Takes the lines that the server logs."""

    def __init__(self, requests: list[str]):
        super().__init__()
        self._requests = requests

    def emit(self, record: logging.LogRecord) -> None:
        if (found := re.search(r"([A-Z]+ /\S*)", record.getMessage())) is not None:
            self._requests.append(found[1])


@contextmanager
def s3_bucket(requests: list[str] | None = None) -> Iterator[str]:
    """Yields the URI of a new bucket, with the environment set up so that this process and its children reach it.

    `requests`: gets each request that the server has answered, such as "HEAD /bucket/key".
    """
    import boto3
    from moto.server import ThreadedMotoServer

    logger = logging.getLogger("werkzeug")
    logger.propagate = False  # a line a request
    logger.setLevel(logging.ERROR if requests is None else logging.INFO)
    handler = _Requests([] if requests is None else requests)
    logger.addHandler(handler)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}"
    finally:
        server.stop()
        logger.removeHandler(handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
