"""The replicas of a model as an application of Ray Serve, which starts, watches, replaces and scales them.

Requests do not pass through Serve's proxies: the command's own server joins them into groups and calls the replicas by
handle. A request through a proxy costs two messages more per row, see docs/serving.md.
"""

import logging
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from raytrain.data.stages.packages import needed
from raytrain.errors import FailureCode, TrainingError, first_line
from raytrain.inference.completing import Asked, Piece
from raytrain.serving.batcher import AHEAD, ReplicaLostError
from raytrain.serving.limits import Replicas
from raytrain.serving.replica import HANG_S, Answer, How, Replica, ReplicaSpec, Row

REPLICA = "Replica"
PREFIX = "raytrain-serve"
UPSCALE_S, DOWNSCALE_S = 5.0, 120.0
"""How long more, or fewer, replicas must be needed before that changes."""
BUSY = 0.8
"""The part of the time that replicas may be busy before there are more of them."""
STREAMS = 32
"""Texts that a replica generates at once, token by token in turn; more of them wait."""
POLL_S = 0.2
STOP_S = 20.0
PACKAGES = ("starlette", "fastapi", "watchfiles", "uvicorn", "httptools", "prometheus_client")


def check_packages() -> None:
    """Raises ConfigError when the extra `[serve]` is missing."""
    for module in (*PACKAGES, "ray.serve"):
        needed(module, "raytrain serve", "serve")


def start_serve() -> None:
    """Start Ray Serve without its proxies, unless it runs on the cluster."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_not_of_a_death)
    serve.start(proxy_location="Disabled", logging_config=_quiet(LoggingConfig))
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)


def _is_not_of_a_death(record: logging.LogRecord) -> bool:
    """False for the many lines of Serve's router on a replica that has died: its calls are given to another."""
    from ray.exceptions import RayActorError

    return not (record.exc_info and isinstance(record.exc_info[1], RayActorError))


def end_serve() -> None:
    """End Ray Serve, unless it has applications of others."""
    from ray import serve

    if not serve.status().applications:
        serve.shutdown()


def _quiet(kind: Any) -> Any:
    return kind(log_level="ERROR", enable_access_log=False)


def app_prefix(port: int) -> str:
    """What the names of a server's applications begin with: of this machine and port."""
    return f"{PREFIX}-{socket.gethostname()}-{port}-"


def remove_left_over(port: int) -> None:
    """Delete what a server that was killed has left on the cluster. Its port is ours now."""
    from ray import serve

    for name in serve.status().applications:
        if name.startswith(app_prefix(port)):
            serve.delete(name)


class Application:
    """The running replicas of one model."""

    def __init__(self, name: str, handle: Any):
        self.name, self._handle = name, handle

    @classmethod
    def start(cls, spec: ReplicaSpec, replicas: Replicas, initial: int, port: int) -> "Application":
        """Begin to start replicas. `initial`: how many at once, of `replicas.min` to `replicas.max`."""
        from ray import serve
        from ray.serve.schema import LoggingConfig

        name = f"{app_prefix(port)}{uuid.uuid4().hex[:8]}"
        options: dict[str, Any] = {"num_replicas": replicas.min}
        if replicas.max > replicas.min:
            options = {
                "autoscaling_config": {
                    "min_replicas": replicas.min,
                    "max_replicas": replicas.max,
                    "initial_replicas": initial,
                    # A replica has one group while it is busy, two where full ones wait, none else.
                    "target_ongoing_requests": BUSY,
                    "upscale_delay_s": UPSCALE_S,
                    "downscale_delay_s": DOWNSCALE_S,
                }
            }
        deployment: Any = serve.deployment(
            Replica,
            name=REPLICA,
            max_ongoing_requests=AHEAD + STREAMS,
            max_constructor_retry_count=2,
            graceful_shutdown_timeout_s=STOP_S,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=2.0,
            health_check_timeout_s=HANG_S,
            ray_actor_options={"num_cpus": spec.num_threads, "num_gpus": int(spec.use_gpu)},
            logging_config=_quiet(LoggingConfig),
            **options,
        )
        target = serve.RunTarget(deployment.bind(spec), name=name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        return cls(name, handle)

    def wait(self, wait_s: float | None, gives_up: threading.Event) -> None:
        """Wait until the least number of replicas has the model.

        Args:
            wait_s: For how long room for them is waited for; None: no limit.
            gives_up: Is set when the command ends meanwhile.

        Raises TrainingError when they can't load the model, find no room, or are given up.
        """
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        while True:
            found = serve.status().applications[self.name]
            if found.status == ApplicationStatus.RUNNING:
                return
            if found.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                told = [one.message for one in found.deployments.values() if one.message] or [found.message]
                raise TrainingError(
                    f"the replicas can't be started: {_last_line(told[0])}. Is there enough memory for the model in "
                    "each? Fewer: --replicas 1",
                    FailureCode.WORKER_ERROR,
                )
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TrainingError(
                    f"no replica could start for {wait_s:g} s: the cluster has no room. Lower workers.cpus or "
                    "--replicas, or set workers.gpu=false",
                    FailureCode.NO_CAPACITY,
                )
            if gives_up.wait(POLL_S):
                raise TrainingError("the server is stopping", FailureCode.STOPPED)

    def num_running(self) -> int:
        """Replicas that answer now."""
        from ray import serve
        from ray.serve.schema import ReplicaState

        found = serve.status().applications.get(self.name)
        states = found.deployments[REPLICA].replica_states if found and REPLICA in found.deployments else {}
        return states.get(ReplicaState.RUNNING, 0)

    async def answer(self, rows: list[Row], how: How) -> list[Answer]:
        """Have a replica answer. Raises ReplicaLostError when it has died, or what the model raises."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            answers: list[Answer] = await self._handle.answer.remote(rows, how)
        except RayActorError as error:
            raise ReplicaLostError from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        return answers

    async def speak(self, asked: Asked) -> AsyncGenerator[Piece]:
        """Have a replica generate a text; when this is closed, it ends that. Raises as `answer` does."""
        from ray.exceptions import RayActorError, RayTaskError

        pieces = self._handle.options(stream=True).speak.remote(asked)
        is_done = False
        try:
            async for piece in pieces:
                yield piece
            is_done = True
        except RayActorError as error:
            raise ReplicaLostError from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        finally:
            if not is_done:
                pieces.cancel()

    def stop(self) -> None:
        """End the replicas, and wait for that; groups that they have are answered first."""
        from ray import serve

        serve.delete(self.name)


def _last_line(text: str) -> str:
    """Of a traceback: the error's message without its class."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason is known"
    return first_line(last.partition(": ")[2] or last)
