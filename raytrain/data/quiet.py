"""Ray Data without its own bars and notes."""

import logging
from typing import Any


def quiet_ray_data() -> Any:
    """This process's DataContext, told to be quiet: the terminal is raytrain's."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
