"""What the doctor says of facts, and what its probe does on this machine. No Ray."""

import io
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from running import run_cli

from raytrain.config import RunConfig
from raytrain.doctor.examine import _gpu_places, _ports, _storage
from raytrain.doctor.facts import (
    HERE,
    AllReduce,
    Clock,
    Disk,
    Facts,
    Gpu,
    GpuFacts,
    NodeFacts,
    StorageFacts,
    Transfer,
    clock_of,
)
from raytrain.doctor.findings import Finding, Report, Status, fold, in_bytes, ok
from raytrain.doctor.judge import CHECKS, judge
from raytrain.doctor.node_facts import about_node, broken, scrub
from raytrain.doctor.probe import NodeProbe, _connect, _serve
from raytrain.ray_core.nodes import NodeView
from raytrain.terminal.doctor import DoctorConsole

GIB = 2**30
NODES = ("aaaaaaaa", "bbbbbbbb", "cccccccc")
VERSIONS = {
    "python": "3.11.9",
    "ray": "2.60.0",
    "raytrain": "0.1.0",
    "torch": "2.13.0+cpu",
    "deepspeed": "0.19.8",
    "transformers": "5.23.0",
}


def config_with(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": "test",
        "task": {"kind": "sequence_classification"},
        "model": {"path": "some/model"},
        "data": {"train": {"path": "train.parquet"}},
        "training": {"global_batch_size": 32, "micro_batch_size": 1},
        "workers": {"min": 1, "max": 3},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return RunConfig.model_validate(base)


def about(number: int) -> NodeFacts:
    return NodeFacts(
        versions=dict(VERSIONS),
        shm_bytes=16 * GIB,
        shm_others_bytes=0,
        store_dir="/dev/shm",
        disks=[Disk("session, spilling", "/tmp/ray/session_2026", 100 * GIB, 50 * GIB)],
        max_open_files=65536,
        memory_bytes=32 * GIB,
        memory_free_bytes=20 * GIB,
        memory_limit_bytes=None,
        has_nvidia=False,
        address=f"192.0.2.{number}",
        interface="eth0",
        interfaces=["eth0", "lo"],
        host_address=f"192.0.2.{number}",
        chosen_interfaces={},
        extras={"gguf": "0.19.0"},
    )


def gpu_facts(**changes: Any) -> GpuFacts:
    gpu = Gpu("NVIDIA H100", 80 * GIB, 79 * GIB, "GPU-1")
    return replace(GpuFacts([gpu], "550.54", "12.4", "12.4", "2.27.5", True, None), **changes)


def healthy(config: RunConfig | None = None) -> Facts:
    """Three nodes of which nothing bad can be said."""
    total = {"CPU": 4.0, "object_store_memory": 8.0 * GIB, "memory": 20.0 * GIB}
    nodes = [NodeView(node, f"192.0.2.{i}", total, total) for i, node in enumerate(NODES)]
    storage = StorageFacts(
        "/mnt/runs", {}, {}, dict.fromkeys((*NODES, HERE), 0.003), dict.fromkeys((*NODES, HERE), 0.01)
    )
    return Facts(
        nodes,
        dict(VERSIONS),
        {"gguf": "0.19.0"},
        about={node: about(i) for i, node in enumerate(NODES)},
        clocks={node: Clock(0.001, 0.002) for node in NODES},
        unreached={node: {} for node in NODES},
        storage=storage,
        all_reduce=AllReduce("gloo", list(NODES), 16 << 20, 0.05),
        transfers=[Transfer(NODES[i], NODES[(i + 1) % 3], 64 << 20, 0.1) for i in range(3)],
        config=config or config_with(),
        num_parameters=22_700_000,
    )


def with_gpus(facts: Facts, **changes: Any) -> None:
    """Every node has one that Ray counts; the first one's is changed."""
    total = {**facts.nodes[0].total, "GPU": 1.0}
    facts.nodes = [replace(node, total=total, available=total) for node in facts.nodes]
    facts.gpus = {node: gpu_facts() for node in NODES}
    facts.gpus[NODES[0]] = gpu_facts(**changes)


def change(**changes: Any) -> Callable[[Facts], None]:
    """Of what the first node says of itself."""

    def apply(facts: Facts) -> None:
        facts.about[NODES[0]] = replace(facts.about[NODES[0]], **changes)

    return apply


def change_storage(**changes: Any) -> Callable[[Facts], None]:
    def apply(facts: Facts) -> None:
        assert facts.storage is not None
        facts.storage = replace(facts.storage, **changes)

    return apply


def of(**attributes: Any) -> Callable[[Facts], None]:
    def apply(facts: Facts) -> None:
        for name, value in attributes.items():
            setattr(facts, name, value)

    return apply


def gpus(**changes: Any) -> Callable[[Facts], None]:
    return lambda facts: with_gpus(facts, **changes)


def reduce_fails(*, host_address: str) -> Callable[[Facts], None]:
    def apply(facts: Facts) -> None:
        facts.all_reduce = AllReduce("gloo", list(NODES), 16 << 20, None, {NODES[0]: "Connection refused"})
        change(host_address=host_address)(facts)

    return apply


def cut_off(facts: Facts) -> None:
    facts.unreached = {NODES[0]: {NODES[1]: "timed out"}, NODES[1]: {}, NODES[2]: {}}


def drained(facts: Facts) -> None:
    facts.nodes[0] = replace(facts.nodes[0], drain_deadline_s=1e12)


def counted_twice(facts: Facts) -> None:
    with_gpus(facts)
    facts.nodes[0] = replace(facts.nodes[0], total={**facts.nodes[0].total, "GPU": 2.0})


def not_counted(facts: Facts) -> None:
    with_gpus(facts)
    facts.nodes[0] = replace(facts.nodes[0], total={**facts.nodes[0].total, "GPU": 0.0})


def busy(facts: Facts) -> None:
    facts.nodes = [replace(node, available={"CPU": 0.0}) for node in facts.nodes]


def small_stores(facts: Facts) -> None:
    facts.nodes = [replace(node, total={**node.total, "object_store_memory": 1.0 * GIB}) for node in facts.nodes]


def other_version(package: str, version: str | None) -> Callable[[Facts], None]:
    return change(versions={**VERSIONS, package: version})


FINDINGS = [
    ("packages", "problem", change(broken={"torchvision": "RuntimeError: no nms"}), "no nms", "uninstall torchvision"),
    ("packages", "problem", change(broken={"torchaudio": "OSError: symbol"}), "Could not import", "for this torch"),
    ("packages", "problem", change(broken={"flash_attn": "ImportError: x"}), "attention", "uninstall flash-attn"),
    ("packages", "note", change(extras={"gguf": "0.18.0"}), "gguf 0.18.0; this command has 0.19.0", "same extras"),
    ("packages", "note", change(extras={}), "no gguf, which is here", "same extras"),
    ("nodes", "problem", of(silent={NODES[0]: "no answer in 45 s"}), "no answer in 45 s", "raylet.log"),
    ("nodes", "note", drained, "is being drained", "restart its Ray"),
    ("versions", "problem", other_version("raytrain", "0.0.9"), "raytrain 0.0.9; this command has 0.1.0", "one image"),
    ("versions", "problem", other_version("deepspeed", None), "no DeepSpeed; this command has 0.19.8", "one image"),
    ("versions", "problem", other_version("python", "3.12.1"), "Python 3.12.1", "one image"),
    ("GPUs", "problem", of(config=config_with(workers={"gpu": True})), "no GPU, and workers.gpu is true", "auto"),
    ("GPUs", "problem", of(gpu_errors={NODES[0]: "no answer in 120 s"}), "no answer in 120 s", "nvidia-smi"),
    ("GPUs", "problem", counted_twice, "Ray counts 2, and 1 can be seen", "--gpus all"),
    ("GPUs", "note", not_counted, "1 can be seen, and Ray counts 0", "--num-gpus"),
    ("GPUs", "note", gpus(is_usable=None), "memory is taken", "another run"),
    ("GPUs", "problem", gpus(is_usable=False, torch_cuda=None), "built for CPUs only", "CUDA build"),
    ("GPUs", "problem", gpus(is_usable=False, torch_cuda="13.0", error="too old"), "up to 12.4", "Update NVIDIA"),
    ("GPUs", "problem", gpus(is_usable=False, error="unknown error"), "unknown error", "nvidia-smi"),
    ("GPUs", "problem", gpus(nccl="2.21.5"), "NCCL 2.21.5", "same torch"),
    ("GPUs", "note", gpus(gpus=[Gpu("NVIDIA L4", 24 * GIB, 23 * GIB, "x")]), "NVIDIA L4", "slowest"),
    ("clock", "note", of(clocks={NODES[0]: Clock(2.0, 0.01)}), "2 s ahead of", "chrony"),
    ("clock", "problem", of(clocks={NODES[0]: Clock(-45.0, 0.01)}), "45 s behind", "chrony"),
    ("memory", "note", change(memory_limit_bytes=12 * GIB), "8.0 GiB of 12.0 GiB that the container", "smaller --obj"),
    ("memory", "note", change(memory_free_bytes=2 * GIB), "2.0 GiB free", "95 %"),
    ("memory", "problem", change(memory_free_bytes=1 * GIB), "1.0 GiB free", "95 %"),
    ("object store", "note", change(store_dir="/tmp/ray/session_1"), "in /tmp/ray, on disk", "--shm-size"),
    ("object store", "problem", change(shm_bytes=4 * GIB), "/dev/shm has 4.0 GiB", "--shm-size"),
    ("object store", "problem", change(shm_others_bytes=9 * GIB), "other files take 9.0 GiB", "--shm-size"),
    ("disk", "note", change(disks=[Disk("session", "/tmp/ray", 100, 8)]), "free of", "--object-spilling"),
    ("disk", "problem", change(disks=[Disk("session", "/tmp/ray", 100, 4)]), "at 95%", "--object-spilling"),
    ("disk", "note", change(disks=[Disk("spilling", "/d", 20 * GIB, 7 * GIB)]), "7.0 GiB free of", "--object-spilling"),
    ("open files", "note", change(max_open_files=1024), "1024", "ulimit -n 65536"),
    ("open files", "problem", change(max_open_files=256), "256", "ulimit -n 65536"),
    ("storage", "problem", change_storage(errors={NODES[0]: {"write": "Read-only"}}), "can't write", "`rw`"),
    ("storage", "problem", change_storage(errors={NODES[0]: {"move": "no"}}), "can't move", "owner and mode"),
    ("storage", "problem", change_storage(errors={HERE: {"reach": "no answer"}}), "can't reach", "mount hangs"),
    (
        "storage",
        "problem",
        change_storage(path="s3://b", errors={HERE: {"write": "denied"}}),
        "denied",
        "instance role",
    ),
    ("storage", "problem", change_storage(unseen={NODES[0]: [HERE]}), "files of this command", "s3://"),
    ("storage", "problem", change_storage(unseen={NODES[0]: [*NODES[1:], HERE]}), "of any other node", "s3://"),
    ("storage", "note", change_storage(seen_after_s={NODES[0]: 3.0}), "seen 3 s late", "actimeo"),
    (
        "ports",
        "problem",
        of(unreached={NODES[0]: {NODES[1]: "timed out"}, NODES[1]: {}, NODES[2]: {}}),
        "from",
        "all TCP",
    ),
    ("interfaces", "problem", change(chosen_interfaces={"GLOO_SOCKET_IFNAME": "ib0"}), "ib0, and there", "unset it"),
    ("all-reduce", "problem", reduce_fails(host_address="127.0.1.1"), "gloo: Connection refused", "host name"),
    ("all-reduce", "problem", reduce_fails(host_address="192.0.2.0"), "gloo", "GLOO_SOCKET_IFNAME=eth0"),
    ("all-reduce", "problem", of(all_reduce=AllReduce("nccl", [NODES[0]], 9, None)), "no answer", "NCCL_SOCKET_IFNAME"),
    ("all-reduce", "note", of(all_reduce=AllReduce("gloo", list(NODES), 16 << 20, 2.0)), "11.2 MB/s on each", "IFNAME"),
    ("object transfer", "problem", of(transfers=[Transfer(*NODES[:2], 9, None, "lost")]), "192.0.2.0: lost", "port"),
    ("object transfer", "note", of(transfers=[Transfer(*NODES[:2], 10**7, 1.0)]), "10 MB/s, less than", "network"),
    (
        "workers",
        "problem",
        of(config=config_with(workers={"min": 13, "max": 13})),
        "13 to 13 wanted: room",
        "19.5 CPUs",
    ),
    ("workers", "note", busy, "room for 0 now, 3 at most", "waits"),
    ("snapshots", "note", small_stores, "and has 1.0 GiB", "--object-store-memory"),
]


@pytest.mark.parametrize(("check", "status", "make_ill", "value", "remedy"), FINDINGS)
def test_each_finding(check: str, status: str, make_ill: Callable[[Facts], None], value: str, remedy: str) -> None:
    facts = healthy()
    make_ill(facts)
    report = judge(facts)
    found = [finding for finding in report.findings if finding.check == check and finding.status == status]
    assert any(value in finding.value and remedy in finding.remedy for finding in found), found
    assert report.exit_code == (status == "problem")
    bad = {finding.check for finding in report.findings if finding.status is not Status.OK}
    assert bad <= {check, "workers"}  # without a GPU there is no room for one that needs it


def test_every_check_can_find_something() -> None:
    assert {check for check, *_ in FINDINGS} == set(CHECKS)


def test_nothing_is_said_against_the_healthy() -> None:
    facts = healthy()
    with_gpus(facts)
    report = judge(facts)
    assert [finding for finding in report.findings if finding.status is not Status.OK] == []
    assert report.exit_code == 0
    silent = {"interfaces"}  # has nothing to say while nobody has chosen one
    assert {finding.check for finding in report.findings} == set(CHECKS) - silent


def test_every_finding_has_one_sentence_of_advice() -> None:
    for _, _, make_ill, _, _ in FINDINGS:
        facts = healthy()
        make_ill(facts)
        for finding in judge(facts).findings:
            assert finding.nodes
            assert "{}" not in finding.value
            assert (finding.status is Status.OK) == (finding.remedy == ""), finding
            assert not finding.remedy or (finding.remedy.endswith(".") and "\n" not in finding.remedy)


def test_a_build_for_gpus_is_no_other_version() -> None:
    facts = healthy()
    other_version("torch", "2.13.0+cu130")(facts)
    assert judge(facts).exit_code == 0


def test_packages_that_fail_when_they_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in {
        "torchvision": "print('hello')\nraise RuntimeError('operator torchvision::nms does not exist')",
        "torchaudio": "",
        "flash_attn": "import os; os._exit(3)",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert broken() == {
        "torchvision": "RuntimeError: operator torchvision::nms does not exist",
        "flash_attn": "crashes Python",
    }
    found = about_node()
    assert set(found["broken"]) == {"torchvision", "flash_attn"}
    assert {"gguf", "accelerate", "peft"} <= set(found["extras"])


def test_a_node_that_can_not_write_still_reads() -> None:
    """It is told once, as the one that can't write, and the others miss nothing."""
    facts = healthy()
    written = dict.fromkeys((*NODES[1:], HERE), 0.003)
    change_storage(errors={NODES[0]: {"write": "OSError: [Errno 30] Read-only file system"}}, write_s=written)(facts)
    found = [finding for finding in judge(facts).findings if finding.check == "storage"]
    assert [(finding.status, finding.nodes) for finding in found] == [
        (Status.PROBLEM, ["192.0.2.0"]),
        (Status.OK, ["192.0.2.1", "192.0.2.2", "this command"]),
    ]


def test_nodes_that_agree_are_one_row() -> None:
    names = {"a": "192.0.2.1", "b": "192.0.2.2"}
    verdicts = [("b", ok("{} free", 3 * GIB, in_bytes)), ("a", ok("{} free", 2 * GIB, in_bytes))]
    assert fold("disk", verdicts, names) == [
        Finding("disk", Status.OK, ["192.0.2.1", "192.0.2.2"], "2.0 GiB to 3.0 GiB free")
    ]


def test_the_worst_comes_first() -> None:
    facts = healthy()
    change(max_open_files=256)(facts)
    assert [f.status.value for f in judge(facts).findings if f.check == "open files"] == ["problem", "ok"]


def test_nodes_with_one_address_are_told_apart() -> None:
    facts = healthy()
    facts.nodes[1] = replace(facts.nodes[1], name=facts.nodes[0].name)
    names = facts.names()
    assert names[NODES[0]] == "192.0.2.0/aaaaaa"
    assert names[NODES[2]] == "192.0.2.2"


def test_a_clock_is_read_by_the_shortest_round_trip() -> None:
    """1.5 s ahead; the slow reading would say 2.4 s."""
    clock = clock_of([(100.0, 103.4, 102.0), (200.0, 201.51, 200.02)])
    assert clock.skew_s == pytest.approx(1.5)
    assert clock.error_s == pytest.approx(0.01)


def test_a_slow_network_is_no_skew() -> None:
    facts = healthy()
    facts.clocks[NODES[0]] = Clock(3.0, 2.5)
    assert judge(facts).exit_code == 0
    assert all(finding.status is Status.OK for finding in judge(facts).findings)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("OSError: s3://id:key@bucket/runs: denied", "OSError: s3://***@bucket/runs: denied"),
        ("abfs://c@a/runs?sig=abc: no", "abfs://c@a/runs?sig=***: no"),
        ("\n  token is s3cr3t-value!\nmore", "token is ***!"),
    ],
)
def test_no_secret_is_told(text: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t-value")
    assert scrub(text) == clean


class OneProbe:
    """As Probes, but all nodes are this process: each its own probe."""

    def __init__(self, *names: str):
        self.probes = {name: NodeProbe() for name in names}

    def ask(self, method: str, arguments: dict[str, tuple], timeout_s: float) -> tuple[dict, dict]:
        return {name: getattr(self.probes[name], method)(*words) for name, words in arguments.items()}, {}


@pytest.mark.parametrize("path", ["runs", "", "runs/of/mine"])
def test_storage_is_tried_and_left_as_it_was(tmp_path: Path, path: str) -> None:
    (tmp_path / "keep").touch()
    found: StorageFacts = _storage(OneProbe("a", "b", HERE), ["a", "b", HERE], str(tmp_path / path))
    assert found.errors == {}
    assert found.unseen == {}
    assert set(found.write_s) == {"a", "b", HERE}
    assert os.listdir(tmp_path) == ["keep"]


def test_storage_that_can_not_be_written() -> None:
    found = _storage(OneProbe("a", HERE), ["a", HERE], "/proc/nothing")
    assert "/proc/nothing" in found.errors["a"]["write"]
    assert found.write_s == {}


def test_storage_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that writes elsewhere: what a local disk at the same path does."""
    monkeypatch.setattr("raytrain.doctor.probe.SEE_TIMEOUT_S", 0.3)

    class Elsewhere(NodeProbe):
        def write(self, path: str, folder: str, name: str) -> dict[str, Any]:
            return super().write(f"{path}-elsewhere", folder, name)

        def read(self, path: str, folder: str, names: list[str]) -> dict[str, Any]:
            return super().read(f"{path}-elsewhere", folder, names)

        def replace(self, path: str, folder: str, name: str) -> dict[str, str]:
            return super().replace(f"{path}-elsewhere", folder, name)

        def clear(self, path: str, folder: str) -> None:
            super().clear(f"{path}-elsewhere", folder)

    probes = OneProbe("a", HERE)
    probes.probes["b"] = Elsewhere()
    found = _storage(probes, ["a", "b", HERE], str(tmp_path / "runs"))
    assert {reader: sorted(owners) for reader, owners in found.unseen.items()} == {
        "a": ["b"],
        "b": ["a", HERE],
        HERE: ["b"],
    }
    assert os.listdir(tmp_path) == []


def test_connecting() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=_serve, args=(listener, "password"), daemon=True).start()
    assert _connect("127.0.0.1", port, "password") is None
    assert _connect("127.0.0.1", port, "other") == "something else answers there"
    free = socket.create_server(("127.0.0.1", 0))
    closed = free.getsockname()[1]
    free.close()
    assert "ConnectionRefusedError" in str(_connect("127.0.0.1", closed, "password"))


def test_a_node_that_opens_no_port_is_reached_from_none() -> None:
    class Deaf:
        def ask(self, method: str, arguments: dict[str, tuple], timeout_s: float) -> tuple[dict, dict]:
            if method == "listen":
                return {"a": ("192.0.2.1", 1, "x")}, {"b": "no answer"}
            return {node: {} for node in arguments}, {}

    found = _ports(Deaf(), ["a", "b"])
    assert found == {"a": {"b": "it opens no port: no answer"}, "b": {}}


def test_each_node_sums_on_its_emptiest_gpu() -> None:
    facts = healthy()
    with_gpus(facts)
    for node in NODES:
        gpus = [Gpu("H100", 80 * GIB, free * GIB, f"{node}-{free}") for free in (2, 70)]
        facts.gpus[node] = gpu_facts(gpus=gpus)
    assert _gpu_places(facts) == [(node, f"{node}-70") for node in NODES]
    facts.gpus[NODES[1]] = gpu_facts(is_usable=None)
    assert _gpu_places(facts) == []


def test_a_lone_node_sums_over_two_of_its_gpus() -> None:
    facts = healthy()
    facts.nodes = [replace(facts.nodes[0], total={"GPU": 2.0})]
    facts.gpus = {NODES[0]: gpu_facts(gpus=[Gpu("H100", 80 * GIB, 70 * GIB, uuid) for uuid in ("x", "y")])}
    assert _gpu_places(facts) == [(NODES[0], "x"), (NODES[0], "y")]


def test_containers_on_one_machine_take_different_gpus() -> None:
    facts = healthy()
    with_gpus(facts)
    assert _gpu_places(facts) == []  # all three see the same GPU, and NCCL refuses one twice


def shown(report: Report) -> str:
    out = io.StringIO()
    DoctorConsole(console=Console(file=out, width=120, highlight=False)).show(report)
    return out.getvalue()


def test_the_table() -> None:
    facts = healthy()
    change(max_open_files=256)(facts)
    facts.skipped.append("storage: give a CONFIG or --storage PATH")
    text = shown(judge(facts))
    assert "\x1b" not in text
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("open files"))
    assert row.split()[2:5] == ["problem", "192.0.2.0", "256"]
    assert "-> Raise it before `ray start`" in text
    assert next(line for line in lines if line.startswith("clock")).split()[:4] == ["clock", "ok", "all", "3"]
    assert "not checked: storage: give a CONFIG or --storage PATH" in lines
    assert lines[-1] == "1 problem"


def test_all_nodes_does_not_count_this_command() -> None:
    findings = [Finding("storage", Status.OK, ["192.0.2.1", "this command"], "fine")]
    assert "all" not in shown(Report(findings, num_nodes=2))


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console = DoctorConsole(as_json=True)
    console.say("asking 3 nodes")
    facts = healthy()
    change(max_open_files=256)(facts)
    console.show(judge(facts))
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["problems"] == 1
    assert found["num_nodes"] == 3
    (bad,) = [finding for finding in found["findings"] if finding["status"] == "problem"]
    assert bad["check"] == "open files"
    assert bad["nodes"] == ["192.0.2.0"]
    assert "asking" in captured.err


def test_overrides_need_a_config() -> None:
    code, output = run_cli("doctor", "workers.max=2")
    assert code == 2
    assert "overrides a CONFIG, and no CONFIG is given" in output


def test_a_cluster_that_is_not_there_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, output = run_cli("doctor", "--address", f"127.0.0.1:{port}", timeout_s=60)
    assert code == 2
    assert f"nobody answers at 127.0.0.1:{port}" in output
