"""The shipped cluster files, by the programs that will read them as far as these can be had; and `raytrain cluster`.

No cloud and no Kubernetes is reached: Ray's own schema, config code and schedulers, Kubernetes' own schema, shellcheck
and hadolint.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from running import run_cli, tiny_run, write_config

from raytrain.config.io import parse_config
from raytrain.config.shipped import cluster_names, find_cluster_file
from raytrain.errors import ConfigError
from raytrain.launch import spot_first
from raytrain.launch.cluster_check import Report, _overrides_of, check_cluster_file
from raytrain.launch.cluster_files import Answers, marked_lines, render, set_value
from raytrain.launch.cluster_nodes import kuberay_config, nodes_for, ray_up_config
from raytrain.launch.machines import gpus_of
from raytrain.ray_core.nodes import demands

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
YAML = [name for name in cluster_names() if name.endswith(".yaml")]
RAY_UP = [name for name in YAML if name.startswith("ray_up/")]
CLOUDS = [name for name in RAY_UP if "on_prem" not in name]
RAY_ON_KUBERNETES = ["raycluster", "rayjob_train", "rayjob_tune"]
SHELL = ["slurm/node.sh", "slurm/train.sbatch"]
WORKER = {"CPU": 1.0, "GPU": 1.0}
BESIDE_PYTHON = Path(sys.executable).parent
"""Where pip puts programs; an environment that is not activated has it in no PATH."""


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(Path(find_cluster_file(name)).read_text()))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from strings(child)


def ray_spec(name: str) -> dict[str, Any]:
    """The RayCluster of a RayCluster or RayJob."""
    (document,) = documents(name)
    return document["spec"].get("rayClusterSpec", document["spec"])


def autoscaling(name: str) -> dict[str, Any]:
    """What Ray's autoscaler reads."""
    if name in RAY_ON_KUBERNETES:
        return kuberay_config({"name": "x"}, ray_spec(name))
    return ray_up_config(documents(name)[0])


def found(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems]


# --- the files as they are shipped ---


def test_every_file_is_known() -> None:
    assert {str(path.relative_to(CLUSTER)) for path in CLUSTER.rglob("*") if path.is_file()} == set(cluster_names())
    assert len(RAY_UP) == 4 and len(YAML) == 15


@pytest.mark.parametrize("name", YAML)
def test_shipped_files_pass_their_check(name: str) -> None:
    report = check_cluster_file(find_cluster_file(name))
    assert found(report) == []
    assert report.unchanged, "no line is marked for the user"


@pytest.mark.parametrize("name", cluster_names())
def test_heads_say_what_was_checked(name: str) -> None:
    if "ignore" in name or name == "slurm/node.sh":
        return
    if name.endswith(".json"):  # which has no comments
        assert "Checked:" in (CLUSTER / name).read_text()
        return
    head = re.split(r"^[^#]", Path(find_cluster_file(name)).read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert "# Checked:" in head


@pytest.mark.parametrize("name", YAML)
def test_marks_are_comments_and_not_part_of_a_value(name: str) -> None:
    assert not [text for document in documents(name) for text in strings(document) if "# CHANGE" in text]


def test_every_ray_start_has_token_authentication() -> None:
    starts = 0
    for name in RAY_UP:
        for text in strings(documents(name)):
            if "ray start" in text:
                starts += 1
                assert "export RAY_AUTH_MODE=token" in text, name
                assert "RAY_AUTH_TOKEN_PATH=/home/ray/token/auth_token" in str(documents(name)[0]["docker"]), name
    assert starts == 8
    assert "export RAY_AUTH_MODE=token\n" in (CLUSTER / "slurm/node.sh").read_text()
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "docker/Dockerfile").read_text()
    for name in RAY_ON_KUBERNETES:
        assert ray_spec(name)["authOptions"] == {"mode": "token", "secretName": "raytrain-token"}


def test_no_ray_command_stands_outside_the_files_that_are_looked_at() -> None:
    for name in cluster_names():
        code = [line for line in Path(find_cluster_file(name)).read_text().splitlines() if not re.match(r"\s*#", line)]
        if any("ray start" in line for line in code):
            assert name in RAY_UP or name == "slurm/node.sh"


@pytest.mark.parametrize("name", RAY_UP)
def test_the_token_is_where_ray_puts_mounted_files(name: str) -> None:
    from ray.autoscaler.sdk import get_docker_host_mount_location

    config = documents(name)[0]
    (remote,) = config["file_mounts"]
    host = get_docker_host_mount_location("*") + remote
    # Machines of one's own have other users, who may not read it.
    allow = 'test "$(id -u)" = 1000 || setfacl -R -m u:1000:rX' if "on_prem" in name else "chmod -R a+rX"
    assert f"{allow} {host}" in config["initialization_commands"]
    watchers = [text for text in strings(config) if "reclaim-watch" in text]
    assert all(f"$(echo {host})" in text for text in watchers)


