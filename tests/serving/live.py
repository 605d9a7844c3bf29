"""A service on a loopback port of its own, for tests that need a real socket."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from serving.app import create_app
from serving.server import make_server
from serving.settings import ServingSettings


@contextmanager
def service(repo: Path, settings: ServingSettings | None = None, verify: ssl.SSLContext | bool = True) -> Iterator[str]:
    """Its address, ``http://127.0.0.1:<port>``, once it is ready; it ends with the block."""
    settings = settings or ServingSettings()
    server = make_server(create_app(repo, settings), "127.0.0.1", 0, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        address = f"http{'s' if settings.tls_cert else ''}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wait_until(lambda: httpx.get(f"{address}/readyz", verify=verify).status_code == 200)
        yield address
    finally:
        server.should_exit = True
        thread.join()


def wait_until(happened, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
