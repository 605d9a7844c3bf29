"""Tables of which some rows are kept, each field's at its width: by hand, in every layout, and to the byte."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.kept import kept_bytes, store_kept
from ctrkit.embeddings.compression.stored import ByTable
from tests.embeddings.compression.exported import in_onnx

ROWS = (70, 5, 1)


def table_of(dim: int) -> torch.Tensor:
    return torch.arange(1.0, sum(ROWS) * dim + 1).view(-1, dim)


def test_by_hand() -> None:
    kept = torch.tensor([False, True, True, True, False])
    stored = store_kept(torch.arange(1.0, 16).view(5, 3), [3, 2], kept, torch.tensor([1, 2]))
    expected = torch.tensor([[0, 0, 0], [4, 0, 0], [7, 0, 0], [10, 11, 0], [0, 0, 0]], dtype=torch.float)
    assert torch.equal(stored(torch.arange(5)), expected)
    assert stored_bytes(stored) == 4 * 4 + 2 * 20 + 8, "four numbers, two fields, a block of marks and its count"


@given(
    dim=st.integers(1, 9),
    kept=st.sets(st.integers(0, sum(ROWS) - 1), min_size=1),
    everything=st.booleans(),
    draw=st.data(),
)
def test_every_layout_gives_the_masked_table_and_takes_what_is_said(
    dim: int, kept: set[int], everything: bool, draw: st.DataObject
) -> None:
    widths = torch.tensor(draw.draw(st.lists(st.integers(1, dim), min_size=3, max_size=3)))
    chosen = torch.full((sum(ROWS),), everything)
    chosen[list(kept)] = True
    of_rows = widths.repeat_interleave(torch.tensor(ROWS))
    mask = (torch.arange(dim) < of_rows.unsqueeze(1)) & chosen.unsqueeze(1)
    stored = store_kept(table_of(dim), ROWS, chosen, widths)
    assert torch.equal(stored(torch.arange(sum(ROWS))), table_of(dim) * mask)
    said = kept_bytes(ROWS, dim, chosen.sum().view(1), mask.sum().view(1))
    assert stored_bytes(stored) == said.item()
    if isinstance(stored, ByTable):
        ids = torch.tensor([[69, 70, 75], [0, 74, 75]])
        assert torch.equal(stored(ids, torch.tensor([0, 1, 2])), stored(ids)), "told their tables or not"


@pytest.mark.parametrize(("kept", "layout"), [(2, "ids"), (40, "marks"), (76, None)])
def test_every_layout_exports(kept: int, layout: str | None, tmp_path: Path) -> None:
    chosen = torch.arange(76) % 76 < kept
    stored = store_kept(table_of(5), ROWS, chosen, torch.tensor([3, 1, 5]))
    assert {name for name, _ in stored.named_buffers() if name.startswith("index.")} == (
        set() if layout is None else {"index.ids"} if layout == "ids" else {"index.marks", "index.before"}
    )
    ids = torch.arange(76)
    np.testing.assert_array_equal(in_onnx(stored, ids, tmp_path), stored(ids).numpy())
