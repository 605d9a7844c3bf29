"""Runs a command and watches it: seconds, and the most memory that it and its children held together."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.25


@dataclass(frozen=True)
class Watched:
    """Attributes:
    seconds: of wall clock.
    cpu_seconds: of processor time, children included.
    peak_mb: proportional set size, in which memory that processes share counts once; seen every quarter of a second.
    finished: whether it ended by itself in time.
    status: exit status.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    finished: bool
    status: int


def watch(
    command: Sequence[str], log: Path, limit: float | None = None, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Watched:
    """Runs the command in a session of its own; past ``limit`` seconds all of it is killed.

    Args:
        log: its words go there.
        environment: set besides the own.
        folder: it runs there.
    """
    started, before = time.perf_counter(), _children_cpu()
    peak, finished = 0.0, True
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            if limit is not None and time.perf_counter() - started > limit:
                finished = False
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(_EVERY)
    return Watched(time.perf_counter() - started, _children_cpu() - before, peak, finished, process.returncode)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _memory(root: int) -> float:
    """MB of a process and its descendants."""
    return sum(_pss(pid) for pid in _tree(root))


def _tree(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
