"""What nodes a cluster file describes, and which of them Ray's own autoscaler would launch."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Resources = Mapping[str, float]


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind."""

    name: str
    place: str
    """Dotted path in the file."""
    resources: Resources
    """What a node offers to Ray."""
    min_nodes: int
    max_nodes: int
    is_head: bool = False
    is_spot: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs of a node."""
        return int(self.resources.get("GPU", 0))

    @property
    def num_cpus(self) -> int:
        """CPUs that a node offers, which need not be all that it has."""
        return int(self.resources.get("CPU", 0))


def ray_up_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `ray up` file as Ray completes it: with its defaults, checked against its schema.

    Raises:
        ValueError: Or jsonschema's ValidationError, or what else Ray raises for a file that it can't use.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    with _quiet_ray():
        config = prepare_config(copy.deepcopy(dict(raw)))
        validate_config(config)
    return config


def kuberay_config(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of a RayCluster.

    Args:
        metadata: Of the RayCluster, or of the RayJob that makes one.
        spec: Of the RayCluster.

    Raises:
        ValueError: Or AssertionError, or KeyError: Ray can't read it.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    with _quiet_ray():
        return _derive_autoscaling_config_from_ray_cr({"metadata": {"namespace": "default", **metadata}, "spec": spec})


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Ray logs what it fills in, and aborts a command line on its own: neither is for our user."""
    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def node_groups(autoscaling: Mapping[str, Any], places: Mapping[str, str]) -> list[NodeGroup]:
    """The node types of Ray's autoscaler.

    Args:
        autoscaling: What `ray_up_config` or `kuberay_config` gives.
        places: Where each type stands in the user's file.
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
    """What Ray's autoscaler (v2) would launch beside the head in an empty cluster.

    Args:
        autoscaling: What `ray_up_config` or `kuberay_config` gives.
        demands: What is asked for, one entry a worker or task.
        refused: Node types whose nodes have just failed to come up.

    Returns:
        Nodes of each type, and how many of the demands no node fits.
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
