"""Renders the cluster files that come with raytrain. Only the requested values change; comments are kept.

Lines that a user must change end with `# CHANGE`; filling one in removes the mark.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from raytrain.config.shipped import find_cluster_file
from raytrain.errors import ConfigError
from raytrain.launch.cluster_rules import CLOUDS, name_problem
from raytrain.launch.machines import gpus_of, machine_problem, region_problem

MARK = "# CHANGE"
REPOSITORY = "registry.example.com/raytrain"  # placeholder for the repository of the images
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Answers:
    """Options of `raytrain cluster render`. None: keep the value in the file."""

    name: str | None = None
    """Name of the cluster or the RayJob."""
    image: str | None = None
    """Repository of the images, without a tag: `ghcr.io/me/raytrain`."""
    region: str | None = None
    gpus: int | None = None
    """Maximum number of spot GPUs, rounded up to whole nodes. The same number on demand is the fallback."""
    gpus_per_node: int | None = None
    """Default: the number of GPUs of the machine type, if it is given and known."""
    gpu_machine: str | None = None
    """Machine type of the GPU nodes, as the cloud names it."""
    spot: bool = True
    """False: use no spot nodes."""
    cpus_per_worker: int | None = None
    """CPUs per GPU, that is per worker: `workers.cpus` of the config."""


def render(name: str, answers: Answers) -> str:
    """A shipped cluster file, filled in.

    Args:
        name: Name of a shipped file, such as aws or rayjob_train, or path to a file made from one.
        answers: The values to fill in.

    Raises:
        ConfigError: There is no such file, or it has no place for an answer.
    """
    path = find_cluster_file(name)
    text = Path(path).read_text(encoding="utf-8")
    kind = _kind(path, text)
    if answers.name is not None and (wrong := name_problem(kind, answers.name)):
        raise ConfigError(f"--name {wrong}")
    for option, answer, problem in (
        ("--gpu-machine", answers.gpu_machine, machine_problem),
        ("--region", answers.region, region_problem),
    ):
        if answer is not None and (wrong := problem(kind, answer)):
            raise ConfigError(f"{option} {wrong}")
    if answers.image is not None:
        text = _replace_image(text, answers.image)
    if answers.region is not None:  # still marked: the user must enter the ID of the file system
        text = re.sub(r"(?<=\.efs\.)[a-z0-9-]+(?=\.amazonaws)", answers.region, text)
    edits = _cloud_edits(text, kind, answers) if kind in CLOUDS else _kuberay_edits(text, kind, answers)
    for place, value in edits:
        text = set_value(text, place, value)
    if answers.name is not None:
        text = _in_comments(text, r"raytrain(-train|-tune)?(?=-head-svc|\s+shows)|raytrain-data", answers.name)
    return text


def describe(name: str) -> str:
    """The first sentence of a shipped file's head comment or, since JSON has no comments, of its description."""
    text = Path(find_cluster_file(name)).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return str(json.loads(text)["description"]).partition(". ")[0]
    lines = text.splitlines()
    head = (line.removeprefix("# ") for line in lines if line.startswith("# ") and not line.startswith("# syntax"))
    return re.split(r"(?<=[a-z)])\.(?:\s|$)", " ".join(head), maxsplit=1)[0]


