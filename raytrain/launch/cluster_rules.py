"""Rules for `ray up` files that no schema checks: network access, Ray's version, and spot nodes that drain in time.

Pure: no Ray. Each rule yields problems with their place in the file and what to do.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

from raytrain.launch.machines import gpus_of, machine_problem, region_problem

CLOUDS = ("aws", "gcp", "azure")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_TOKEN = "~/.ray/auth_token"
# Clouds and Kubernetes derive the names of machines, labels and pods from the cluster's name.
STRICT_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
CLOUD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# Maximum lengths: on GCP a machine's name may have 63 characters, 28 of which Ray may add; KubeRay has its own limits.
LONGEST_NAMES = {"gcp": 35, "RayCluster": 53, "RayJob": 47, "aws": 100, "azure": 40, "local": 100}
KUBERNETES_NAME = 63
Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file."""

    place: str
    """Dotted path in the file, or an option of the config."""
    words: str

    def __str__(self) -> str:
        return f"{self.place}: {self.words}" if self.place else self.words


def name_problem(kind: str, name: str) -> str | None:
    """What is wrong with the name of a cluster, or of another object in Kubernetes. None: it is valid.

    Args:
        kind: Kind of the Kubernetes manifest, or a `ray up` provider.
    """
    longest = LONGEST_NAMES.get(kind, KUBERNETES_NAME)
    allowed, words = STRICT_NAME, "lower-case letters, digits and hyphens, starting with a letter"
    if kind in ("aws", "azure", "local"):
        allowed, words = CLOUD_NAME, "letters, digits, hyphens, underscores and dots"
    is_good = allowed.fullmatch(name) and len(name) <= longest
    return None if is_good else f"{name!r} is not allowed as a name: {words}, at most {longest}"


def ray_up_problems(raw: Raw) -> Iterator[Problem]:
    """Problems in a `ray up` file that Ray itself accepts."""
    yield from _start_commands(raw)
    yield from _token(raw)
    yield from _open_ports(raw)
    for place, image in _ray_up_images(raw):
        yield from image_problems(place, image)
    provider = raw.get("provider") or {}
    if wrong := name_problem(str(provider.get("type")), str(raw.get("cluster_name"))):
        yield Problem("cluster_name", wrong)
    for name, group in (raw.get("available_node_types") or {}).items():
        yield from _spot_node(raw, f"available_node_types.{name}", group or {})
        yield from _machine(str(provider.get("type")), f"available_node_types.{name}", group or {})
    idle = raw.get("idle_timeout_minutes", 5)
    if isinstance(idle, int | float) and idle < 1:
        yield Problem("idle_timeout_minutes", f"{idle:g}: nodes would stop while a run regroups; give it 1 or more")
    key = "location" if provider.get("type") == "azure" else "region"
    if key in provider and (wrong := region_problem(str(provider.get("type")), str(provider[key]))):
        yield Problem(f"provider.{key}", wrong)
    if provider.get("type") in ("aws", "gcp") and provider.get("region") and provider.get("availability_zone"):
        zones = [zone.strip() for zone in str(provider["availability_zone"]).split(",")]
        for zone in (zone for zone in zones if not zone.startswith(str(provider["region"]))):
            yield Problem("provider.availability_zone", f"{zone} is not in provider.region {provider['region']}")


def _start_commands(raw: Raw) -> Iterator[Problem]:
    in_container = " ".join((raw.get("docker") or {}).get("run_options") or [])
    for key, wanted in (("head_start_ray_commands", "--head"), ("worker_start_ray_commands", "--address")):
        commands = [(i, command) for i, command in enumerate(raw.get(key) or []) if "ray start" in command]
        if not commands:
            yield Problem(key, "missing: Ray's default starts without a token and opens the head's dashboard to all")
        for i, command in commands:
            place = f"{key}.{i}"
            if wanted not in command:
                yield Problem(place, f"`ray start` without {wanted}")
            if "RAY_AUTH_MODE=token" not in command and "RAY_AUTH_MODE=token" not in in_container:
                yield Problem(place, "starts Ray without authentication: put `export RAY_AUTH_MODE=token;` before it")
            if wanted == "--head" and "--autoscaling-config" not in command:
                yield Problem(place, "without --autoscaling-config=~/ray_bootstrap_config.yaml no node is ever started")
            for host in re.findall(r"--dashboard-host[= ](\S+)", command):
                if host not in LOOPBACK:
                    yield Problem(
                        place,
                        f"--dashboard-host={host} opens the dashboard to the network; use 127.0.0.1, `ray dashboard`",
                    )
    if "setup_commands" not in raw and (raw.get("provider") or {}).get("type") in CLOUDS:
        yield Problem(
            "setup_commands", "missing: Ray's default installs another Ray; all is in the image, so set it to []"
        )
    for place, text in _strings(raw):
        if "RAY_AUTH_MODE=disabled" in text:
            yield Problem(place, "RAY_AUTH_MODE=disabled: whoever reaches the cluster could run code on it")


