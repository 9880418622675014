"""What runs on the nodes: one lightweight actor each, which holds no CPU and no GPU.

This module, `node_facts` and `redaction` are sent to the nodes by value, so that a node with an old raytrain, or with
none, can report it. For the same reason they import the rest of raytrain only where it is needed and answer with plain
dicts (the fields of the classes in `facts`). Methods run concurrently, so that one that hangs on a broken mount does
not block the others.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from raytrain.doctor.node_facts import about_gpus, about_node, in_words

CONNECT_TIMEOUT_S = 3.0
CONNECTIONS_AT_ONCE = 32
WARM_UP_BYTES = 1 << 20  # larger than what Ray inlines instead of storing it in the object store
# A network file system may show a new file with a delay.
SEE_TIMEOUT_S = 5.0


class NodeProbe:
    """The actor. Several of its methods may run at once."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._listener: socket.socket | None = None
        self._made: list[str] = []

    # --- the node ---

    def now(self) -> float:
        """This node's clock, in seconds since the epoch."""
        return time.time()

    def facts(self) -> dict[str, Any]:
        """The fields of NodeFacts."""
        return about_node()

    def gpus(self) -> dict[str, Any]:
        """The fields of GpuFacts. Takes as long as the import of torch."""
        return about_gpus()

    # --- ports ---

    def listen(self) -> tuple[str, int, str]:
        """Listen on an ephemeral port, as torch's rendezvous does. Returns (address, port, password). A client is sent
        the password, which proves that it reached this node."""
        import ray

        password = secrets.token_hex(8)
        self._listener = socket.create_server(("", 0), backlog=1024)
        threading.Thread(target=_serve, args=(self._listener, password), daemon=True, name="doctor").start()
        return ray.util.get_node_ip_address(), self._listener.getsockname()[1], password

    def connect(self, targets: Mapping[str, tuple[str, int, str]]) -> dict[str, str]:
        """Connect to what the `listen` of other nodes returned. Returns node -> error."""
        if not targets:
            return {}
        with ThreadPoolExecutor(min(len(targets), CONNECTIONS_AT_ONCE)) as pool:
            answers = dict(zip(targets, pool.map(lambda target: _connect(*target), targets.values()), strict=True))
        return {node: answer for node, answer in answers.items() if answer is not None}

    # --- storage ---

    def write(self, path: str, folder: str, name: str) -> dict[str, Any]:
        """Write a file as a checkpoint's manifest is written: to a temporary name, then committed under its own."""
        try:
            from raytrain.storage import Storage

            # Folders that a node creates for the test are removed again; existing folders are kept.
            self._made = _missing_folders(Storage(path).local_path())
            began_s = time.perf_counter()
            Storage(path).at(folder).commit_bytes(name, name.encode())
            return {"write_s": time.perf_counter() - began_s}
        except Exception as error:
            return {"error": in_words(error)}

    def read(self, path: str, folder: str, names: list[str]) -> dict[str, Any]:
        """Read the files of all other participants. Returns the names of those that are missing or have other contents,
        and the seconds until the last of the rest was visible; 0 if all were visible at the first look."""
        from raytrain.storage import Storage

        place = Storage(path).at(folder)
        missing, seen_after_s, began_s = (
            [name for name in names if not _is_there(place, name)],
            0.0,
            time.perf_counter(),
        )
        while missing and time.perf_counter() - began_s < SEE_TIMEOUT_S:
            time.sleep(0.2)
            late = [name for name in missing if not _is_there(place, name)]
            if len(late) < len(missing):
                missing, seen_after_s = late, time.perf_counter() - began_s
        return {"unseen": missing, "seen_after_s": seen_after_s}

    def replace(self, path: str, folder: str, name: str) -> dict[str, str]:
        """Overwrite the file by a commit, rename it, and delete it. Returns operation -> error, for those that
        failed."""
        from raytrain.storage import Storage

        place, other, errors = Storage(path).at(folder), f"{name}.moved", {}
        try:
            place.commit_bytes(name, b"again")
            if place.read_bytes(name) != b"again":
                raise OSError("the old contents are still there")
        except Exception as error:
            errors["replace"] = in_words(error)
        try:
            place.move(name, other)
            if place.exists(name) or not place.exists(other):
                raise OSError("it is still there under its old name")
        except Exception as error:
            errors["move"] = in_words(error)
        try:
            place.delete(other)
            place.delete(name)
            if place.exists(name) or place.exists(other):
                raise OSError("it is still there")
        except Exception as error:
            errors["delete"] = in_words(error)
        return errors

    def clear(self, path: str, folder: str) -> None:
        """Delete the test's folder, and the parent folders that this node created if they are empty."""
        from raytrain.storage import Storage

        with suppress(OSError):  # another node is deleting it
            Storage(path).at(folder).delete("")
        for made in self._made:
            try:
                os.rmdir(made)
            except FileNotFoundError:  # another node was faster
                continue
            except OSError:  # it still holds another node's file
                return

    # --- object store ---

    def put(self, num_bytes: int) -> list[Any]:
        """Put a tiny object and one of `num_bytes` into this node's store. The references are returned in a list, so
        that Ray does not fetch the objects by itself."""
        import numpy as np
        import ray

        self._kept = [ray.put(np.ones(size, dtype=np.uint8)) for size in (WARM_UP_BYTES, num_bytes)]
        return self._kept

    def fetch(self, box: list[Any], timeout_s: float) -> dict[str, Any]:
        """Fetch another node's objects. Returns the seconds that the second one took, or the error."""
        import ray

        try:
            ray.get(box[0], timeout=timeout_s)  # the first one also opens the connection
            began_s = time.perf_counter()
            ray.get(box[1], timeout=timeout_s)
        except Exception as error:
            return {"error": in_words(error)}
        return {"seconds": time.perf_counter() - began_s}

    def drop(self) -> None:
        """Release the objects."""
        self._kept = []


