"""How much of the cluster a run may have: all that it can use, unless it is one of a sweep's trials."""

from collections.abc import Sequence


class Share:
    """Asked about once a second. This one sets no bounds."""

    def most_workers(self, nodes: Sequence[str]) -> int | None:
        """Workers that the run may have now, 0: it has to wait; None: up to workers.max.

        `nodes`: ids of the nodes that its processes are on, one entry a process.
        """
        return None

    least_data_cpus = 1.0
    """CPUs that stay free for the run's data, at least. The sweep has seen to that for all its trials together."""

    @property
    def is_stop_asked(self) -> bool:
        """Whether the run should save and end."""
        return False
