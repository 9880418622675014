"""What a server takes at most, and how the replicas of its model are asked for."""

from dataclasses import dataclass

from raytrain.errors import ConfigError

GROUP_ROWS, GROUP_CHARS = 64, 32 << 10
"""The most rows that a replica is given at once, and their characters; a longer row is alone. More would make short
requests wait, and hardly saves time."""
IMAGE_CHARS = 512
"""What an image counts for in a group, whatever its file: as the model sees them, all are of the same size."""
MOST_IMAGE_PIXELS = 1 << 24
"""Of an image in a request: 50 MB as RGB, so that many small files can't fill the memory."""
GROUP_TOKENS = 256
"""The most tokens that are generated for a group, all rows together; a row that is to have more is alone."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests. Each that is exceeded has its own status, see docs/serving.md."""

    max_rows: int = 1000
    """Rows of a request."""
    max_body_mb: float = 8.0
    """Of a request, in MB of 10^6 bytes."""
    timeout_s: float = 30.0
    """Until a request is answered, its body included."""
    max_queue: int = 4096
    """Rows that wait for a replica, of all requests."""
    max_new_tokens: int = 256
    """Tokens that a language model generates for a row."""
    max_requests: int = 1024
    """Requests at a time."""
    queue_bytes: int = 256_000_000
    """Of the bodies of all requests at a time."""

    @property
    def max_body(self) -> int:
        """In bytes."""
        return int(self.max_body_mb * 1e6)


@dataclass(frozen=True)
class Replicas:
    """How many copies of the model there are."""

    min: int
    max: int

    @classmethod
    def parse(cls, text: str) -> "Replicas":
        """`2`, or `1:4`. Raises ConfigError."""
        low, colon, high = text.partition(":")
        high = high if colon else low
        if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
            raise ConfigError(
                f"--replicas {text}: give a number such as 2, or the least and the most with a colon, such as 1:4"
            )
        return cls(int(low), int(high))
