"""A service in processes of its own, for as long as it is measured."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from ctrkit.errors import CtrkitError

START_SECONDS = 60
STOP_SECONDS = 15


@contextmanager
def service_process(command: Sequence[str], ready: str) -> Iterator[tuple[int, int]]:
    """Starts a service that takes a port as its last argument, waits until it answers, and stops it and its children at the end.

    Yields:
        Its port and its process's number.

    Raises:
        CtrkitError: it ends, or does not answer ``ready`` within a minute.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryFile("w+") as said:
        process = subprocess.Popen([*command, str(port)], stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}{ready}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    lines = said.read().strip().splitlines() or ["it said nothing"]
                    raise CtrkitError(f"a service did not start: {lines[-1]}", f"Try it alone: {' '.join(command)} {port}")
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with suppress(ProcessLookupError):  # of its group, what a service leaves behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def processor_seconds(process: int) -> float:
    """User and system time that a process and its children have used: fields 14 and 15 of ``/proc/<number>/stat``."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task").glob("*/children")
    below = [int(child) for each in children for child in each.read_text().split()]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(child) for child in below)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
