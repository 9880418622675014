"""What a server counts, for Prometheus. docs/serving.md lists the names."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServeMetrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # a series more for each, which nobody reads
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "raytrain_serve_requests", "Requests by path and status.", ["path", "code"], registry=own
        )
        self.seconds = Histogram(
            "raytrain_serve_request_seconds", "Seconds of a request to /predict.", buckets=SECONDS, registry=own
        )
        self.rows = Counter("raytrain_serve_rows", "Rows by result: predicted, refused.", ["result"], registry=own)
        self.groups = Histogram(
            "raytrain_serve_group_rows", "Rows that a replica answered together.", buckets=ROWS, registry=own
        )
        self.queue = Gauge("raytrain_serve_queue_rows", "Rows that wait for a replica.", registry=own)
        self.in_progress = Gauge("raytrain_serve_requests_in_progress", "Requests at this moment.", registry=own)
        self.replicas = Gauge("raytrain_serve_replicas", "Replicas that answer.", registry=own)
        self.retries = Counter(
            "raytrain_serve_retries", "Groups given to another replica after theirs had died.", registry=own
        )
        self.models = Counter("raytrain_serve_updates", "Models that have taken the place of another.", registry=own)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self.registry)
