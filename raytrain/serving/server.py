"""The life of `raytrain serve`: checks, replicas, the HTTP server, updates, and an end that answers what has come.

1. check    the packages, the model with its files, the token, the port, all before anything is started
2. start    Ray (a private one, or the cluster), Ray Serve without proxies, the replicas
3. serve    until SIGTERM or Ctrl-C; then no connection is taken, and those that are open are answered
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, counted
from raytrain.ray_core.connect import RaySession, cluster_address, connection
from raytrain.runs.observer import Observer
from raytrain.serving.deployment import Application, check_packages, end_serve, remove_left_over, start_serve
from raytrain.serving.limits import Limits, Replicas
from raytrain.serving.metrics import ServeMetrics
from raytrain.serving.replica import ReplicaSpec
from raytrain.serving.served import Model, Served, check_model
from raytrain.serving.sockets import BACKLOG, bound, http_server, taken, url_of
from raytrain.serving.token import Token, find_token
from raytrain.serving.update import listen, socket_path

WATCH_S = 1.0
CONTROLLER_CPUS = 2
"""Logical CPUs of a private Ray that replicas do not hold."""
HINT = "Give another --port; for a new model on the same server, `raytrain serve --update MODEL`"


@dataclass(frozen=True)
class ServeRequest:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: Replicas = field(default_factory=lambda: Replicas(1, 1))
    overrides: tuple[str, ...] = ()
    token_file: str | None = None
    address: str | None = None
    limits: Limits = field(default_factory=Limits)


class ServeObserver(Observer):
    """Is told what a server does. This class ignores everything."""

    def serving(self, url: str, about: dict[str, Any], token: Token | None) -> None:
        """Requests are answered from now on."""

    def updated(self, about: dict[str, Any]) -> None:
        """Another model has taken the place of the one before."""


def serve_model(
    model: str, request: ServeRequest, observer: ServeObserver | None = None, ends: threading.Event | None = None
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Args:
        model: A run's folder or name, a sweep's folder, a best/ or an export.
        ends: Set by another thread, it ends the server too.

    Raises:
        ConfigError: The model, the token or an option can't be used, the port is taken, or a package is missing.
        CheckpointError: A file of the model is not the one that was written.
        TrainingError: The replicas could not be started.
    """
    observer = observer or ServeObserver()
    observer.phase("checking")
    check_packages()
    checked = check_model(model, request.overrides)
    sockets = bound(request.host, request.port, HINT)
    try:
        port = sockets[0].getsockname()[1]
        token = find_token(request.host, port, request.token_file)
        observer.phase("starting Ray")
        address = request.address or cluster_address(checked.config)
        # Twice: an update starts new replicas while those before still answer.
        num_cpus = 2 * request.replicas.max * _threads(checked.config, request.replicas, None) + CONTROLLER_CPUS
        with connection(address, num_cpus) as session, _serve(session, port):
            server = _Server(request, session, observer, port)
            asyncio.run(server.run(checked, sockets, token, ends or threading.Event()))
    finally:
        for one in sockets:
            one.close()


@contextlib.contextmanager
def _serve(session: RaySession, port: int) -> Iterator[None]:
    """Ray Serve for the duration of a command. A private Ray takes it along when it ends."""
    start_serve()
    remove_left_over(port)
    try:
        yield
    finally:
        if not session.is_private:
            remove_left_over(port)
            end_serve()


