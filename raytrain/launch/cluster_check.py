"""Checks a cluster file before anything is launched: with Ray's own code, and for what Ray does not check."""

import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, counted
from raytrain.launch.cluster_files import marked_lines
from raytrain.launch.cluster_nodes import NodeGroup, Resources, kuberay_config, node_groups, nodes_for, ray_up_config
from raytrain.launch.cluster_rules import CLOUDS, Problem, ray_up_problems
from raytrain.launch.cluster_schema import kuberay_schema_problems, ray_schema_problem
from raytrain.launch.kubernetes_rules import kubernetes_problems
from raytrain.launch.prometheus_rules import rule_problems
from raytrain.ray_core.nodes import demands
from raytrain.runs.preflight import local_paths

UNBOUNDED = 10**6  # nodes
SIGNS = {"provider", "kind", "groups"}  # a file with one of these top-level keys can be checked
OPERATORS = (";", "&&", "||", "|", "&")  # of a shell
OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=.*", re.DOTALL)


@dataclass
class Report:
    """The result of a check."""

    path: str
    problems: list[Problem] = field(default_factory=list)
    """What would make the cluster or the run fail, or expose it to others."""
    notes: list[str] = field(default_factory=list)
    groups: list[NodeGroup] = field(default_factory=list)
    most_nodes: float = math.inf
    """Maximum number of nodes of all types together, besides the head."""
    launches: list[str] = field(default_factory=list)
    """What would be launched for the run, one sentence each."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Node name -> dollars per hour."""
    unchanged: list[tuple[int, str]] = field(default_factory=list)
    """Lines that are still marked to be changed."""

    def lines(self) -> list[str]:
        """The report as lines for the terminal."""
        lines = [f"{self.path}: {len(self.problems)} problem{'s' * (len(self.problems) != 1)}"]
        lines += [f"  {problem}" for problem in self.problems]
        if self.groups:
            lines.append("nodes              each offers         fewest   most")
            lines += [_group_line(group) for group in self.groups]
        lines += self.launches
        if self.groups and self.prices:
            lines.append(self._cost_line())
        lines += [f"note: {note}" for note in self.notes]
        if self.unchanged:
            are = "is" if len(self.unchanged) == 1 else "are"
            lines.append(f"{counted(len(self.unchanged), 'line')} {are} still marked # CHANGE:")
            lines += [f"  {number}: {line}" for number, line in self.unchanged]
        return lines

    def _cost_line(self) -> str:
        """The cost of the nodes per hour."""
        known = [group for group in self.groups if group.name in self.prices]
        fewest = sum(group.min_nodes * self.prices[group.name] for group in known)
        most, left = 0.0, self.most_nodes
        for group in sorted(known, key=lambda group: -self.prices[group.name]):
            count = group.max_nodes if group.is_head else min(group.max_nodes, left)
            most, left = most + count * self.prices[group.name], left - (0 if group.is_head else count)
        missing = ", ".join(group.name for group in self.groups if group not in known)
        without = f", without {missing}, whose --price is missing" if missing else ""
        return f"an hour costs ${fewest:,.2f} with the fewest nodes and ${most:,.2f} with the most{without}"