def test_versions_are_the_pinned_ones() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    tags = [f"{version('raytrain')}-ray{pinned['ray']}-{device}" for device in ("cpu", "gpu")]
    for name in cluster_names():
        text = Path(find_cluster_file(name)).read_text()
        for tag in re.findall(r"example\.com/raytrain:(\S+)", text):
            assert tag in [*tags, f"{tags[0][:-3]}$device"], name
        for said in re.findall(r"(?:rayVersion: |Ray )(2\.\d+\.\d+)", text):
            assert said == pinned["ray"], name
    dockerfile = (CLUSTER / "docker/Dockerfile").read_text()
    assert "--constraint /constraints.txt" in dockerfile and "USER 1000:1000" in dockerfile


def test_the_image_is_built_from_files_that_exist() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (CLUSTER / "docker/Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    allowed = re.findall(r"^!(\S+)", (CLUSTER / "docker/Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert names == set(allowed)
    built = re.findall(r'^"(\w+)" = "raytrain/_assets', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(built) <= names


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts(name: str) -> None:
    path = find_cluster_file(name)
    subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([BESIDE_PYTHON / "shellcheck", "-x", path], check=True)


@pytest.mark.parametrize("name", RAY_UP)
def test_shell_commands_of_ray_up(name: str) -> None:
    """As Ray runs them; SC2088 and SC2154 are about what Ray brings: a tilde in an option, variables set before."""
    config = ray_up_config(documents(name)[0])
    holders = [config, *config["available_node_types"].values()]
    commands = [command for holder in holders for key in holder if key.endswith("_commands") for command in holder[key]]
    assert len(commands) >= 5
    for command in commands:
        options = [BESIDE_PYTHON / "shellcheck", "--shell=bash", "--exclude=SC2088,SC2154,SC2086", "-"]
        done = subprocess.run(options, input=f"{command}\n", text=True, capture_output=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}"


def test_the_dockerfile_passes_hadolint() -> None:
    subprocess.run([BESIDE_PYTHON / "hadolint", str(CLUSTER / "docker/Dockerfile")], check=True)


def test_a_machine_of_ones_own_finds_out_what_it_is(tmp_path: Path) -> None:
    """The start command itself, with a `ray` that prints its arguments, and with and without GPUs."""
    command = documents("on_prem")[0]["worker_start_ray_commands"][1]
    (tmp_path / "ray").write_text("#!/bin/sh\necho $RAY_AUTH_MODE $@\n")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    for name in ("ray", "nvidia-smi"):
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.1"}

    def run() -> str:
        return subprocess.run(["bash", "-c", command], env=env, text=True, capture_output=True, check=True).stdout

    common = "token start --address=192.0.2.1:6379 --object-manager-port=8076"
    assert run().strip() == f"{common} --labels=raytrain/role=data"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0: L4\necho GPU 1: L4\n")
    assert run().strip() == f"{common} --num-cpus=2 --num-gpus=2 --labels=raytrain/role=gpu"


def test_the_commands_in_the_files_are_raytrains() -> None:
    import typer.main

    from raytrain.cli.main import app

    commands: Any = typer.main.get_command(app)
    lines = [text for name in YAML for document in documents(name) for text in strings(document)]
    words = [
        line[line.index("raytrain ") :].split()[1:]
        for line in lines
        if re.search(r"\braytrain (reclaim|train|tune)", line)
    ]
    watchers = [["reclaim-watch", *re.findall(r"[\w-]+", rest)] for rest in _watcher_arguments()]
    assert len(words) >= 5 and len(watchers) == 3
    for command, *arguments in [*words, *watchers]:
        commands.commands[command].make_context(command, arguments)  # raises on an option that it does not have


def _watcher_arguments() -> Iterator[str]:
    """Of the sidecars on Kubernetes, whose words stand in a list."""
    for name in RAY_ON_KUBERNETES:
        (watcher,) = ray_spec(name)["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
        assert watcher["command"][:2] == ["raytrain", "reclaim-watch"]
        yield " ".join(watcher["command"][2:])


@pytest.mark.parametrize("name", ["storage", "redis", "network_policy", "data_pod"])
def test_kubernetes_own_schema(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, "1.34", strict=True)


@pytest.mark.parametrize("name", RAY_ON_KUBERNETES)
def test_pods_by_kubernetes_own_schema(name: str) -> None:
    spec = ray_spec(name)
    pods = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    pods += [document["spec"]["submitterPodTemplate"] for document in documents(name) if document["kind"] == "RayJob"]
    for pod in pods:
        metadata = {"name": "x", **pod["metadata"]}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}, "1.34", strict=True
        )
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "raytrain"  # what the policy goes by


def test_the_three_clusters_on_kubernetes_are_one() -> None:
    cluster = ray_spec("raycluster")
    cluster.pop("gcsFaultToleranceOptions")
    assert cluster == ray_spec("rayjob_train") == ray_spec("rayjob_tune")


# --- what Ray's schedulers make of them ---


@pytest.mark.parametrize("name", [*CLOUDS, *RAY_ON_KUBERNETES])
def test_spot_first_and_on_demand_when_spot_does_not_come(name: str) -> None:
    config = autoscaling(name)
    spot, on_demand = ("gpu-spot", "gpu-on-demand") if name in RAY_ON_KUBERNETES else ("gpu_spot", "gpu_on_demand")
    assert nodes_for(config, demands(WORKER, 0.5, 4)) == ({"data": 1, spot: 4}, 0)
    assert nodes_for(config, demands(WORKER, 0.5, 4), refused=[spot]) == ({"data": 1, on_demand: 4}, 0)
    launched, left = nodes_for(config, demands(WORKER, 0.5, 12))
    assert launched == {"data": 1, spot: 8, on_demand: 4} and left == 0


@pytest.mark.parametrize("name", [*CLOUDS, *RAY_ON_KUBERNETES])
def test_ray_data_gets_cpu_nodes_and_no_cpu_of_a_gpu_node(name: str) -> None:
    config = autoscaling(name)
    assert nodes_for(config, [{"CPU": 1.0}] * 20) == ({"data": 3}, 0)
    launched, left = nodes_for(config, [WORKER] * 2 + [{"CPU": 1.0}] * 2)
    assert launched["data"] == 1 and left == 0
    for node_type in config["available_node_types"].values():
        resources = node_type["resources"]
        assert not resources.get("GPU") or resources["CPU"] == resources["GPU"]


def launched_by_v1(scorer: Any, refused: list[str]) -> dict[str, int]:
    """What Ray's first autoscaler, which the AWS file is for, would start for four workers."""
    from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
    from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    tracker = NodeProviderAvailabilityTracker()
    for name in refused:
        tracker.update_node_availability(name, int(time.time()), NodeLaunchException("Insufficient", "capacity", None))
    config = autoscaling("aws")
    types, most = config["available_node_types"], config["max_workers"]
    scorer = partial(scorer, node_availability_summary=tracker.summary())
    launched, left = get_nodes_for(types, {"head": 1}, "head", most, [WORKER] * 4, utilization_scorer=scorer)
    assert not left
    return dict(launched)


def test_on_aws_a_refused_spot_launch_brings_on_demand() -> None:
    from ray.autoscaler._private.loader import load_function_or_class
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    start = documents("aws")[0]["head_start_ray_commands"][1]
    (path,) = re.findall(r"RAY_AUTOSCALER_UTILIZATION_SCORER=([\w.]+)", start)
    scorer = load_function_or_class(path)  # as Ray does
    assert scorer is spot_first.score
    assert launched_by_v1(scorer, []) == {"gpu_spot": 4}
    assert launched_by_v1(scorer, ["gpu_spot"]) == {"gpu_on_demand": 4}
    # Ray's own does not look: when it does, the file needs no ranking of ours.
    assert launched_by_v1(_default_utilization_scorer, ["gpu_spot"]) == {"gpu_spot": 4}


# --- mistakes ---

AWS, GCP, AZURE, LOCAL = (f"ray_up/{name}.yaml" for name in ("aws", "gcp", "azure", "on_prem"))
CLUSTER_FILE, JOB, POLICY = (f"kuberay/{name}.yaml" for name in ("raycluster", "rayjob_train", "network_policy"))
SPOT, GROUPS = "available_node_types.gpu_spot", "spec.workerGroupSpecs"
MISTAKES = [
    # Ray's schema
    (AWS, "idle_timeout_minutes: 5", "idle_timeout_minute: 5", "'idle_timeout_minute' was unexpected"),
    (AWS, "{CPU: 8}", "{CPU: 7.5}", "available_node_types.data.resources.CPU: Ray refuses it: 7.5 is not of type"),
    (AWS, "    max_workers: 4", "    max_workers: four", "node_types.data.max_workers: Ray refuses it: 'four'"),
    (AWS, "head_node_type: head", "head_node_type: haed", "`head_node_type` must be one of `available_node_types`"),
    (AWS, "min_workers: 0", "min_workers: 8", "`max_workers` is smaller than the sum of `min_workers`"),
    (AWS, "  container_name: raytrain\n", "", "container & image name"),
    (LOCAL, "  head_ip: head.example.com # CHANGE\n", "", "head_ip"),
    # who can reach it
    (AWS, "dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", "head_start_ray_commands.1: --dashboard-host=0.0.0.0"),
    (LOCAL, "dashboard-host=127.0.0.1", "dashboard-host=::", "head_start_ray_commands.1: --dashboard-host=::"),
    (GCP, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "head_start_ray_commands.1: starts Ray without authentic"),
    (GCP, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "docker.run_options.0: RAY_AUTH_MODE=disabled: whoever"),
    (AZURE, "RAY_AUTH_TOKEN_PATH=/home/ray/token/auth_token", "RAY_AUTH_TOKEN=5ec7e7", "options.1: contains the token"),
    (AZURE, "  /home/ray/token: ~", "  /home/ray/tokens: ~", "file_mounts: nothing copies the token to /home/ray"),
    (AWS, "    - --ulimit", "    - -p 8265:8265\n    - --ulimit", "docker.run_options.2: '-p 8265:8265' publishes"),
    (AWS, "      SecurityGroupIds: [sg-CHANGE] # CHANGE\n", "", "node_config.SecurityGroupIds: missing"),
    (
        AWS,
        "  cache_stopped_nodes: false",
        "  security_group: {IpPermissions: [{IpRanges: [{CidrIp: 0.0.0.0/0}]}]}\n  cache_stopped_nodes: false",
        "provider.security_group.IpPermissions.0: open to the world (0.0.0.0/0)",
    ),
    (AWS, "head_start_ray_commands:", "head_setup_command:", "head_start_ray_commands: missing: Ray's default starts"),
    (CLUSTER_FILE, "mode: token", "mode: disabled", "spec.authOptions.mode: must be token"),
    (CLUSTER_FILE, "ClusterIP", "LoadBalancer", "spec.headGroupSpec.serviceType: LoadBalancer opens Ray's ports"),
    (CLUSTER_FILE, "serviceType: ClusterIP", "enableIngress: true", "spec.headGroupSpec.enableIngress: opens the dash"),
    (CLUSTER_FILE, "containerPort: 8265}", "containerPort: 8265, hostPort: 8265}", "containers.0.ports: a hostPort"),
    (
        CLUSTER_FILE,
        "valueFrom: {secretKeyRef: {name: raytrain-token, key: auth_token}}",
        "value: 5ec7e7",
        f"{GROUPS}.0.template.spec.initContainers.0.env: RAY_AUTH_TOKEN stands in the file",
    ),
    (
        POLICY,
        "    - from:\n        - name",
        "    - x:\n        - name",
        "spec.ingress.1.from: missing: lets everybody in",
    ),
    (
        POLICY,
        "podSelector:\n            match",
        "ipBlock: {cidr: 0.0.0.0/0}\n          x:\n            match",
        "ingress.0.from.0.ipBlock: lets the world",
    ),
    (AWS, "setup_commands: []\n", "", "setup_commands: missing: Ray's default installs another Ray"),
    # another Ray, or any
    (AWS, "ray2.60.0-gpu #", "ray2.59.0-gpu #", "docker.worker_image: the tag"),
    (GCP, "raytrain:0.1.0-ray2.60.0-cpu", "raytrain:latest", "raytrain:latest is not pinned"),
    (JOB, "raytrain:0.1.0-ray2.60.0-gpu", "raytrain", ".0.template.spec.initContainers.0.image: registry"),
    (JOB, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayClusterSpec.rayVersion: 2.59.0, and raytrain runs"),
    # spot
    (AWS, "raytrain reclaim-watch", "true", f"{SPOT}.initialization_commands: no `raytrain reclaim-watch`"),
    (GCP, "market-type: spot", "market-type: on-demand", f"{SPOT}.labels: node_config asks for spot nodes"),
    (AZURE, "        priority: Spot\n", "", f"{SPOT}.labels: node_config asks for on-demand nodes, but"),
    (AWS, "ray.io/market-type: on-demand", "ray.io/market-type: spot", f"{SPOT}: spot nodes without on-demand nodes"),
    (CLUSTER_FILE, "[raytrain, reclaim-watch,", "[sleep,", f"{GROUPS}.0.template.spec.initContainers: no `raytrain"),
    (CLUSTER_FILE, "PeriodSeconds: 120", "PeriodSeconds: 30", "0.template.spec.terminationGracePeriodSeconds: 30"),
    (CLUSTER_FILE, 'value: "100"', 'value: "150"', f"{GROUPS}.0.template.spec.containers.0.env: RAY_GRACEFUL_SHUTDOWN"),
    # resources, places, jobs
    (AWS, "availability_zone: us-east-1a", "availability_zone: us-west-2a", "zone: us-west-2a is not in"),
    (
        AWS,
        "idle_timeout_minutes: 5",
        "idle_timeout_minutes: 0",
        "idle_timeout_minutes: 0: nodes would stop while a run",
    ),
    (AWS, "{CPU: 1, GPU: 1}", "{CPU: 1, GPU: 4}", f"{SPOT}.resources.CPU: 1 CPU for 4 GPU: the workers hold 4"),
    (AWS, "InstanceType: g6.2xlarge", "InstanceType: g6.12xlarge", f"{SPOT}.resources.GPU: 1, but g6.12xlarge has 4"),
    (AWS, "cluster_name: raytrain", "cluster_name: my cluster/x", "cluster_name: 'my cluster/x' is not allowed"),
    (JOB, "name: raytrain-train", "name: My_Job", "metadata.name: 'My_Job' is not allowed as a name"),
    (AWS, "    max_workers: 4", "    max_workers: 0", "available_node_types.data: no CPU for Ray Data beside"),
    (CLUSTER_FILE, "maxReplicas: 4", "maxReplicas: 0", f"{GROUPS}.2: no CPU for Ray Data beside"),
    (CLUSTER_FILE, "maxReplicas: 4", "maxReplica: 4", f"{GROUPS}.2: Additional properties are not allowed ('max"),
    (CLUSTER_FILE, "maxReplicas: 4", "maxReplicas: four", f"{GROUPS}.2.maxReplicas: 'four' is not of type 'integer'"),
    (CLUSTER_FILE, "priority: 10", "priority: high", f"{GROUPS}.0.priority: 'high' is not of type 'integer'"),
    (CLUSTER_FILE, "version: v2", "version: v1", "spec.autoscalerOptions.version: v1 does not know the groups"),
    (CLUSTER_FILE, 'CPU: "8"', 'CPU: "eight"', "Ray can't read this file"),
    (CLUSTER_FILE, "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "no GPU pod is ever started"),
    (
        JOB,
        'nvidia.com/gpu: "1"',
        'nvidia.com/gpu: "2"',
        "0.resources.GPU: 1, and the pod's nvidia.com",
    ),
    (JOB, 'cpu: "7"', "cpu: 500m", "workerGroupSpecs.0.resources.CPU: 1, and the pod's cpu is 0.5"),
    (AWS, "region: us-east-1", "region: europe-west4", "provider.region: europe-west4 is not a region of aws"),
    (AWS, "InstanceType: g6.2xlarge", "InstanceType: n1-standard-4", "n1-standard-4 is not a machine type of aws"),
    (JOB, "backoffLimit: 3", "backoffLimit: 0", "spec.backoffLimit: 0: a lost head or driver would end the run"),
    (JOB, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "AfterJobFinishes: must be true"),
    (JOB, 'elastic-job: "true"', 'elastic-job: "false"', 'kueue.x-k8s.io/elastic-job: must be "true"'),
]


@pytest.mark.parametrize(("name", "old", "new", "expected"), MISTAKES)
def test_a_mistake_is_caught(tmp_path: Path, name: str, old: str, new: str, expected: str) -> None:
    text = (CLUSTER / name).read_text()
    assert old in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new))
    problems = found(check_cluster_file(str(path)))
    assert [problem for problem in problems if expected in problem], problems


def test_files_that_are_something_else(tmp_path: Path) -> None:
    for text, words in (
        ("a: [", "is not valid YAML"),
        ("", "expected a `ray up` file"),
        ("- 1", "expected a `ray up` file"),
        ("name: run\ntask: {}\n", "neither a `ray up` file"),
    ):
        path = tmp_path / "other.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            check_cluster_file(str(path))


def test_files_of_other_programs_are_looked_through_for_what_is_left() -> None:
    report = check_cluster_file(find_cluster_file("slurm/train.sbatch"))
    assert found(report) == [] and len(report.unchanged) >= 4
    assert "shellcheck" in report.notes[0]


@pytest.mark.parametrize("name", ["mycluster", "cluster.YAML", "c.yaml.new"])
def test_a_cluster_file_is_checked_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text((CLUSTER / AWS).read_text().replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"))
    assert len(found(check_cluster_file(str(path)))) > 3


def test_a_config_means_nothing_for_a_script() -> None:
    with pytest.raises(ConfigError, match="--config and --price do not apply"):
        check_cluster_file(find_cluster_file("slurm/train.sbatch"), run_config())


def test_names_that_the_clouds_allow(tmp_path: Path) -> None:
    for name, old, new in (
        (AWS, "cluster_name: raytrain", "cluster_name: my.cluster_of-a-long-name-that-is-fine-on-this-cloud"),
        (JOB, "name: raytrain-train", f"name: {'a' * 47}"),
        (CLUSTER_FILE, "  name: raytrain #", f"  name: {'a' * 53} #"),
        (JOB, "name: raytrain-train", "generateName: raytrain-"),
    ):
        path = tmp_path / "cluster.yaml"
        path.write_text((CLUSTER / name).read_text().replace(old, new))
        assert not [problem for problem in found(check_cluster_file(str(path))) if "not allowed" in problem]


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("raytrain train /r.yaml workers.gpu=true seed=1", ["workers.gpu=true", "seed=1"]),
        ("HF_HOME=/mnt/hf raytrain train /mnt/day=1/run.yaml workers.gpu=true", ["workers.gpu=true"]),
        ("bash -c 'export A=b; raytrain train /r.yaml workers.gpu=true'", ["workers.gpu=true"]),
        ("raytrain tune /r.yaml --space /mnt/a=b.yaml workers.max=2; test $? == 0", ["workers.max=2"]),
        ("raytrain train /a.yaml seed=1 && raytrain train /b.yaml seed=2", ["seed=1"]),
        ("raytrain train 'open", []),
        ("python train.py a=b", []),
    ],
)
def test_what_a_jobs_command_overrides(command: str, overrides: list[str]) -> None:
    assert _overrides_of(command) == overrides