def _token(raw: Raw) -> Iterator[Problem]:
    """Check that the token reaches the nodes and is not in the file itself."""
    texts = list(_strings(raw))
    for place, text in texts:
        if re.search(r"RAY_AUTH_TOKEN=[^\s$\"']", text):
            yield Problem(
                place, "contains the token itself: name a file with RAY_AUTH_TOKEN_PATH, and send it by file_mounts"
            )
    own = (raw.get("docker") or {}).get("run_options") or []
    own = [*own, *(raw.get("head_start_ray_commands") or []), *(raw.get("worker_start_ray_commands") or [])]
    paths = [path for text in own for path in re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", text)] or [DEFAULT_TOKEN]
    mounts = raw.get("file_mounts") or {}
    for path in dict.fromkeys(path.rstrip(";") for path in paths):
        above = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
        if not any(folder.rstrip("/") in above for folder in mounts):
            yield Problem("file_mounts", f"nothing copies the token to {path} on the nodes, where Ray looks for it")


def _open_ports(raw: Raw) -> Iterator[Problem]:
    for place, text in _strings(raw.get("docker") or {}, "docker"):
        if re.search(r"(^|\s)(-p|--publish|--publish-all|-P)([= ]|$)", text):
            yield Problem(place, f"{text!r} publishes a port of the container on all addresses of the machine")
    provider = raw.get("provider") or {}
    for i, rule in enumerate((provider.get("security_group") or {}).get("IpPermissions") or []):
        blocks = [*(rule.get("IpRanges") or []), *(rule.get("Ipv6Ranges") or [])]
        for address in (block.get("CidrIp") or block.get("CidrIpv6") or "" for block in blocks):
            if is_world(address):
                yield Problem(f"provider.security_group.IpPermissions.{i}", f"open to the world ({address})")
    if provider.get("type") != "aws" or provider.get("security_group"):
        return
    for name, group in (raw.get("available_node_types") or {}).items():
        node = (group or {}).get("node_config") or {}
        if not node.get("SecurityGroupIds") and not node.get("NetworkInterfaces"):
            yield Problem(
                f"available_node_types.{name}.node_config.SecurityGroupIds",
                "missing: Ray would make a security group that opens SSH to the world",
            )


def is_world(address: str) -> bool:
    """Whether a range of addresses covers all of them."""
    try:
        return ipaddress.ip_network(address, strict=False).prefixlen == 0
    except ValueError:
        return False


def _ray_up_images(raw: Raw) -> Iterator[tuple[str, str]]:
    holders = {"docker": raw.get("docker") or {}}
    for name, group in (raw.get("available_node_types") or {}).items():
        holders[f"available_node_types.{name}.docker"] = (group or {}).get("docker") or {}
    for place, holder in holders.items():
        for key in ("image", "head_image", "worker_image"):
            if key in holder:
                yield f"{place}.{key}", str(holder[key])


def image_problems(place: str, image: str) -> Iterator[Problem]:
    """Check that the image's tag names the local version of Ray: nodes with another version can't join."""
    ray = version("ray")
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if not tag or tag == "latest":
        yield Problem(place, f"{image} is not pinned: give a tag with Ray's version, {ray}")
    elif not re.search(rf"(?<![\d.]){re.escape(ray)}(?![\d.])", tag.replace("ray", " ")):
        yield Problem(
            place, f"the tag {tag} does not name Ray {ray}, the version that raytrain uses here; all must be the same"
        )


def _machine(cloud: str, place: str, group: Raw) -> Iterator[Problem]:
    """Check that a node type offers as many GPUs as its machine type has."""
    offered = (group.get("resources") or {}).get("GPU", 0)
    if not isinstance(offered, int | float):
        return  # Ray's own schema reports it
    node = group.get("node_config") or {}
    machine = (
        node.get("InstanceType") or node.get("machineType") or (node.get("azure_arm_parameters") or {}).get("vmSize")
    )
    has = gpus_of(cloud, str(machine))
    if machine and (wrong := machine_problem(cloud, str(machine))):
        yield Problem(f"{place}.node_config", wrong)
    if offered and has is not None and offered != has:
        yield Problem(
            f"{place}.resources.GPU", f"{offered}, but {machine} has {has}: change one of them (CPU: one per worker)"
        )


def _spot_node(raw: Raw, place: str, group: Raw) -> Iterator[Problem]:
    node = group.get("node_config") or {}
    is_spot = (
        (node.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
        or "SPOT" in str(node.get("scheduling")).upper()
        or "preemptible" in str(node.get("scheduling"))
        or str((node.get("azure_arm_parameters") or {}).get("priority")).lower() == "spot"
    )
    says = (group.get("labels") or {}).get("ray.io/market-type")
    if is_spot != (says == "spot"):
        what = "spot" if is_spot else "on-demand"
        yield Problem(f"{place}.labels", f"node_config asks for {what} nodes, but ray.io/market-type says {says}")
    commands = group.get("initialization_commands", raw.get("initialization_commands")) or []
    commands = [*commands, *(raw.get("worker_setup_commands") or []), *(raw.get("worker_start_ray_commands") or [])]
    if is_spot and not any("reclaim-watch" in command for command in commands):
        yield Problem(
            f"{place}.initialization_commands",
            "no `raytrain reclaim-watch` on these spot nodes: the cloud's notice would be missed and steps lost",
        )


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a document, with its dotted path."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, child in items:
            yield from _strings(child, f"{place}.{key}" if place else str(key))