def check_cluster_file(path: str, config: RunConfig | None = None, prices: Mapping[str, float] | None = None) -> Report:
    """Check a cluster file.

    Args:
        path: A `ray up` file, Kubernetes manifests, or a file of Prometheus rules. In other files, only the lines that
            must still be changed are reported.
        config: Config of a run whose workers the nodes must hold.
        prices: Node name -> dollars per hour.

    Raises:
        ConfigError: The file can't be read, or is of an unknown kind; or a price names a node that does not exist.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        is_yaml = Path(path).suffix in (".yaml", ".yml")
        documents = _documents(text, is_yaml=is_yaml)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not is_yaml and not any(isinstance(one, dict) and SIGNS & one.keys() for one in documents):
        if config is not None or prices:
            raise ConfigError(
                f"{path} is not a `ray up` file or a manifest, so --config and --price do not apply to it"
            )
        return _unread(path, text)
    report = Report(path, prices=dict(prices or {}), unchanged=marked_lines(text))
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ConfigError(f"{path}: expected a `ray up` file, or Kubernetes manifests")
    if isinstance(documents[0].get("provider"), dict):
        _check_ray_up(report, documents[0], config)
    elif all("kind" in document for document in documents):
        _check_kubernetes(report, documents, config)
    elif "groups" in documents[0]:
        report.problems += rule_problems(documents[0]["groups"], "groups")
    else:
        raise ConfigError(
            f"{path}: neither a `ray up` file (no `provider`), nor Kubernetes manifests (no `kind`), nor Prometheus "
            "rules (no `groups`)"
        )
    return report


def _documents(text: str, *, is_yaml: bool) -> list[Any]:
    """The documents of a YAML text. [] if `is_yaml` is false and it is not YAML. Raises yaml.YAMLError."""
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError:
        if is_yaml:
            raise
        return []


def _unread(path: str, text: str) -> Report:
    """Report on a file that other programs check."""
    note = (
        "not YAML: only lines that must still be changed are reported. Check scripts with shellcheck and Dockerfiles "
        "with hadolint; an environment file is read when a run starts (training.communication.network)"
    )
    return Report(path, notes=[note], unchanged=marked_lines(text))


def _check_ray_up(report: Report, raw: dict[str, Any], config: RunConfig | None) -> None:
    report.problems += ray_up_problems(raw)
    autoscaling, problem = ray_schema_problem(partial(ray_up_config, raw))
    if problem is not None:
        report.problems.append(problem)
        return
    if raw["provider"].get("type") not in CLOUDS:
        report.notes.append(
            f"the resources of a node are only known on the node (provider {raw['provider'].get('type')})"
        )
        return
    places = {name: f"available_node_types.{name}" for name in raw.get("available_node_types", {})}
    _check_groups(report, autoscaling, places, config)


def _check_kubernetes(report: Report, documents: list[dict[str, Any]], config: RunConfig | None) -> None:
    report.problems += kubernetes_problems(documents)
    for document in documents:
        if document["kind"] == "PrometheusRule":
            report.problems += rule_problems((document.get("spec") or {}).get("groups"), "spec.groups")
        if document["kind"] not in ("RayCluster", "RayJob"):
            continue
        wrong = kuberay_schema_problems(document)
        report.problems += wrong
        if wrong:
            continue
        is_job = document["kind"] == "RayJob"
        spec = document["spec"]["rayClusterSpec"] if is_job else document["spec"]
        autoscaling, problem = ray_schema_problem(partial(kuberay_config, document["metadata"], spec))
        if problem is not None:
            report.problems.append(problem)
            continue
        above = "spec.rayClusterSpec" if is_job else "spec"
        groups = spec.get("workerGroupSpecs", [])
        places = {group["groupName"]: f"{above}.workerGroupSpecs.{i}" for i, group in enumerate(groups)}
        submitted = config
        if config is not None and is_job:
            submitted = _as_submitted(report, config, str(document["spec"].get("entrypoint", "")))
        _check_groups(report, autoscaling, {"headgroup": f"{above}.headGroupSpec", **places}, submitted)


def _as_submitted(report: Report, config: RunConfig, entrypoint: str) -> RunConfig:
    """The config with the overrides of a RayJob's command. Mistakes in them are added to the report."""
    for override in _overrides_of(entrypoint):
        try:
            config = parse_config(config.model_dump(mode="json", exclude_unset=True), [override])
        except ConfigError as error:
            report.problems.append(Problem("spec.entrypoint", str(error).rpartition("\n")[2].strip()))
    return config


def _overrides_of(entrypoint: str) -> list[str]:
    """`key=value` words of the first `raytrain train` or `tune` in a shell command. [] if it can't be parsed."""
    try:
        words = [part for word in shlex.split(entrypoint) for part in (shlex.split(word) if " " in word else [word])]
    except ValueError:  # unbalanced quotes, which the shell reports
        return []
    starts = [i for i in range(1, len(words)) if words[i - 1] == "raytrain" and words[i] in ("train", "tune")]
    found = []
    for word in words[starts[0] + 1 :] if starts else ():
        if word in OPERATORS:
            break
        if OVERRIDE.fullmatch(word.removesuffix(";")):
            found.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return found


def _check_groups(
    report: Report, autoscaling: Mapping[str, Any], places: Mapping[str, str], config: RunConfig | None
) -> None:
    report.groups = node_groups(autoscaling, places)
    report.most_nodes = autoscaling.get("max_workers", math.inf)
    cpus = config.workers.cpus if config is not None else None
    report.problems += _group_problems(report.groups, cpus)
    if config is not None:
        _check_run(report, autoscaling, config)
    names = [group.name for group in report.groups]
    for name in report.prices:
        if name not in names:
            raise ConfigError(f"--price {name}: the file has no such nodes; allowed: {', '.join(names)}")
    if not report.prices:
        report.notes.append(f"give --price {names[-1]}=DOLLARS for each type of node to see the cost per hour")


def _group_problems(groups: list[NodeGroup], worker_cpus: int | None) -> Iterator[Problem]:
    """Problems of the nodes, whatever runs on them. `worker_cpus`: workers.cpus, if a config is given."""
    gpu_groups = [group for group in groups if group.num_gpus and group.max_nodes]
    for group in gpu_groups:
        wanted = group.num_gpus * (worker_cpus or 1)
        whose = f"workers.cpus {worker_cpus}" if worker_cpus else "one for each worker"
        if group.is_head:
            yield Problem(
                f"{group.place}.resources", "the head has a GPU; its loss ends the run, so run no workers on it"
            )
        elif group.num_cpus < wanted:
            yield Problem(
                f"{group.place}.resources.CPU",
                f"{group.num_cpus} CPU for {group.num_gpus} GPU: the workers hold {wanted} ({whose}), so GPUs would "
                f"stay idle; set it to {wanted}",
            )
        elif worker_cpus is not None and group.num_cpus > wanted:
            yield Problem(
                f"{group.place}.resources.CPU",
                f"{group.num_cpus} CPU, of which the workers of {group.num_gpus} GPU hold {wanted} ({whose}): Ray "
                f"Data would run on the rest, beside them; set it to {wanted}",
            )
    for group in gpu_groups:
        others = [other for other in gpu_groups if not other.is_spot and other.resources == group.resources]
        if group.is_spot and not others:
            yield Problem(group.place, "spot nodes without on-demand nodes of the same resources to fall back on")
    most = sum(group.max_nodes * group.num_cpus for group in groups if not group.num_gpus)
    if gpu_groups and most < 1:
        yield Problem(
            ", ".join(group.place for group in groups if not group.num_gpus and not group.is_head) or "the nodes",
            "no CPU for Ray Data beside the workers' own: a run would wait indefinitely; allow one CPU node "
            "(max_workers or maxReplicas 1)",
        )


