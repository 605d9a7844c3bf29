"""Damaged resume points are named, with the remedy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ctrkit.errors import CtrkitError
from ctrkit.training.checkpoint import Checkpoints
from ctrkit.training.distributed import process_group


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Checkpoints]:
    with process_group():
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save_best(3, {"w": torch.ones(2)})
        checkpoints.save(3, {"w": torch.ones(2)}, {"step": 3}, 3)
        yield checkpoints


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", None])
def test_a_manifest_that_was_cut_short(saved: Checkpoints, tmp_path: Path, text: str | None) -> None:
    manifest = tmp_path / "step-0000000003" / "manifest.json"
    assert saved.latest() == 3 and saved.load(3)[1] == {"step": 3}
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(CtrkitError, match="step-0000000003' is damaged.*Delete it; the one before it is used then"):
        saved.load(3)


def test_best_weights_that_were_cut_short_and_folders_of_others(saved: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "step-old").mkdir()
    assert saved.latest() == 3 and saved.load_best(3)["w"].tolist() == [1, 1]
    best = saved.best_path(3)
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(CtrkitError, match="the best weights .* are damaged.*Train anew without --resume"):
        saved.load_best(3)
