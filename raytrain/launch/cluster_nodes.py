"""The node types that a cluster file describes, and which of them Ray's own autoscaler would launch."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Resources = Mapping[str, float]


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one type."""

    name: str
    place: str
    """Dotted path in the file."""
    resources: Resources
    """Resources that a node offers to Ray."""
    min_nodes: int
    max_nodes: int
    is_head: bool = False
    is_spot: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs per node."""
        return int(self.resources.get("GPU", 0))

    @property
    def num_cpus(self) -> int:
        """CPUs that a node offers to Ray, which may be fewer than it has."""
        return int(self.resources.get("CPU", 0))


def ray_up_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `ray up` file with Ray's defaults filled in, validated by Ray's schema.

    Raises:
        ValueError: Ray can't use the file. Ray also raises jsonschema's ValidationError and others.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    with _quiet_ray():
        config = prepare_config(copy.deepcopy(dict(raw)))
        validate_config(config)
    return config


def kuberay_config(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The autoscaler config that Ray derives from a RayCluster.

    Args:
        metadata: Metadata of the RayCluster, or of the RayJob that creates one.
        spec: Spec of the RayCluster.

    Raises:
        ValueError: Ray can't read it. Ray also raises AssertionError and KeyError.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    with _quiet_ray():
        return _derive_autoscaling_config_from_ray_cr({"metadata": {"namespace": "default", **metadata}, "spec": spec})


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Silences Ray's log of filled-in defaults, and turns its exit from the process into an exception."""
    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def node_groups(autoscaling: Mapping[str, Any], places: Mapping[str, str]) -> list[NodeGroup]:
    """The node types of an autoscaler config.

    Args:
        autoscaling: Result of `ray_up_config` or `kuberay_config`.
        places: Node type -> its dotted path in the user's file.
    """
    head = autoscaling["head_node_type"]
    return [
        NodeGroup(
            name=name,
            place=places.get(name, name),
            resources=node_type.get("resources", {}),
            min_nodes=1 if name == head else node_type.get("min_workers", 0),
            max_nodes=1 if name == head else node_type.get("max_workers", 0),
            is_head=name == head,
            is_spot=node_type.get("labels", {}).get("ray.io/market-type") == "spot",
        )
        for name, node_type in autoscaling["available_node_types"].items()
    ]


def nodes_for(
    autoscaling: Mapping[str, Any], demands: Iterable[Resources], refused: Iterable[str] = ()
) -> tuple[dict[str, int], int]:
    """Nodes that Ray's autoscaler (v2) would launch, besides the head, in an empty cluster.

    Args:
        autoscaling: Result of `ray_up_config` or `kuberay_config`.
        demands: Requested resources, one entry per worker or task.
        refused: Node types that have just failed to launch.

    Returns:
        (node type -> number of nodes, number of demands that fit on no node).
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    with _quiet_ray():
        config = AutoscalingConfig(copy.deepcopy(dict(autoscaling)), skip_content_hash=True)
        requests = [ResourceRequestUtil.make(dict(demand)) for demand in demands]
        reply = ResourceDemandScheduler().schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=config.get_node_type_configs(),
                max_num_nodes=config.get_config("max_workers"),
                resource_requests=ResourceRequestUtil.group_by_count(requests),
                recoverable_resource_availabilities=dict.fromkeys(refused, 0.0),
            )
        )
    launched = {request.instance_type: request.count for request in reply.to_launch}
    return launched, len(reply.infeasible_resource_requests)
