"""Several processes behind one port: each accepts, loads and answers for itself.

The parent holds the listening socket and looks after the workers. One that dies is started again, and joins the others once its models
are loaded and warm. Weights that lie beside a graph (``export.external_data_mb``) are mapped into memory: the workers share those pages.
"""

import logging
import logging.config
import multiprocessing
import signal
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from ctrkit.errors import CtrkitError
from serving.logs import logging_config
from serving.settings import ServingSettings

log = logging.getLogger("ctrkit.serving")

AGAIN_SECONDS = 1.0
"""A worker that died is started again after so long: one that dies at once must not keep a core busy."""

BACKLOG = 2048


def serve_with_workers(repo: Path, host: str, port: int, settings: ServingSettings) -> None:
    """Serves until SIGINT or SIGTERM; what is in flight is finished.

    Raises:
        CtrkitError: the address cannot be had, or a worker cannot load the models.
    """
    logging.config.dictConfig(logging_config())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with listening(host, port) as listener, TemporaryDirectory(prefix="ctrkit-") as folder:
        workers = [_Worker(number, repo, settings, listener, Path(folder)) for number in range(settings.workers)]
        try:
            while not stop.is_set():
                wait([worker.process.sentinel for worker in workers if worker.process.is_alive()], timeout=0.2)
                for worker in workers:
                    worker.look_after()
        finally:
            _end([worker.process for worker in workers], settings.shutdown_s)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        CtrkitError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CtrkitError(f"the service cannot listen on {host}:{port}: {error.strerror or error}", "Another --port may be free") from error


class _Worker:
    """One process, and its next one when it dies."""

    def __init__(self, number: int, repo: Path, settings: ServingSettings, listener: socket.socket, folder: Path) -> None:
        self._job = _Job(number, repo, settings, listener, folder)
        self.process, self._failure = self._start()
        self._again = 0.0

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")  # onnxruntime's threads do not survive a fork
        failure, told = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self._job, told), name=f"worker-{self._job.number}")
        process.start()
        told.close()
        return process, failure

    def look_after(self) -> None:
        """Starts the process again if it has died.

        Raises:
            CtrkitError: the one with which it ended.
        """
        if self.process.is_alive():
            return
        if not self._again:
            problem = self._told()
            if problem is not None:
                raise CtrkitError(*problem)
            log.error("worker died", extra={"worker": self._job.number, "exit": self.process.exitcode})
            self._again = time.monotonic() + AGAIN_SECONDS
        elif time.monotonic() > self._again:
            self.process, self._failure = self._start()
            self._again = 0.0

    def _told(self) -> tuple[str, str] | None:
        try:
            return self._failure.recv() if self._failure.poll() else None
        except EOFError:
            return None


@dataclass(frozen=True)
class _Job:
    """What a worker is given."""

    number: int
    repo: Path
    settings: ServingSettings
    listener: socket.socket
    folder: Path


def _work(job: _Job, failure: Connection) -> None:
    """A worker's life."""
    from serving.app import create_app
    from serving.peers import Peers
    from serving.server import make_server

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent hears it too and ends the workers
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()

    def stop(error: CtrkitError) -> None:
        failure.send((error.problem, error.remedy))
        server.should_exit = True

    peers = Peers(job.number, job.settings.workers, job.folder)
    try:
        server = make_server(create_app(job.repo, job.settings, stop, peers), "", 0, job.settings)
    except CtrkitError as error:  # settings that no other try would mend
        failure.send((error.problem, error.remedy))
        return
    server.run(sockets=[job.listener])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    signal.raise_signal(signal.SIGTERM)


def _end(processes: list[BaseProcess], seconds: float) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds + 5
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
