"""Ray Data without its progress bars and log messages, and within its part of the cluster."""

import logging
from typing import Any

BLOCK_BYTES = 1 << 20  # Ray Data passes results on once it has this many bytes
OBJECT_STORE_BYTES = 32 << 20  # results of one pipeline that may be in the object store
# Options of an operator. The cluster files give GPU nodes this label; their CPUs are for workers. Where there are no
# other nodes, or none are left, it runs on any: a pipeline must outlive the last data node.
AWAY_FROM_GPUS: dict[str, Any] = {
    "label_selector": {"raytrain/role": "!gpu"},
    "fallback_strategy": [{"label_selector": {}}],
}


def quiet_ray_data() -> Any:
    """This process's DataContext, with progress bars and messages off: raytrain has its own output."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def configure_pipelines(num_cpus: float) -> None:
    """Configure this process's pipelines: ordered, quiet, and limited to their part of the cluster."""
    import ray.data

    context = quiet_ray_data()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=num_cpus, object_store_memory=OBJECT_STORE_BYTES
    )