def test_a_placeholder_without_its_mark_is_still_to_be_changed() -> None:
    assert marked_lines("a: ami-CHANGE\nb: ami-1\n# CHANGE is a mark\nc: registry.example.com/x:1\n") == [
        (1, "a: ami-CHANGE"),
        (4, "c: registry.example.com/x:1"),
    ]


@pytest.mark.parametrize(
    ("cloud", "machine", "gpus"),
    [
        ("aws", "g5.xlarge", 1),
        ("aws", "p4d.24xlarge", 8),
        ("aws", "m6i.xlarge", None),
        ("gcp", "a2-highgpu-4g", 4),
        ("gcp", "g2-standard-24", 2),
        ("gcp", "n1-standard-8", None),
        ("aws", "g5.metal", None),
        ("azure", "Standard_NC48ads_A100_v4", 2),
        ("azure", "Standard_D4s_v5", None),
    ],
)
def test_gpus_of_machine_types(cloud: str, machine: str, gpus: int | None) -> None:
    assert gpus_of(cloud, machine) == gpus


# --- against a run ---


def run_config(**workers: Any) -> Any:
    raw = {
        "name": "reviews",
        "task": {"kind": "sequence_classification", "text_column": "text", "label_column": "label"},
        "model": {"path": "model"},
        "data": {"train": {"path": "data"}},
        "training": {"global_batch_size": 256, "micro_batch_size": 8},
        "workers": {"gpu": True, "min": 1, "max": 8, **workers},
    }
    return parse_config(raw)


