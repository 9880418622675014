"""Which nodes accept connections: all are asked at once. Real sockets, some of which do not answer."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from raytrain.ray_core import nodes
from raytrain.ray_core.nodes import answering

HERE = "127.0.0.1"


@pytest.fixture
def alive() -> Iterator[tuple[str, int]]:
    with socket.create_server((HERE, 0), backlog=512) as server:
        yield server.getsockname()


@pytest.fixture
def refusing() -> tuple[str, int]:
    with socket.create_server((HERE, 0)) as server:
        return server.getsockname()


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A node that is gone: nobody answers. Here, a server whose queue is full: the kernel drops what comes."""
    with contextlib.ExitStack() as closing:
        server = closing.enter_context(socket.create_server((HERE, 0), backlog=0))
        for _ in range(4):
            filler = closing.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


def test_each_address_has_its_own_answer(alive, refusing, silent):
    asked = [alive, silent, refusing, ("not an address", 1), alive]
    assert answering(asked, timeout_s=0.5) == [True, False, False, False, True]
    assert answering([]) == []


@pytest.mark.parametrize("most", [512, 40])
def test_a_lost_zone_takes_one_deadline(alive, silent, monkeypatch, most):
    """One after the other, these would take 300 s."""
    monkeypatch.setattr(nodes, "MOST_PROBES", most)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(answering([silent] * 300 + [alive], 1.0)), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [False] * 300 + [True]
