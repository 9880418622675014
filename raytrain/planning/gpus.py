"""GPUs by name, with their memory and an example price per hour. --price overrides the price."""

import re
from dataclasses import dataclass

from raytrain.errors import ConfigError, did_you_mean
from raytrain.sizing.usable import GIB, usable_of_gpu

PRICES_ARE = (
    "example prices: AWS on demand in US regions, mid 2025, rounded, for a GPU with its share of the machine; give "
    "yours with --price"
)


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_bytes: int
    """Memory as the driver reports it."""
    has_bf16: bool
    price_per_hour: float | None
    """Dollars; None: unknown."""

    @property
    def usable_bytes(self) -> int:
        """Memory available to tensors."""
        return usable_of_gpu(self.memory_bytes)


def _gpu(name: str, gib: float, price: float | None, *, has_bf16: bool = True) -> Gpu:
    return Gpu(name, int(gib * GIB), has_bf16, price)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("t4", 14.6, 0.53, has_bf16=False),
        _gpu("v100", 15.8, 3.06, has_bf16=False),
        _gpu("a10g", 22.1, 1.01),
        _gpu("l4", 22.0, 0.80),
        _gpu("l40s", 44.4, 1.86),
        _gpu("a100-40", 39.4, 2.75),
        _gpu("a100-80", 79.1, 3.43),
        _gpu("h100", 79.1, 6.88),
        _gpu("h200", 139.8, 7.91),
    )
}
_ALIASES = {"a10": "a10g", "a100-40gb": "a100-40", "a100-80gb": "a100-80"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gib|gb|g)?", re.IGNORECASE)


def find_gpu(text: str) -> Gpu:
    """Find a GPU by its name, or make one from a memory size such as 24GiB (or 24GB, 24). Raises ConfigError."""
    name = text.strip().lower()
    name = _ALIASES.get(name, name)
    if name in GPUS:
        return GPUS[name]
    size = _SIZE.fullmatch(name)
    if size and float(size[1]) > 0:
        unit = 10**9 if size[2] == "gb" else GIB
        return Gpu(text.strip(), int(float(size[1]) * unit), has_bf16=True, price_per_hour=None)
    of_that_name = [known for known in GPUS if known.startswith(f"{name}-")]
    if of_that_name:
        raise ConfigError(f"--gpu {text}: there are {' and '.join(of_that_name)}; say which")
    hint = did_you_mean(name, GPUS)
    raise ConfigError(f"--gpu {text!r} is not known; allowed: {', '.join(GPUS)}, or a memory such as 24GiB{hint}")
