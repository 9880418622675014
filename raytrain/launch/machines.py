"""Number of GPUs of the clouds' machine types, for the types that are commonly used for training.

Taken from the clouds' documentation (AWS accelerated computing, Google Cloud GPU machine types, Azure GPU sizes). Types
that are not listed here are not checked.
"""

import re

_ONE_GPU = ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")  # unless the family says otherwise
_AWS: dict[str, dict[str, int]] = {
    "g4dn": {"12xlarge": 4, "metal": 8},
    "g5": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6e": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "p3": {"8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
}
_GCP_COUNTED = re.compile(r"a[23]-(?:high|mega|ultra)gpu-(\d+)g")  # the count is in the name
_GCP_G2 = {"4": 1, "8": 1, "12": 1, "16": 1, "24": 2, "32": 1, "48": 4, "96": 8}  # by vCPUs
_AZURE = {
    "nc6s_v3": 1,
    "nc12s_v3": 2,
    "nc24s_v3": 4,
    "nc4as_t4_v3": 1,
    "nc8as_t4_v3": 1,
    "nc16as_t4_v3": 1,
    "nc64as_t4_v3": 4,
    "nc24ads_a100_v4": 1,
    "nc48ads_a100_v4": 2,
    "nc96ads_a100_v4": 4,
    "nc40ads_h100_v5": 1,
    "nc80adis_h100_v5": 2,
    "nv36ads_a10_v5": 1,
    "nv72ads_a10_v5": 2,
    "nd96asr_v4": 8,
    "nd96amsr_a100_v4": 8,
    "nd96isr_h100_v5": 8,
    "nd96isr_h200_v5": 8,
}


# Example names for error messages.
_MACHINES = {"aws": r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "gcp": r"[a-z]\w*-[a-z0-9-]+", "azure": r"(Standard|Basic)_\w+"}
_REGIONS = {"aws": r"[a-z]+(-[a-z]+)+-\d+", "gcp": r"[a-z]+-[a-z]+\d+", "azure": r"[a-z]+\d?"}
_EXAMPLES = {
    "aws": ("g6.12xlarge", "eu-west-1"),
    "gcp": ("g2-standard-48", "europe-west4"),
    "azure": ("Standard_NC24ads_A100_v4", "westeurope"),
}


def machine_problem(cloud: str, machine: str) -> str | None:
    """What is wrong with the name of a machine type. None: it is valid, or the cloud is unknown."""
    if cloud not in _MACHINES or re.fullmatch(_MACHINES[cloud], machine.rpartition("/")[2]):
        return None
    return f"{machine} is not a machine type of {cloud}; they are written as {_EXAMPLES[cloud][0]}"


def region_problem(cloud: str, region: str) -> str | None:
    """What is wrong with the name of a region. None: it is valid, or the cloud is unknown."""
    if cloud not in _REGIONS or re.fullmatch(_REGIONS[cloud], region):
        return None
    return f"{region} is not a region of {cloud}; they are written as {_EXAMPLES[cloud][1]}"


def gpus_of(cloud: str, machine: str) -> int | None:
    """Number of GPUs of a machine type of aws, gcp or azure. None: unknown type."""
    if cloud == "aws":
        family, _, size = machine.partition(".")
        return _AWS.get(family, {}).get(size, 1 if family in _AWS and size in _ONE_GPU else None)
    if cloud == "gcp":
        if counted := _GCP_COUNTED.fullmatch(machine):
            return int(counted[1])
        return _GCP_G2.get(machine.removeprefix("g2-standard-")) if machine.startswith("g2-standard-") else None
    return _AZURE.get(machine.lower().removeprefix("standard_"))
