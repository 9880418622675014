"""Spot first, and on-demand where spot was refused: how Ray's autoscaler (v1) ranks the node types that fit a demand.

The head of `cluster/ray_up/aws.yaml` names this in RAY_AUTOSCALER_UTILIZATION_SCORER. Ray's own ranking is handed which
launches were refused, and does not look: it would ask for spot for ever. Of two types that rank the same Ray takes the
one whose name is later in the alphabet, and `gpu_spot` is later than `gpu_on_demand`. Ray forgets a refusal after half
an hour.
"""

from typing import Any


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's own score with the availability in second place, after its wish to spare GPU nodes; None: nothing fits.

    Args:
        node_resources: What a node of this type has.
        resources: What is asked for, one entry a worker or task.
        node_type: Its name.
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
