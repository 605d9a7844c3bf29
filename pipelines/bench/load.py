"""Load for an HTTP service: requests over kept connections, each answered before the next (closed loop) or at a given rate (open loop).

In the open loop a request's latency counts from the moment it was due, whether or not a connection was free: a service that stalls
cannot hide it by being asked less.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

BACKLOG = 1000
"""Requests of the open loop that may wait for a connection; more are dropped and counted."""


@dataclass
class Load:
    """What a load found.

    Attributes:
        latencies: seconds of each request that was answered with 200.
        statuses: how many answers of each status.
        dropped: requests of the open loop that no connection was free for.
        seconds: from the first request to the last answer.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    dropped: int = 0
    seconds: float = 0.0

    def add(self, status: int, latency: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(latency)


class Connection(asyncio.Protocol):
    """One kept connection that has one request under way at most."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the service closed the connection"))

    async def ask(self, request: bytes) -> int:
        """The answer's status.

        Raises:
            OSError: the service has closed the connection.
        """
        assert self._transport is not None
        if self._lost:
            raise ConnectionError("the service closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        headers = bytes(self._received[:head]).lower()
        length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self._received) >= head + 4 + length and self._answer is not None and not self._answer.done():
            self._answer.set_result(int(headers[9:12]))
            self._received.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def request(path: str, body: bytes) -> bytes:
    """A POST's bytes."""
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def closed_loop(port: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> Load:
    """So many connections, each with its next request as soon as the last is answered."""
    load = Load()
    connections = await connect(port, concurrency)
    started = perf_counter()

    async def turn(connection: Connection, first: int) -> None:
        place = first
        while perf_counter() - started < seconds:
            begun = perf_counter()
            status = await connection.ask(requests[place % len(requests)])
            load.add(status, perf_counter() - begun)
            place += 1

    await asyncio.gather(*(turn(connection, place) for place, connection in enumerate(connections)))
    load.seconds = perf_counter() - started
    _close(connections)
    return load


async def open_loop(port: int, requests: Sequence[bytes], concurrency: int, seconds: float, rate: float, seed: int = 0) -> Load:
    """Requests at random times, ``rate`` a second on average (Poisson), over at most so many connections."""
    load = Load()
    connections = await connect(port, concurrency)
    due: asyncio.Queue[float | None] = asyncio.Queue(BACKLOG)
    draw = random.Random(seed)
    started = perf_counter()

    async def turn(connection: Connection, first: int) -> None:
        place = first
        while (begun := await due.get()) is not None:
            status = await connection.ask(requests[place % len(requests)])
            load.add(status, perf_counter() - begun)
            place += 1

    turns = [asyncio.create_task(turn(connection, place)) for place, connection in enumerate(connections)]
    when = started
    while (when := when + draw.expovariate(rate)) < started + seconds:
        if (early := when - perf_counter()) > 0:
            await asyncio.sleep(early)
        if due.full():
            load.dropped += 1
        else:
            due.put_nowait(when)
    for _ in connections:
        await due.put(None)
    await asyncio.gather(*turns)
    load.seconds = perf_counter() - started
    _close(connections)
    return load


async def connect(port: int, count: int) -> list[Connection]:
    """So many connections to this machine."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


def _close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()