@pytest.mark.parametrize("name", ["aws", "raycluster"])
def test_what_a_run_launches(name: str) -> None:
    report = check_cluster_file(find_cluster_file(name), run_config())
    assert found(report) == []
    spot = "gpu_spot" if name == "aws" else "gpu-spot"
    assert report.launches == [
        f"1 worker of 1 CPU and 1 GPU (workers.min) launch: 1 data, 1 {spot}",
        f"8 workers of 1 CPU and 1 GPU (workers.max) launch: 1 data, 8 {spot}",
    ]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (
            {"cpus": 4},
            "available_node_types.gpu_spot.resources.CPU: 1 CPU for 1 GPU: the workers hold 4 (workers.cpus 4)",
        ),
        ({"cpus": 4}, "workers.min: 1 worker of 4 CPU and 1 GPU each; this cluster can never hold more than 0"),
        ({"max": 32}, "workers.max: 32 workers of 1 CPU and 1 GPU each; this cluster can never hold more than 16"),
        ({"max": 16, "data_cpus": 3.0}, "workers.max: 16 workers need 48 CPUs for their data"),
        ({"gpu": "auto"}, "workers.gpu: auto finds no GPU while no GPU node is up"),
    ],
)
def test_a_run_that_does_not_fit(workers: dict[str, Any], expected: str) -> None:
    problems = found(check_cluster_file(find_cluster_file("aws"), run_config(**workers)))
    assert [problem for problem in problems if problem.startswith(expected)], problems


