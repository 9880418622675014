"""Requests nodes from a cluster's autoscaler."""

import time
import uuid
from typing import Any

from raytrain.ray_core.nodes import Resources, demands, most_in

ASK_EVERY_S = 20.0  # seconds between two requests to the autoscaler
REQUEST_EXPIRES_S = 180
# The autoscaler starts no nodes at all if it can't start everything that is requested. After a while without success,
# the request is therefore reduced, down to the minimum.
ASK_LESS_EVERY_S = 60.0


class NodeRequest:
    """The resources that a run or a sweep requests. Its methods are cheap and may be called often."""

    def __init__(self, worker: Resources, data_cpus: float, least: int, least_data_cpus: float = 1.0):
        """Args:
        worker: Resources of a worker.
        data_cpus: CPUs of each worker's pipeline.
        least: Minimum number of workers.
        least_data_cpus: Minimum for all pipelines together.
        """
        self._worker, self._data_cpus = dict(worker), data_cpus
        self._least, self._least_data_cpus = least, least_data_cpus
        self._requester = f"raytrain-{uuid.uuid4().hex[:8]}"
        self._asked = 0
        self._limit: int | None = None
        self._next_ask_s = self._next_less_s = 0.0

    def ask(self, wanted: int, there: int) -> None:
        """Request the resources of `wanted` workers and their data, or of as many as the cluster can ever have. If that
        was refused before, request one more worker than there are.

        Args:
            wanted: Number of workers.
            there: Number of workers that fit now.
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
        """Not even the minimum fits. If this lasts for a while, the request is reduced."""
        if time.monotonic() < self._next_less_s:
            return
        is_first_look = self._next_less_s == 0.0
        self._next_less_s = time.monotonic() + ASK_LESS_EVERY_S
        if not is_first_look and self._asked > self._least:
            self._limit = max(self._least, self._asked // 2)
            self._next_ask_s = 0.0

    def is_met(self) -> None:
        """The minimum fits, or is not needed."""
        self._next_less_s = 0.0

    def close(self) -> None:
        """Withdraw the request."""
        _coordinator().cancel_request.remote(requester_id=self._requester)

    def _count(self, wanted: int, there: int) -> int:
        if self._limit is not None and there >= self._limit:  # the request was met, so it may be increased
            self._limit = 2 * there
        if self._limit is not None:
            return max(self._least, min(wanted, max(self._limit, there + 1)))
        from ray._private.state import state

        total = state.get_max_resources_from_cluster_config()
        if total:
            wanted = min(wanted, most_in(total, self._worker, self._data_cpus, self._least_data_cpus))
        return max(self._least, wanted)


def _coordinator() -> Any:
    """Ray's actor that sums the requests of all runs and pipelines of a cluster for its autoscaler."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    return get_or_create_autoscaling_coordinator()
