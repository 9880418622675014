"""Prefers spot nodes, with on-demand nodes as the fallback: a utilization scorer for Ray's autoscaler (v1).

The head node of `cluster/ray_up/aws.yaml` names this scorer in RAY_AUTOSCALER_UTILIZATION_SCORER. Ray's own scorer
receives the record of refused launches but ignores it, and so would keep asking for spot. Among node types with equal
scores Ray takes the last in alphabetical order, and `gpu_spot` comes after `gpu_on_demand`. Ray forgets a refusal after
half an hour.
"""

from typing import Any


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's own score, with availability in second place after its preference to spare GPU nodes. None: nothing fits.

    Args:
        node_resources: Resources of a node of this type.
        resources: Requested resources, one entry per worker or task.
        node_type: Name of the node type.
        node_availability_summary: Ray's record of the last launch of each type.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    fit = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if fit is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    spares_gpus, *rest = fit
    return (spares_gpus, record is None or record.is_available, *rest)
