"""``ctrkit`` commands in processes of their own that do not import everything anew.

They are forks of one server that has imported what a training needs and done nothing else: a process starts in milliseconds, not in the
seconds that importing torch takes.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

_IMPORTED = ["pipelines.cli", "ctrkit.training.trainer"]


@dataclass(frozen=True)
class Ended:
    """A command that has ended, as its user sees it."""

    status: int
    stdout: str
    stderr: str


def run_command(arguments: Sequence[str], threads: int | None = None) -> Ended:
    """Runs ``ctrkit`` with such arguments to its end.

    Args:
        threads: of torch, where the command's config does not say; None: all cores.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        out.touch()
        err.touch()
        process = context.Process(target=_run, args=(list(arguments), str(out), str(err), threads))
        process.start()
        process.join()
        return Ended(process.exitcode or 0, out.read_text(), err.read_text())


def _run(arguments: list[str], out: str, err: str, threads: int | None) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from pipelines.cli import main

    sys.argv = ["ctrkit", *arguments]
    main()


def _end_with_parent() -> None:
    """A benchmark that is killed takes the command it waits for with it: a fork of the server is not its child."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
