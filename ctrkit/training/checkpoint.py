"""Resume points that survive a kill at any moment.

``checkpoints/step-<step>/`` holds ``weights.pt`` (of the whole model) and ``rank-<rank>.pt`` (what else each process needs to go
on); the folder is written under a temporary name and renamed when every process has written its file.
``checkpoints/best-<step>.pt`` holds the best weights so far; the ``manifest.json`` of a resume point names the one that was best
by then, and files that no kept resume point names are deleted.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ctrkit.errors import CtrkitError
from ctrkit.training.run import save_tensors, write_json

MANIFEST = "manifest.json"
WEIGHTS = "weights.pt"
KEPT = 2
"""Resume points kept: the last one, and the one before in case the last holds what made training diverge."""


class Checkpoints:
    """The resume points of a run. Every process calls every method; the process group must be up.

    Args:
        folder: made on the first save.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    def save(self, step: int, weights: Mapping[str, Any], state: Mapping[str, Any], best_step: int | None) -> None:
        """Writes a resume point.

        Args:
            step: training steps done; its name.
            weights: of the whole model; those of process 0 are written.
            state: of this process; tensors, numbers, strings and containers of them.
            best_step: whose ``best-<step>.pt`` belongs to it.
        """
        temporary = self._folder / f".step-{step:010d}.tmp"
        if self._rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_tensors(weights, temporary / WEIGHTS)
            write_json(temporary / MANIFEST, {"best_step": best_step, "processes": self._world})
        dist.barrier()
        save_tensors(state, temporary / f"rank-{self._rank}.pt")
        dist.barrier()
        if self._rank == 0:
            temporary.rename(self._path(step))
            self._prune()
        dist.barrier()

    def latest(self) -> int | None:
        """Step of the last resume point."""
        steps = self._steps()
        return steps[-1] if steps else None

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(weights, state of this process) saved at a step.

        Raises:
            CtrkitError: it was saved by another number of processes, or is damaged.
        """
        path = self._path(step)
        saved_by = self._manifest(step)["processes"]
        if saved_by != self._world:
            raise CtrkitError(
                f"'{path}' was saved by {saved_by} processes and cannot be resumed by {self._world}",
                f"Start {saved_by} processes: torchrun --nproc-per-node {saved_by}",
            )
        try:
            weights = torch.load(path / WEIGHTS, map_location="cpu", weights_only=True, mmap=True)
            return weights, torch.load(path / f"rank-{self._rank}.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many types on a damaged file
            raise _damaged(path, error) from error

    def load_best(self, step: int) -> dict[str, Any]:
        """Raises CtrkitError when they are damaged."""
        path = self.best_path(step)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch.load raises many types on a damaged file
            raise CtrkitError(f"the best weights '{path}' are damaged: {error}", "Train anew without --resume") from error

    def save_best(self, step: int, weights: Mapping[str, Any]) -> None:
        """Keeps the best weights; called by process 0 alone, before the resume point that names them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, self.best_path(step))

    def best_path(self, step: int) -> Path:
        return self._folder / f"best-{step:010d}.pt"

    def delete(self) -> None:
        """Removes all of them, once the run's result is written."""
        if self._rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:010d}"

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self._path(step)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
            return {key: manifest[key] for key in ("best_step", "processes")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self._folder.glob("step-" + 10 * "[0-9]"))

    def _prune(self) -> None:
        for step in self._steps()[:-KEPT]:
            shutil.rmtree(self._path(step))
        kept = [self._manifest(step)["best_step"] for step in self._steps()]
        for path in self._folder.glob("best-*.pt"):
            if int(path.stem.removeprefix("best-")) not in kept:
                path.unlink()


def _damaged(path: Path, error: Exception) -> CtrkitError:
    return CtrkitError(f"the resume point '{path}' is damaged: {error}", "Delete it; the one before it is used then")