def test_the_most_nodes_of_all_kinds_together(tmp_path: Path) -> None:
    path = tmp_path / "aws.yaml"
    path.write_text((CLUSTER / AWS).read_text().replace("\nmax_workers: 20", "\nmax_workers: 6"))
    (problem,) = found(check_cluster_file(str(path), run_config(max=8)))
    assert problem == (
        "workers.max: 8 workers of 1 CPU and 1 GPU each and their data need 9 nodes; max_workers allows 6 beside the "
        "head: raise it to 9"
    )


def test_a_jobs_command_overrides_the_config(tmp_path: Path) -> None:
    report = check_cluster_file(find_cluster_file("rayjob_train"), run_config(gpu="auto"))
    assert found(report) == []  # its command says workers.gpu=true
    path = tmp_path / "job.yaml"
    path.write_text((CLUSTER / JOB).read_text().replace("workers.gpu=true #", "workers.gpus=true #"))
    problems = found(check_cluster_file(str(path), run_config(gpu="auto")))
    assert problems[0].startswith("spec.entrypoint: workers.gpus: unknown key")
    assert problems[1].startswith("workers.gpu: auto finds no GPU")


def test_what_the_file_does_not_say() -> None:
    notes = check_cluster_file(find_cluster_file("aws"), run_config()).notes
    assert any(note.startswith("storage_path, data.train.path: relative paths") for note in notes), notes
    assert any(note.endswith("raytrain plan CONFIG --gpu GPU --nodes 8 --gpus-per-node 1") for note in notes), notes


