"""Ray Data without its progress bars and log messages."""

import logging
from typing import Any


def quiet_ray_data() -> Any:
    """This process's DataContext, with progress bars and messages off: raytrain has its own output."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
