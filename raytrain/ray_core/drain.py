"""Drains nodes by `GcsClient.drain_node`, as Ray's autoscaler does, from a process that outlives Ray.

Ray kills the whole process of a client whose control store (GCS) is unreachable for a minute. A machine's watcher
therefore keeps its client in a child process, and starts another when that one dies. The child also imports Ray before
a notice comes: thirty seconds are too short to wait for imports.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from raytrain.ray_core.nodes import knock

RPC_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 15.0  # longer than any timeout in the child, except for a control store that accepts and then hangs
START_TIMEOUT_S = 90.0  # importing Ray on a busy machine


class DrainError(Exception):
    """Ray could not be asked or told. The message says why. May be retried."""


class Drain(Protocol):
    """The interface to Ray that a watcher needs."""

    def nodes(self) -> list[str]:
        """Ids of the live Ray nodes on this machine. Raises DrainError."""

    def drain(self, node_id: str, message: str, deadline: float) -> None:
        """Drain a node by `deadline` (epoch seconds, inf: unknown). A second call moves it. Raises DrainError."""

    def close(self) -> None:
        """Close the connection."""


class RayDrain:
    """A connection to Ray from this process.

    Args:
        address: `host:port` of the cluster's control store. None: `RAY_ADDRESS`, or the Ray that runs on this machine.
        node_id: Hex id of the only node to consider. None: every node whose raylet runs here, or, where other processes
            are invisible (a sidecar container), the nodes registered under this machine's IP address.
    """

    def __init__(self, address: str | None = None, node_id: str | None = None):
        self._address, self._node_id = address, node_id
        self._gcs: Any = None

    def nodes(self) -> list[str]:
        """Ids of the live Ray nodes on this machine. Raises DrainError."""
        from ray._private import services
        from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

        found = self._ask(lambda gcs: gcs.get_all_node_info(timeout=RPC_TIMEOUT_S))
        alive = {
            node_id.hex(): info.node_manager_address
            for node_id, info in found.items()
            if info.state == GcsNodeInfo.GcsNodeState.ALIVE
        }
        if self._node_id is not None:
            return [self._node_id] if self._node_id in alive else []
        if here := services.find_node_ids():
            return sorted(here & alive.keys())
        address = services.get_node_ip_address()
        return sorted(node_id for node_id in alive if alive[node_id] == address)

    def drain(self, node_id: str, message: str, deadline: float) -> None:
        """Drain a node by `deadline` (epoch seconds, inf: unknown). A second call moves it. Raises DrainError."""
        from ray.core.generated import autoscaler_pb2

        reasons: Any = autoscaler_pb2
        reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the only one that can't be refused
        deadline_ms = 0 if math.isinf(deadline) else int(deadline * 1000)
        # The id must be in hex: a binary one is accepted, but drains nothing.
        is_accepted, why = self._ask(
            lambda gcs: gcs.drain_node(node_id, reason, message, deadline_ms, timeout=RPC_TIMEOUT_S)
        )
        if not is_accepted:
            raise DrainError(f"Ray does not accept the drain of {node_id[:8]}: {why}")

    def close(self) -> None:
        """Close the connection."""
        self._gcs = None

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            self._gcs = self._gcs or self._connect()
            return question(self._gcs)
        except Exception as error:  # Ray's own, gRPC's, OSError, or ValueError for an invalid address
            self._gcs = None
            place = f"at {self._address}" if self._address else "of this machine"
            raise DrainError(f"can't reach Ray {place}: {error or repr(error)}") from error

    def _connect(self) -> Any:
        from ray._private import services
        from ray._private.authentication import authentication_token_setup
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        # RAY_AUTH_MODE decides, as for every Ray command; if it is unset, an existing token is used.
        authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        address = services.canonicalize_bootstrap_address_or_die(self._address)  # type: ignore[arg-type]
        knock(address, timeout_s=2.0)  # GcsClient takes 40 s to detect that nothing listens
        return GcsClient(address=address)


class ChildDrain:
    """The same through a child process, which is restarted when it dies or hangs."""

    def __init__(self, address: str | None = None, node_id: str | None = None):
        self._arguments = (address, node_id)
        self._process: Any = None
        self._pipe: Connection | None = None

    def nodes(self) -> list[str]:
        """Ids of the live Ray nodes on this machine. Raises DrainError."""
        return self._ask("nodes")

    def drain(self, node_id: str, message: str, deadline: float) -> None:
        """Drain a node by `deadline` (epoch seconds, inf: unknown). A second call moves it. Raises DrainError."""
        self._ask("drain", node_id, message, deadline)

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            pipe = self._pipe or self._start()
            pipe.send((method, arguments))
            is_done, value = self._receive(pipe, ASK_TIMEOUT_S)
        except (DrainError, EOFError, OSError) as error:
            self.close()
            words = str(error) if isinstance(error, DrainError) else "the process that speaks to Ray has ended"
            raise DrainError(words) from None
        if not is_done:
            raise DrainError(value)
        return value

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would copy the caller's threads and locks
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()  # otherwise the end of the child would go unnoticed
        self._receive(self._pipe, START_TIMEOUT_S)
        return self._pipe

    @staticmethod
    def _receive(pipe: Connection, timeout_s: float) -> Any:
        if not pipe.poll(timeout_s):
            raise DrainError(f"Ray did not answer in {timeout_s:g} s")
        return pipe.recv()


def _serve(pipe: Connection, address: str | None, node_id: str | None) -> None:
    """The child: serves requests until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # discards Ray's own messages about an unreachable control store
        os.dup2(nowhere, stream)
    import ray  # noqa: F401  (takes seconds, for which no notice should wait)

    drain = RayDrain(address, node_id)
    pipe.send("ready")
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            reply = True, getattr(drain, method)(*arguments)
        except DrainError as error:
            reply = False, str(error)
        pipe.send(reply)