def _check_run(report: Report, autoscaling: Mapping[str, Any], config: RunConfig) -> None:
    """Compare the requirements of the run's workers with the nodes, and report what would be launched."""
    workers = config.workers
    gpus = sum(group.num_gpus * group.max_nodes for group in report.groups)
    use_gpu = bool(gpus) if workers.gpu == "auto" else workers.gpu
    worker: dict[str, float] = {"CPU": workers.cpus, **({"GPU": 1} if use_gpu else {})}
    if workers.gpu == "auto" and gpus and not any(group.num_gpus and group.min_nodes for group in report.groups):
        report.problems.append(
            Problem(
                "workers.gpu",
                "auto finds no GPU while no GPU node is up, and the run would train on CPUs: set it to true in the "
                "config, or give workers.gpu=true on the command line",
            )
        )
    report.notes += _beyond_the_file(config, report.groups)
    for bound, count in (("min", workers.min), ("max", workers.max)):
        if bound == "max" and workers.max == workers.min:
            continue
        _check_size(report, autoscaling, worker, bound, count, workers.data_cpus)


def _beyond_the_file(config: RunConfig, groups: list[NodeGroup]) -> Iterator[str]:
    """Requirements of a run that no cluster file mentions."""
    relative = list(dict.fromkeys(key for key, path in local_paths(config) if not os.path.isabs(path)))
    if relative:
        yield (
            f"{', '.join(relative)}: relative paths have no meaning on the nodes; give those of a folder that all "
            "nodes have mounted, in the config or on the command line"
        )
    largest = max(groups, key=lambda group: group.num_gpus * group.max_nodes, default=None)
    if largest is not None and largest.num_gpus:
        size = f"--nodes {largest.max_nodes} --gpus-per-node {largest.num_gpus}"
        yield f"to check whether the model fits into the GPUs' memory: raytrain plan CONFIG --gpu GPU {size}"


def _check_size(
    report: Report, autoscaling: Mapping[str, Any], worker: Resources, bound: str, count: int, data_cpus: float
) -> None:
    asked = " and ".join(f"{amount:g} {name}" for name, amount in worker.items())
    launched, left = nodes_for(autoscaling, demands(worker, data_cpus, count))
    fitting = count - nodes_for(autoscaling, [worker] * count)[1]
    most = autoscaling.get("max_workers", math.inf)
    if (fitting < count or left) and most < math.inf:
        free = {**autoscaling, "max_workers": UNBOUNDED}
        needed, still_left = nodes_for(free, demands(worker, data_cpus, count))
        if not still_left:
            report.problems.append(
                Problem(
                    f"workers.{bound}",
                    f"{count} workers of {asked} each and their data need {sum(needed.values())} nodes; max_workers "
                    f"allows {most} beside the head: raise it to {sum(needed.values())}",
                )
            )
            return
    if fitting < count:
        report.problems.append(
            Problem(
                f"workers.{bound}",
                f"{_workers(count)} of {asked} each; this cluster can never hold more than {fitting}",
            )
        )
    elif left:
        report.problems.append(
            Problem(
                f"workers.{bound}",
                f"{count} workers need {max(1.0, count * data_cpus):g} CPUs for their data beside their own "
                "(workers.data_cpus); raise the most of the CPU nodes",
            )
        )
    else:
        nodes = ", ".join(f"{number} {name}" for name, number in sorted(launched.items()))
        report.launches.append(f"{_workers(count)} of {asked} (workers.{bound}) launch: {nodes or 'nothing'}")


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def read_prices(words: Iterable[str]) -> dict[str, float]:
    """Node name -> dollars per hour, from `name=dollars` words. Raises ConfigError."""
    prices: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            prices[name] = float(text.removeprefix("$"))
            if not 0.0 <= prices[name] < math.inf:
                raise ValueError
        except ValueError:
            raise ConfigError(f"--price {word}: expected NODE=DOLLARS, such as gpu_spot=0.95") from None
    return prices


def _group_line(group: NodeGroup) -> str:
    text = ", ".join(f"{group.resources[name]} {name}" for name in ("CPU", "GPU") if name in group.resources)
    return f"  {group.name:<16} {text:<18} {group.min_nodes:>7} {group.max_nodes:>6}"
