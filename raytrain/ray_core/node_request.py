"""Asking a cluster's autoscaler for nodes."""

import time
import uuid
from typing import Any

from raytrain.ray_core.nodes import Resources, demands, most_in

ASK_EVERY_S = 20.0  # seconds between two requests to the autoscaler
REQUEST_EXPIRES_S = 180
# The autoscaler starts no node at all when it could not start all that is asked for. So less is asked for after a
# while in vain, down to what is needed at least.
ASK_LESS_EVERY_S = 60.0


class NodeRequest:
    """What a run or a sweep would like to have. Its calls are cheap, and may come often."""

    def __init__(self, worker: Resources, data_cpus: float, least: int, least_data_cpus: float = 1.0):
        """Args:
        worker: What each worker holds.
        data_cpus: CPUs of each worker's pipeline.
        least: Workers, fewer of which would be of no use.
        least_data_cpus: For all pipelines together, at least.
        """
        self._worker, self._data_cpus = dict(worker), data_cpus
        self._least, self._least_data_cpus = least, least_data_cpus
        self._requester = f"raytrain-{uuid.uuid4().hex[:8]}"
        self._asked = 0
        self._limit: int | None = None
        self._next_ask_s = self._next_less_s = 0.0

    def ask(self, wanted: int, there: int) -> None:
        """Ask for what so many workers and their data would hold, or for as many as the cluster may ever have; where
        that was too much, for one more than there are.

        Args:
            wanted: Workers.
            there: Workers for which there is room now.
        """
        if time.monotonic() < self._next_ask_s:
            return
        self._next_ask_s = time.monotonic() + ASK_EVERY_S
        self._asked = self._count(wanted, there)
        _coordinator().request_resources.remote(
            requester_id=self._requester,
            resources=demands(self._worker, self._data_cpus, self._asked, self._least_data_cpus),
            expire_after_s=REQUEST_EXPIRES_S,
        )

    def is_in_vain(self) -> None:
        """There is no room for even the least. After a while of that, less is asked for."""
        if time.monotonic() < self._next_less_s:
            return
        is_first_look = self._next_less_s == 0.0
        self._next_less_s = time.monotonic() + ASK_LESS_EVERY_S
        if not is_first_look and self._asked > self._least:
            self._limit = max(self._least, self._asked // 2)
            self._next_ask_s = 0.0

    def is_met(self) -> None:
        """There is room for the least, or nobody waits for it."""
        self._next_less_s = 0.0

    def close(self) -> None:
        """Take the request back."""
        _coordinator().cancel_request.remote(requester_id=self._requester)

    def _count(self, wanted: int, there: int) -> int:
        if self._limit is not None and there >= self._limit:  # what was asked for has come: more may
            self._limit = 2 * there
        if self._limit is not None:
            return max(self._least, min(wanted, max(self._limit, there + 1)))
        from ray._private.state import state

        total = state.get_max_resources_from_cluster_config()
        if total:
            wanted = min(wanted, most_in(total, self._worker, self._data_cpus, self._least_data_cpus))
        return max(self._least, wanted)


def _coordinator() -> Any:
    """Ray's own actor that adds up what all runs and pipelines of a cluster want, for its autoscaler."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    return get_or_create_autoscaling_coordinator()