def test_cpus_that_ray_data_would_take_beside_the_workers(tmp_path: Path) -> None:
    path = tmp_path / "aws.yaml"
    path.write_text((CLUSTER / AWS).read_text().replace("{CPU: 1, GPU: 1}", "{CPU: 8, GPU: 1}"))
    (problem, _) = found(check_cluster_file(str(path), run_config()))
    assert problem.startswith(
        "available_node_types.gpu_spot.resources.CPU: 8 CPU, of which the workers of 1 GPU hold 1"
    )


def test_data_nodes_are_asked_for_with_the_workers() -> None:
    report = check_cluster_file(find_cluster_file("aws"), run_config(max=16, data_cpus=1.0))
    assert found(report) == []
    assert "16 workers of 1 CPU and 1 GPU (workers.max) launch: 2 data, 8 gpu_on_demand, 8 gpu_spot" in report.launches


def test_what_an_hour_costs() -> None:
    prices = {"head": 0.2, "gpu_spot": 0.5, "gpu_on_demand": 1.0}
    report = check_cluster_file(find_cluster_file("aws"), prices=prices)
    (line,) = [line for line in report.lines() if line.startswith("an hour costs")]
    most = {group.name: group.max_nodes for group in report.groups}
    total = 0.2 + 0.5 * most["gpu_spot"] + most["gpu_on_demand"]
    assert line.startswith(f"an hour costs $0.20 with the fewest nodes and ${total:.2f} with the most, without data")
    with pytest.raises(ConfigError, match="--price gpu: the file has no such nodes; allowed: head,"):
        check_cluster_file(find_cluster_file("aws"), prices={"gpu": 1.0})


