"""What a node reports about itself. Sent by value with `probe` and `redaction`, so at the top it imports nothing
else of raytrain."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from raytrain.redaction import redact

PACKAGES = ("ray", "torch", "deepspeed", "transformers")
EXTRAS = ("peft", "pillow", "onnx", "onnxscript", "onnxruntime", "gguf", "accelerate")
"""What the extras bring that a command imports only when it needs it."""
# Built for one version of torch. Transformers imports those that are installed, and with a broken one no model.
COMPILED = ("torchvision", "torchaudio", "flash_attn")
COMPILED_TIMEOUT_S = 30.0
# In a process of its own: a library that doesn't fit may crash. A line before and after each import tells which one.
COMPILED_SCRIPT = """
import importlib, importlib.util, json
for name in NAMES:
    if importlib.util.find_spec(name) is None:
        continue
    print(json.dumps([name, "crashes Python"]), flush=True)
    try:
        importlib.import_module(name)
        error = None
    except Exception as failed:
        error = f"{type(failed).__name__}: {failed}"
    print(json.dumps([name, error]), flush=True)
"""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SMI_TIMEOUT_S = 20.0
TORCH_TIMEOUT_S = 90.0
# For the CUDA context and a tiny tensor.
GPU_NEEDS_BYTES = 1 << 30
SMI_FIELDS = "uuid,name,memory.total,memory.free,driver_version"
# Runs in a process of its own: a broken driver hangs or crashes only there, and the memory of the context is released.
TORCH_SCRIPT = """
import ctypes, json, torch
found = {"torch_cuda": torch.version.cuda, "driver_cuda": None, "nccl": None, "gpus": [], "error": None}
try:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    found["driver_cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
except OSError:
    pass
try:
    found["gpus"] = [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
        for i in range(torch.cuda.device_count())
    ]
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if not TRY:
        pass
    elif float(torch.ones(1, device="cuda").add(1).item()) != 2.0:
        found["error"] = "a GPU added 1 and 1, and the sum is not 2"
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a worker runs. None: not installed."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    try:
        import raytrain  # the one that would run, which may differ from the one that pip installed

        found["raytrain"] = str(raytrain.__version__)
    except Exception:
        found["raytrain"] = None
    return found | {package: _version(package) for package in PACKAGES}


def extras() -> dict[str, str | None]:
    """Versions of the packages of extras. None: not installed."""
    return {package: _version(package) for package in EXTRAS}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def broken() -> dict[str, str]:
    """Package -> error, of those in COMPILED that are installed and can't be imported. One that takes too long is not
    known to be broken."""
    script = COMPILED_SCRIPT.replace("NAMES", repr(COMPILED))
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=COMPILED_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {}
    lines = [line for line in done.stdout.splitlines() if line.startswith('["')]  # a package may print, too
    return {name: scrub(error) for name, error in dict(map(json.loads, lines)).items() if error}


def scrub(text: str) -> str:
    """The first line of an error, without credentials."""
    return redact(next((line.strip() for line in text.splitlines() if line.strip()), ""))


def in_words(error: BaseException) -> str:
    """An error as one line without credentials."""
    return scrub(f"{type(error).__name__}: {error}")


def about_node() -> dict[str, Any]:
    """The fields of NodeFacts."""
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    store_dir, spill_dir = _raylet_folders()
    return {
        "versions": versions(),
        "extras": extras(),
        "broken": broken(),
        "shm_bytes": shm.total if shm else 0,
        "shm_others_bytes": _bytes_of_files("/dev/shm"),
        "store_dir": store_dir,
        "disks": _disks({"session": _session_dir(), "spilling": spill_dir, "object store": store_dir}),
        "max_open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        **_memory(),
        "has_nvidia": os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None,
        **_network(),
    }


def about_gpus() -> dict[str, Any]:
    """The fields of GpuFacts. Takes as long as the import of torch."""
    smi, driver = _ask_smi()
    roomy = [gpu for gpu in smi if gpu["free_bytes"] >= GPU_NEEDS_BYTES]
    is_tried = bool(roomy) or not smi
    env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES" or value}
    if roomy and "CUDA_VISIBLE_DEVICES" not in env:
        env["CUDA_VISIBLE_DEVICES"] = max(roomy, key=lambda gpu: gpu["free_bytes"])["uuid"]
    torch = _ask_torch(env, is_tried)
    seen = [{"name": name, "memory_bytes": size, "free_bytes": None, "uuid": None} for name, size in torch["gpus"]]
    error = torch["error"] or ("" if seen or torch["torch_cuda"] is None else "torch sees no GPU")
    return {
        "gpus": smi or seen,
        "driver": driver,
        "driver_cuda": torch["driver_cuda"],
        "torch_cuda": torch["torch_cuda"],
        "nccl": torch["nccl"],
        "is_usable": (bool(seen) and not error) if is_tried else None,
        "error": scrub(error) or None,
    }


def _raylet_folders() -> tuple[str | None, str | None]:
    """(directory of the object store, directory for spilled objects) of the raylet that started this process."""
    import psutil  # comes with Ray

    for parent in psutil.Process().parents():
        if parent.name().startswith("raylet"):
            words = dict(re.findall(r"--(\w+)=(.*)", "\n".join(parent.cmdline())))
            return words.get("plasma_directory"), words.get("fallback_directory")
    return None, None


def _session_dir() -> str | None:
    from ray._private import worker

    node: Any = worker._global_node
    return node.get_session_dir_path() if node else None


def _disks(folders: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """One entry per file system, leaving out those in memory."""
    found: dict[int, dict[str, Any]] = {}
    for use, path in folders.items():
        if path is None or path.startswith("/dev/shm") or not os.path.isdir(path):
            continue
        usage, device = os.statvfs(path), os.stat(path).st_dev
        if device in found:
            found[device]["use"] += f", {use}"
            continue
        # Blocks reserved for root count as used, as they do for Ray.
        total = (usage.f_blocks - usage.f_bfree + usage.f_bavail) * usage.f_frsize
        free = usage.f_bavail * usage.f_frsize
        found[device] = {"use": use, "path": path, "total_bytes": total, "free_bytes": free}
    return list(found.values())


def _bytes_of_files(folder: str) -> int:
    """Disk space used by the files in a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except OSError:
                continue
    return total


def _memory() -> dict[str, Any]:
    import psutil  # comes with Ray

    machine = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    is_limited = limit is not None and limit < machine.total
    free = min(machine.available, max(0, limit - used)) if limit is not None and is_limited else machine.available
    return {
        "memory_bytes": machine.total,
        "memory_free_bytes": free,
        "memory_limit_bytes": limit if is_limited else None,
    }


def _cgroup_memory() -> tuple[int | None, int]:
    """(smallest limit of this process's cgroups, memory that this group uses without the page cache)."""
    tightest: tuple[int | None, int] = (None, 0)
    for folder in _cgroup_folders():
        for limit_name, used_name, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder, limit_name), _number(folder, used_name)
            if limit is not None and (tightest[0] is None or limit < tightest[0]):
                stat = re.search(rf"^{cache} (\d+)", _text(folder, "memory.stat"), re.MULTILINE)
                tightest = limit, max(0, (used or 0) - int(stat[1] if stat else 0))
    return tightest


def _cgroup_folders() -> list[str]:
    """Folders of this process's cgroups, from the innermost to the outermost one that is mounted here."""
    folders = ["/sys/fs/cgroup/memory"]
    path = re.search(r"^0::(/.*)", _text("/proc/self", "cgroup"), re.MULTILINE)
    parts = path[1].strip("/").split("/") if path else []
    return [*("/".join(["/sys/fs/cgroup", *parts[:n]]).rstrip("/") for n in range(len(parts), -1, -1)), *folders]


def _number(folder: str, name: str) -> int | None:
    text = _text(folder, name).strip()
    return int(text) if text.isdigit() else None


def _text(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _network() -> dict[str, Any]:
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    by_interface = {name: [a.address for a in addresses] for name, addresses in psutil.net_if_addrs().items()}
    try:
        host_address = socket.gethostbyname(socket.gethostname())
    except OSError:
        host_address = None
    return {
        "address": address,
        "interface": next((name for name, addresses in by_interface.items() if address in addresses), None),
        "interfaces": sorted(by_interface),
        "host_address": host_address,
        "chosen_interfaces": {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)},
    }


def _ask_smi() -> tuple[list[dict[str, Any]], str | None]:
    """(GPUs, driver version) from nvidia-smi. Empty if it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [], None
    gpus, driver = [], None
    for line in output.splitlines():
        uuid, name, total, free, driver = (word.strip() for word in line.split(","))
        if total.isdigit() and free.isdigit():
            sizes = {"memory_bytes": int(total) << 20, "free_bytes": int(free) << 20}
            gpus.append({"name": name, "uuid": uuid, **sizes})
    return gpus, driver


def _ask_torch(env: Mapping[str, str], is_tried: bool) -> dict[str, Any]:
    """The output of TORCH_SCRIPT. `is_tried`: whether it should compute something on a GPU."""
    nothing: dict[str, Any] = {"torch_cuda": None, "driver_cuda": None, "nccl": None, "gpus": []}
    script = TORCH_SCRIPT.replace("TRY", str(is_tried))
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {**nothing, "error": f"torch did not answer in {TORCH_TIMEOUT_S:g} s"}
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {**nothing, "error": f"torch exited with code {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])
