"""The driver's handle on the probes of all nodes: asks them in parallel, with a timeout for each question."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from raytrain import redaction
from raytrain.doctor import node_facts, probe
from raytrain.doctor.facts import HERE, Clock, clock_of
from raytrain.doctor.node_facts import in_words, scrub
from raytrain.errors import first_line
from raytrain.ray_core.actors import start_actor

# Methods that run at once in a probe, so that one that hangs on a broken mount does not block the others.
THREADS = 8
CLOCK_READINGS = 7
CLOCK_TIMEOUT_S = 5.0
ECHO_S = 5.0
Answers = tuple[dict[str, Any], dict[str, str]]


class Probes:
    """One actor per node, and one object in this process under HERE. Leaving the context kills the actors."""

    def __init__(self, node_ids: Iterable[str]):
        """Returns without waiting for the actors to start."""
        send_by_value()
        self._here = probe.NodeProbe()
        self._actors = {node: start_actor(probe.NodeProbe, node_id=node, max_concurrency=THREADS) for node in node_ids}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._actors.values())

    def ask(self, method: str, arguments: Mapping[str, tuple[Any, ...]], timeout_s: float) -> Answers:
        """Call a method on several nodes at once.

        Args:
            arguments: Node -> arguments of the method.
            timeout_s: Timeout for all nodes together.

        Returns:
            (node -> answer, node -> why it is missing).
        """
        own = _start(getattr(self._here, method), arguments[HERE]) if HERE in arguments else None
        asked = {
            getattr(self._actors[node], method).remote(*words): node
            for node, words in arguments.items()
            if node != HERE
        }
        until_s = time.monotonic() + timeout_s
        answers, errors = collect(asked, timeout_s)
        if own is not None:
            try:
                answer = own.get(timeout=max(0.1, until_s - time.monotonic()))
            except queue.Empty:
                errors[HERE] = _late(timeout_s)
            else:
                if isinstance(answer, Exception):
                    errors[HERE] = in_words(answer)
                else:
                    answers[HERE] = answer
        return answers, errors

    def clock(self, node: str) -> Clock | None:
        """Compare a node's clock with ours. None: it does not answer."""
        import ray

        readings = []
        for _ in range(CLOCK_READINGS):
            sent_s = time.time()
            try:
                there_s = ray.get(self._actors[node].now.remote(), timeout=CLOCK_TIMEOUT_S)
            except ray.exceptions.RayError:
                return None
            readings.append((sent_s, there_s, time.time()))
        return clock_of(readings)


def send_by_value() -> None:
    """Pickle the probe's modules by value; see `probe`."""
    from ray import cloudpickle

    for module in (probe, node_facts, redaction):
        cloudpickle.register_pickle_by_value(module)


def end(actors: Iterable[Any]) -> None:
    """Kill the actors, even if they are busy."""
    import ray

    for actor in actors:
        with contextlib.suppress(Exception):  # its node may be dead
            ray.kill(actor)


def collect(asked: Mapping[Any, str], timeout_s: float, *, is_joint: bool = False) -> Answers:
    """Collect the answers.

    Args:
        asked: Reference -> node.
        is_joint: Whether the actors work together. After one of them fails, the others get only ECHO_S to finish.

    Returns:
        (node -> answer, node -> why it is missing).
    """
    import ray

    answers: dict[str, Any] = {}
    errors: dict[str, str] = {}
    pending, until_s, has_failed = list(asked), time.monotonic() + timeout_s, False
    while pending and time.monotonic() < until_s:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, until_s - time.monotonic()))
        for reference in ready:
            node = asked[reference]
            try:
                answers[node] = ray.get(reference)
            except ray.exceptions.RayError as error:
                errors[node] = cause(error)
            has_failed |= node in errors or (isinstance(answers[node], dict) and "error" in answers[node])
        if is_joint and has_failed:
            until_s = min(until_s, time.monotonic() + ECHO_S)
    late = [] if is_joint and has_failed else pending  # the pending ones only wait for the one that failed
    return answers, {**errors, **{asked[reference]: _late(timeout_s) for reference in late}}


def cause(error: Exception) -> str:
    """The message of a Ray error, as one line without credentials."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        return in_words(error.cause)
    text = str(error).strip()
    # An error in an actor's constructor is at the end of a traceback.
    return scrub(text.splitlines()[-1] if "creation task" in text else first_line(text))


def _late(timeout_s: float) -> str:
    return f"no answer in {timeout_s:g} s"


def _start(call: Any, words: tuple[Any, ...]) -> "queue.SimpleQueue[Any]":
    """Call in a daemon thread, which does not block exit: this machine's mounts may hang too."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(call(*words))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=run, daemon=True, name="doctor").start()
    return answer