def write_rendered(text: str, out: str, *, overwrite: bool = False) -> str:
    """Write a rendered file, and return a message for the user. With `-` nothing is written and the text is returned.

    Raises:
        ConfigError: The file exists already, or can't be written.
    """
    if out == "-":
        return text
    text = _in_comments(text, r"\bmy\.yaml\b", Path(out).name)
    try:
        with open(out, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{out} exists already; name another file, or give --overwrite") from None
    except OSError as error:
        raise ConfigError(f"can't write {out}: {error.strerror}") from None
    left = "".join(f"  {number}: {line}\n" for number, line in marked_lines(text))
    return f"{out}\n" + (f"still to change by hand:\n{left}" if left else "")


def _in_comments(text: str, old: str, new: str) -> str:
    """Replace a pattern in comment lines only: these show commands for the user to type."""
    lines = text.split("\n")
    return "\n".join(re.sub(old, lambda _: new, line) if line.startswith("#") else line for line in lines)


def marked_lines(text: str) -> list[tuple[int, str]]:
    """Lines that the user must still change, as (line number from 1, text): marked lines, and lines that still contain
    a placeholder. Comments that only mention the mark don't count."""
    lines = enumerate(text.splitlines(), 1)
    spoken = re.compile(r"\s*#(?!SBATCH )")  # Slurm's options are comments to the shell
    left = re.compile(rf"{MARK}|\bCHANGE\b|\bregistry\.example\.com\b")
    return [(number, line.strip()) for number, line in lines if left.search(line) and not spoken.match(line)]


def set_value(text: str, place: Place, value: str | int) -> str:
    """Replace one scalar in a YAML text, and remove the mark from its line.

    Raises:
        ConfigError: The file has no such place, or the value there is not a scalar.
    """
    node = _find(yaml.compose(text), place)
    written = str(value)
    if node.style in ("'", '"'):
        written = json.dumps(written)
    text = text[: node.start_mark.index] + written + text[node.end_mark.index :]
    lines = text.split("\n")
    lines[node.start_mark.line] = _without_mark(lines[node.start_mark.line])
    return "\n".join(lines)


def _find(node: yaml.Node | None, place: Place) -> yaml.ScalarNode:
    for part in place:
        children: dict[str | int, yaml.Node] = {}
        if isinstance(node, yaml.MappingNode):
            children = {key.value: value for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = dict(enumerate(node.value))
        if part not in children:
            raise ConfigError(f"this file has no {dotted(place)}, which the answers would fill in")
        node = children[part]
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{dotted(place)} is not a single value in this file")
    return node


def dotted(place: Place) -> str:
    """A place in a YAML document, as a dotted path for messages."""
    return ".".join(str(part) for part in place)


def _without_mark(line: str) -> str:
    return re.sub(rf"\s*{MARK}.*$", "", line)


def _replace_image(text: str, image: str) -> str:
    """Replace the repository everywhere, in commands too."""
    if not re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+", image):
        raise ConfigError(
            f"--image {image!r} is not a repository of images; give it without a tag, like ghcr.io/me/raytrain"
        )
    lines = []
    for line in text.split("\n"):
        is_image = REPOSITORY in line and not line.lstrip().startswith("#")
        line = line.replace(REPOSITORY, image)
        lines.append(_without_mark(line) if is_image or f"{MARK}: the image" in line else line)
    return "\n".join(lines)


def _kind(path: str, text: str) -> str:
    """aws, gcp, azure, local, RayCluster or RayJob; '' for any other file."""
    if Path(path).suffix not in (".yaml", ".yml"):
        return ""
    try:
        first = next(iter(yaml.safe_load_all(text)), None)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(first, dict):
        return ""
    return str((first.get("provider") or {}).get("type") or first.get("kind") or "")


def _cloud_edits(text: str, kind: str, answers: Answers) -> Iterator[tuple[Place, str | int]]:
    """Places in a `ray up` file and their new values."""
    types = yaml.safe_load(text)["available_node_types"]
    groups = {name: group for name, group in types.items() if group["resources"].get("GPU")}
    if answers.name is not None:
        yield ("cluster_name",), answers.name
    if answers.region is not None:
        yield ("provider", "location" if kind == "azure" else "region"), answers.region
        # On AWS, zones that a region does not have are skipped; on GCP only one zone is allowed.
        zone = {"aws": ",".join(f"{answers.region}{z}" for z in "abc"), "gcp": f"{answers.region}-a"}.get(kind)
        if zone:
            yield ("provider", "availability_zone"), zone
    where: Place = {"aws": ("InstanceType",), "gcp": ("machineType",)}.get(kind, ("azure_arm_parameters", "vmSize"))
    asked_per_node = _gpus_per_node(kind, answers)
    for name, group in groups.items():
        place: Place = ("available_node_types", name)
        per_node = asked_per_node or group["resources"]["GPU"]
        if asked_per_node is not None:
            yield (*place, "resources", "GPU"), per_node
        if asked_per_node is not None or answers.cpus_per_worker is not None:
            yield (*place, "resources", "CPU"), per_node * (answers.cpus_per_worker or 1)
        if answers.gpu_machine is not None:
            yield (*place, "node_config", *where), answers.gpu_machine
        if not answers.spot and "spot" in name:
            yield (*place, "max_workers"), 0
        elif answers.gpus is not None:
            yield (*place, "max_workers"), math.ceil(answers.gpus / per_node)
    if answers.gpus is not None:
        others = sum(group.get("max_workers", 0) for name, group in types.items() if name not in groups)
        per_node = asked_per_node or next(iter(groups.values()))["resources"]["GPU"]
        yield ("max_workers",), math.ceil(answers.gpus / per_node) + others


def _gpus_per_node(kind: str, answers: Answers) -> int | None:
    """As requested, or as the machine type has; None: keep the file's. Raises ConfigError if the two differ."""
    asked, machine = answers.gpus_per_node, answers.gpu_machine
    has = None if machine is None else gpus_of(kind, machine)
    if asked is not None and has is not None and asked != has:
        raise ConfigError(f"--gpus-per-node {asked}: {machine} has {has}")
    return asked or has


def _scaled(amounts: dict[str, str], factor: float) -> dict[str, str]:
    """CPUs and memory of a pod, scaled by a factor. Whole numbers, with Kubernetes' units."""
    parts = {key: re.fullmatch(r"(\d+)(\D*)", str(amounts[key])) for key in ("cpu", "memory") if key in amounts}
    return {key: f"{math.ceil(int(part[1]) * factor)}{part[2]}" for key, part in parts.items() if part}


def _kuberay_edits(text: str, kind: str, answers: Answers) -> Iterator[tuple[Place, str | int]]:
    """Places in a RayCluster or RayJob and their new values; in other files only the name."""
    unasked: dict[str, object] = {"region": answers.region, "gpu-machine": answers.gpu_machine}
    if kind not in ("RayCluster", "RayJob"):
        unasked |= {"gpus": answers.gpus, "gpus-per-node": answers.gpus_per_node}
        unasked |= {"on-demand": None if answers.spot else True}
    for option, value in unasked.items():
        if value is not None:
            raise ConfigError(f"this file has no place for --{option}; edit its lines marked {MARK} by hand")
    if answers.name is not None:
        yield ("cluster_name",) if kind == "local" else ("metadata", "name"), answers.name
    if kind not in ("RayCluster", "RayJob"):
        return
    place: Place = ("spec",) if kind == "RayCluster" else ("spec", "rayClusterSpec")
    spec = yaml.safe_load(text)["spec"]
    groups = (spec if kind == "RayCluster" else spec["rayClusterSpec"])["workerGroupSpecs"]
    for i, group in enumerate(groups):
        if "GPU" not in group.get("resources", {}):
            continue
        here: Place = (*place, "workerGroupSpecs", i)
        per_node = answers.gpus_per_node or int(group["resources"]["GPU"])
        if answers.gpus_per_node is not None:
            yield (*here, "resources", "GPU"), per_node
            for bound, has in group["template"]["spec"]["containers"][0]["resources"].items():
                amounts: dict[str, str | int] = {
                    "nvidia.com/gpu": per_node,
                    **_scaled(has, per_node / int(group["resources"]["GPU"])),
                }
                for key, amount in amounts.items():
                    yield (*here, "template", "spec", "containers", 0, "resources", bound, key), amount
        if answers.gpus_per_node is not None or answers.cpus_per_worker is not None:
            yield (*here, "resources", "CPU"), per_node * (answers.cpus_per_worker or 1)
        if not answers.spot and "spot" in group["groupName"]:
            yield (*here, "maxReplicas"), 0
        elif answers.gpus is not None:
            yield (*here, "maxReplicas"), math.ceil(answers.gpus / per_node)