# --- filling in ---


def test_render_keeps_what_it_is_not_asked_about() -> None:
    answers = Answers("vision", "ghcr.io/me/raytrain", "eu-west-1", 32, 4, "g6.12xlarge", cpus_per_worker=2)
    shipped, filled = (CLUSTER / AWS).read_text().splitlines(), render("aws", answers).splitlines()
    assert len(shipped) == len(filled)
    changed = [new for old, new in zip(shipped, filled, strict=True) if old != new]
    assert [line for line in changed if "fs-CHANGE.efs.eu-west-1.amazonaws.com" in line]
    assert {line.strip() for line in changed if "fs-CHANGE" not in line} == {
        "cluster_name: vision",
        "region: eu-west-1",
        "availability_zone: eu-west-1a,eu-west-1b,eu-west-1c",
        "max_workers: 12",
        "image: ghcr.io/me/raytrain:0.1.0-ray2.60.0-cpu",
        "worker_image: ghcr.io/me/raytrain:0.1.0-ray2.60.0-gpu",
        "ghcr.io/me/raytrain:0.1.0-ray2.60.0-gpu",
        "resources: {CPU: 8, GPU: 4}",
        "InstanceType: g6.12xlarge",
        "- >-",
    }


@pytest.mark.parametrize("name", ["aws", "gcp", "azure", *RAY_ON_KUBERNETES])
@pytest.mark.parametrize("spot", [True, False])
def test_rendered_files_pass_their_check(tmp_path: Path, name: str, spot: bool) -> None:
    machine = {"aws": "g6.12xlarge", "gcp": "g2-standard-48", "azure": "Standard_NC96ads_A100_v4"}.get(name)
    region = {"aws": "eu-west-1", "gcp": "europe-west4", "azure": "westeurope"}.get(name)
    answers = Answers("vision", "ghcr.io/me/raytrain", region, 16, 4, machine, spot, 4)
    text = render(name, answers)
    path = tmp_path / "my.yaml"
    path.write_text(text)
    report = check_cluster_file(str(path), run_config(cpus=4, max=16))
    assert found(report) == []
    assert ("spot" in str(report.launches)) == spot
    assert len(marked_lines(text)) < len(marked_lines((Path(find_cluster_file(name))).read_text()))


