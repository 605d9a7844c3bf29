"""What the workers of one service tell each other: their metrics, each over a socket of its own in a folder that only they can enter.

Whichever worker is asked for ``/metrics`` answers for all: every series has a label ``worker``.
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

TELL_SECONDS = 5.0
"""A worker that takes longer to tell its metrics is left out, and ``ctrkit_worker_up`` is 0."""

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?")


class Peers:
    """One worker's place among all.

    Args:
        number: of this worker, from 0.
        count: of workers.
        folder: where their sockets lie.
    """

    def __init__(self, number: int, count: int, folder: Path) -> None:
        self.number = number
        self.count = count
        self._folder = folder
        self._listener: socket.socket | None = None
        self._own: Callable[[], bytes] = bytes

    def listen(self, own: Callable[[], bytes]) -> None:
        """Tells the others from now on what ``own`` gives: this worker's metrics in Prometheus' text format."""
        self._own = own
        path = self._path(self.number)
        path.unlink(missing_ok=True)  # of a worker that died
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._tell, args=(self._listener,), name="tell-peers", daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def text(self) -> bytes:
        """The metrics of all workers that answer."""
        return together([self._own().decode() if number == self.number else self._ask(number) for number in range(self.count)])

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    def _tell(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError):
                connection.settimeout(TELL_SECONDS)
                connection.sendall(self._own())

    def _ask(self, number: int) -> str | None:
        told = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(TELL_SECONDS)
                connection.connect(str(self._path(number)))
                while part := connection.recv(2**16):
                    told.append(part)
        except OSError:
            return None
        return b"".join(told).decode()


def together(texts: Sequence[str | None]) -> bytes:
    """The workers' metrics under one another, each with its worker's number; None of a worker that told nothing."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in enumerate(texts):
        family = ""
        for line in (text or "").splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                samples.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif line:
                samples[family].append(_labelled(line, number))
    lines = [line for family in heads for line in (*heads[family], *samples[family])]
    up = [f'ctrkit_worker_up{{worker="{number}"}} {float(text is not None)}' for number, text in enumerate(texts)]
    about = ["# HELP ctrkit_worker_up Whether the worker told its metrics", "# TYPE ctrkit_worker_up gauge"]
    return "\n".join([*lines, *about, *up, ""]).encode()


def _labelled(sample: str, number: int) -> str:
    name = _SAMPLE.match(sample)
    assert name is not None, sample
    rest = sample[name.end() :]
    return f'{name[1]}{{worker="{number}"{"," if name[2] else "}"}{rest}'
