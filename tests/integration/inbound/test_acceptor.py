"""Two that accept from one socket, as two processes do."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from relayd.inbound import acceptor
from relayd.inbound.acceptor import Acceptor
from relayd.inbound.headcount import Headcount, table


class Side:
    """An acceptor and what it has taken."""

    def __init__(self, sock: socket.socket, descriptor: int, number: int) -> None:
        self.taken: list[socket.socket] = []
        self.headcount = Headcount(descriptor, number)
        self.headcount.open()
        self.acceptor = Acceptor(sock, self._welcome, 1.0, self.headcount)

    def _welcome(self, sock: socket.socket, _peer: object) -> None:
        self.taken.append(sock)
        self.headcount.count("", 1)


@pytest.fixture
async def sides():
    descriptor = table(2)
    first = socket.create_server(("127.0.0.1", 0))
    first.setblocking(False)
    sides = [Side(first, descriptor, 0), Side(first.dup(), descriptor, 1)]
    yield sides
    for side in sides:
        side.acceptor.stop()
        for sock in side.taken:
            sock.close()
    os.close(descriptor)


async def connect(sides: list[Side], count: int) -> list[asyncio.StreamWriter]:
    address = sides[0].acceptor._socket.getsockname()
    return [(await asyncio.open_connection(*address))[1] for _ in range(count)]


async def test_connections_are_shared_out(sides, eventually):
    for side in sides:
        side.acceptor.start()
    clients = await connect(sides, 40)
    await eventually(lambda: sum(len(side.taken) for side in sides) == 40)
    assert min(len(side.taken) for side in sides) >= 14
    for client in clients:
        client.close()


async def test_those_who_wait_are_shared_out(sides, eventually):
    clients = await connect(sides, 40)
    for side in sides:
        side.acceptor.start()
    await eventually(lambda: sum(len(side.taken) for side in sides) == 40)
    assert min(len(side.taken) for side in sides) >= 14
    for client in clients:
        client.close()


async def test_what_is_left_to_a_hung_process_is_taken_all_the_same(sides, eventually):
    """It counts as the one with the fewest, and takes none."""
    sides[0].acceptor.start()
    clients = await connect(sides, 60)
    await eventually(lambda: len(sides[0].taken) == 60)
    for client in clients:
        client.close()


async def test_who_has_the_most_no_more_takes_at_once(sides, monkeypatch, eventually):
    """Not when its time is up: until then the other may have become the one with the most."""
    monkeypatch.setattr(acceptor, "_INTERVAL", 1000)
    first, _ = sides
    first.headcount.count("", 10)
    first.acceptor.start()
    [client] = await connect(sides, 1)
    await eventually(lambda: first.acceptor._looks)
    first.acceptor.look()
    assert first.acceptor._looks
    first.headcount.count("", -9)
    first.acceptor.look()
    await eventually(lambda: first.taken)
    client.close()