class Reducer:
    """An actor that takes part in an all-reduce and is killed afterwards. Two of its methods may run at once."""

    def __init__(self) -> None:
        self._address = ""
        self._has_opened = threading.Event()

    def address(self, timeout_s: float) -> str:
        """Address of rank 0, once it waits for the others. Raises TimeoutError."""
        if not self._has_opened.wait(timeout_s):
            raise TimeoutError(f"rank 0 was not ready in {timeout_s:g} s")
        return self._address

    def reduce(
        self, rank: int, world_size: int, backend: str, gpu: str | None, num_bytes: int, repeats: int, address: str
    ) -> dict[str, Any]:
        """Sum `num_bytes` of fp32 over all processes, in the same kind of process group that workers use.

        Args:
            gpu: Value for CUDA_VISIBLE_DEVICES. None: leave it unchanged.
            address: Address of rank 0; empty on rank 0 itself.

        Returns:
            Seconds of the fastest of `repeats` all-reduces, or the error.
        """
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            import ray
            import torch
            import torch.distributed as dist

            from raytrain.engine.process_group import connect, process_group
            from raytrain.engine.rendezvous import address_of, listen
            from raytrain.steps.batches import World

            torch.set_num_threads(1)
            device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
            world, listener = World(rank, world_size), listen(ray.util.get_node_ip_address()) if rank == 0 else None
            if listener is not None:
                self._address = address_of(listener)
                self._has_opened.set()
            with process_group(world, backend, connect(world, address or self._address, listener)):
                times = []
                for _ in range(1 + repeats):  # the first one opens the connections
                    data = torch.ones(num_bytes // 4, device=device)
                    dist.barrier()
                    began_s = time.perf_counter()
                    dist.all_reduce(data)
                    total = float(data[-1])  # also waits for a GPU
                    times.append(time.perf_counter() - began_s)
                    if total != world_size:
                        return {"error": f"the sum of {world_size} ones was {total:g}"}
            return {"seconds": min(times[1:])}
        except Exception as error:
            return {"error": in_words(error)}


def _serve(listener: socket.socket, password: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(password.encode())
        except OSError:
            return


def _connect(host: str, port: int, password: str) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
            answer = connection.makefile("rb").read().decode(errors="replace")
    except OSError as error:
        return in_words(error)
    return None if answer == password else "something else answers there"


def _missing_folders(path: str | None) -> list[str]:
    """The missing folders among a local path and its parents, the innermost first. None are missing of a URI."""
    missing = []
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _is_there(place: Any, name: str) -> bool:
    try:
        return place.read_bytes(name) == name.encode()
    except OSError:
        return False