def _threads(config: RunConfig, replicas: Replicas, session: RaySession | None) -> int:
    """CPUs, and threads, of each replica: workers.cpus when given; else those of the machine, divided. On a cluster 1.

    Args:
        session: None: a private Ray is to be started.
    """
    if "cpus" in config.workers.model_fields_set or (session is not None and not session.is_private):
        return config.workers.cpus
    return max(1, (os.cpu_count() or 1) // replicas.max)


class _Server:
    def __init__(self, request: ServeRequest, session: RaySession, observer: ServeObserver, port: int):
        self._request, self._session, self._observer, self._port = request, session, observer, port
        self._metrics = ServeMetrics()
        self._app: Application | None = None
        self._front: Any = None
        self._changing = asyncio.Lock()
        self._gives_up = threading.Event()

    async def run(self, model: Model, sockets: list[socket.socket], token: Token | None, ends: threading.Event) -> None:
        """Until a signal, or the event."""
        from raytrain.serving.front import Front

        stop = _on_signals()
        ending = asyncio.create_task(_set(ends))
        starting = asyncio.create_task(self._start(model))
        waited: list[asyncio.Future[Any]] = [starting, stop, ending]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            self._gives_up.set()
            raise KeyboardInterrupt
        served = starting.result()
        self._front = Front(served, self._request.limits, self._metrics, token)
        server = http_server(self._front, self._request.limits)
        try:
            for one in sockets:
                one.listen(BACKLOG)
        except OSError as error:  # another server was bound to it at the same time, and is faster
            raise taken(self._request.host, self._port, error, HINT) from None
        updates = await listen(self._port, self._update)
        watching = asyncio.create_task(self._watch())
        serving = asyncio.create_task(server.serve(sockets))
        self._observer.serving(self._url(sockets[0]), self._about(), token)
        waited = [stop, ending, serving]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        self._front.is_draining = True
        self._gives_up.set()
        self._observer.stopping()
        server.should_exit = True
        await serving
        for task in (watching, ending):
            task.cancel()
        updates.close()
        socket_path(self._port).unlink(missing_ok=True)

    def _url(self, one: socket.socket) -> str:
        return url_of(self._request.host, one)

    def _about(self) -> dict[str, Any]:
        served: Served = self._front.served
        return {**served.model.about(), "replicas": served.num_replicas}

    async def _start(self, model: Model) -> Served:
        """Start replicas of a model, and make its queue."""
        replicas, workers = self._request.replicas, model.config.workers
        if workers.gpu is True and not self._session.num_gpus:
            raise ConfigError("workers.gpu=true: Ray has no GPU; leave it out, or join a cluster that has some")
        use_gpu = bool(self._session.num_gpus) if workers.gpu == "auto" else workers.gpu
        threads = _threads(model.config, replicas, self._session)
        spec = ReplicaSpec(model.card, model.overrides, threads, use_gpu)
        # A model that takes the place of another gets as many replicas as that has.
        initial = min(replicas.max, max(replicas.min, self._front.served.num_replicas if self._front else 0))
        self._observer.phase(f"loading the model in {counted(initial, 'replica')}")
        app = await asyncio.to_thread(Application.start, spec, replicas, initial, self._port)
        try:
            await asyncio.to_thread(app.wait, workers.wait_timeout_s, self._gives_up)
        except BaseException:
            await asyncio.to_thread(app.stop)
            raise
        self._app = app
        served = Served(model, app.answer, self._metrics, self._request.limits.max_queue, app.speak)
        served.set_replicas(await asyncio.to_thread(app.num_running))
        self._metrics.replicas.set(served.num_replicas)
        return served

    async def _watch(self) -> None:
        """Tell the queue how many replicas there are."""
        while True:
            await asyncio.sleep(WATCH_S)
            app, served = self._app, self._front.served
            with contextlib.suppress(Exception):  # Serve's controller is restarted when it dies
                number = await asyncio.to_thread(app.num_running) if app else 0
                if app is self._app:
                    served.set_replicas(number)
                    self._metrics.replicas.set(number)

    async def _update(self, model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
        """Start replicas of another model, and send it all requests from then on. Those that have come before are
        answered by the model that they came to. Raises RaytrainError; then the model stays."""
        if self._changing.locked():
            raise ConfigError("--update: another update is not done yet; wait for it")
        async with self._changing:
            before_app, before = self._app, self._front.served
            checked = await asyncio.to_thread(check_model, model, overrides)
            served = await self._start(checked)
            self._front.served = served
            self._metrics.models.inc()
            self._observer.updated(self._about())
            while before.num_requests:
                await asyncio.sleep(0.05)
            if before_app is not None:
                await asyncio.to_thread(before_app.stop)
            return self._about()


async def _set(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(WATCH_S / 4)


def _on_signals() -> "asyncio.Future[None]":
    """Is done at SIGTERM or Ctrl-C. A second Ctrl-C ends the command at once."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        if found.done():
            os._exit(1)
        found.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError):  # in a thread of a program, which ends it otherwise
            loop.add_signal_handler(number, told)
    return found
