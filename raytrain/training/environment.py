"""What the bits of a result depend on besides the config and the data: the hardware, and the versions of libraries."""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import torch

from raytrain.training.run_log import RunLog

# Field of state.json.
ENVIRONMENT = "environment"
LIBRARIES = ("torch", "transformers", "deepspeed")


def environment_of(device: torch.device) -> dict[str, str | int]:
    """The environment of this worker."""
    versions: dict[str, str | int] = {name: version(name) for name in LIBRARIES}
    if device.type == "cuda":
        return {**versions, "device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda or ""}
    # The kernels are chosen by the instructions that a CPU has, and may divide their work by the number of threads.
    cpu = f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    return {**versions, "device": cpu, "threads": torch.get_num_threads(), "MKL_CBWR": os.environ.get("MKL_CBWR", "")}


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.machine()
    found = {name.strip(): value.strip() for name, value in lines.items()}
    return " ".join(found.get(name, "") for name in ("model name", "cpu family", "model", "stepping")).strip()


def first_difference(here: dict[str, Any], others: Iterable[dict[str, Any] | None]) -> str | None:
    """In words, the first thing that differs in one of these environments; None: nothing does. Those that are None are
    not known."""
    for there in (other for other in others if other is not None):
        for key in (*here, *there):
            if here.get(key) != there.get(key):
                return f"{key} {here.get(key)} here and {there.get(key)} elsewhere or before"
    return None


def tell_of_others(
    here: dict[str, Any], workers: Sequence[dict[str, Any]], state: dict[str, Any] | None, log: RunLog
) -> None:
    """Write an event where the bits of a result may differ: another worker, or the attempt that saved `state`, has
    other hardware or other versions."""
    known = [] if state is None else [state.get(ENVIRONMENT)]
    if text := first_difference(here, [*workers, *known]):
        log.event("other_environment", difference=text)