def test_answers_without_a_place_are_refused() -> None:
    for name, answers, words in (
        ("raycluster", Answers(region="eu"), "no place for --region"),
        ("on_prem", Answers(gpus=8), "no place for --gpus"),
        ("storage", Answers(spot=False), "no place for --on-demand"),
        ("awss", Answers(), "did you mean aws"),
        ("aws", Answers(name="my cluster/x"), "--name 'my cluster/x' is not allowed as a name: letters"),
        ("aws", Answers(gpus_per_node=2, gpu_machine="g5.12xlarge"), "--gpus-per-node 2: g5.12xlarge has 4"),
        ("gcp", Answers(name="My_Cluster"), "lower-case letters"),
        ("gcp", Answers(name="a" * 36), "at most 35"),
        ("storage", Answers(name="My_Storage"), "lower-case letters"),
        ("aws", Answers(gpu_machine="n1-standard-4"), "--gpu-machine n1-standard-4 is not a machine type of aws"),
        ("gcp", Answers(gpu_machine="g6.12xlarge"), "not a machine type of gcp"),
        ("aws", Answers(region="europe-west4"), "--region europe-west4 is not a region of aws"),
        ("gcp", Answers(region="eu-west-1"), "not a region of gcp"),
        ("rayjob_train", Answers(name="My_Job"), "lower-case letters"),
        ("aws", Answers(image="ghcr.io/me/raytrain:1"), "without a tag"),
    ):
        with pytest.raises(ConfigError, match=words):
            render(name, answers)
    with pytest.raises(ConfigError, match="has no a.c"):
        set_value("a: {b: 1}", ("a", "c"), 2)
    with pytest.raises(ConfigError, match="a is not a single value"):
        set_value("a: {b: 1}", ("a",), 2)
    assert set_value('a: {b: "1"} # CHANGE\nc: 2 # CHANGE', ("a", "b"), 3) == 'a: {b: "3"}\nc: 2 # CHANGE'


def test_the_commands(tmp_path: Path) -> None:
    code, output = run_cli("cluster", "list")
    assert code == 0 and all(name in output for name in cluster_names())
    assert run_cli("cluster", "show", "on_prem") == (0, (CLUSTER / LOCAL).read_text())
    out = str(tmp_path / "my.yaml")
    code, output = run_cli("cluster", "render", "gcp", out, "--gpus", "4", "--on-demand", "--name", "vision")
    assert code == 0 and "still to change by hand" in output
    text = (tmp_path / "my.yaml").read_text()
    assert "ray up my.yaml" in text
    other = str(tmp_path / "vision.yaml")
    assert run_cli("cluster", "render", "raycluster", other, "--name", "vision")[0] == 0
    head = Path(other).read_text()
    assert "-f vision.yaml" in head and "service/vision-head-svc" in head
    code, output = run_cli("cluster", "render", "gcp", out)
    assert code == 2 and "exists already" in output
    config = write_config(tiny_run(tmp_path, "tiny", "workers.max=4", "workers.gpu=true"), tmp_path)
    code, output = run_cli("cluster", "check", out, "--config", config)
    assert code == 0, output
    assert "4 workers of 1 CPU and 1 GPU (workers.max) launch: 1 data, 4 gpu_on_demand" in output
    code, output = run_cli("cluster", "check", out, "workers.max=5", "training.micro_batch_size=1", "--config", config)
    assert code == 2 and "can never hold more than 4" in output
