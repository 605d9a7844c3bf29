from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.packed import PackedCodes, packed_bytes
from tests.embeddings.compression.exported import in_onnx


@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**32))
def test_codes_come_back_and_take_no_more_than_their_bits(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(2**bits, (5, count), generator=torch.Generator().manual_seed(seed))
    packed = PackedCodes(codes, bits)
    assert torch.equal(packed(torch.arange(5)), codes)
    assert stored_bytes(packed) == packed_bytes(5, count, bits) == 5 * -(-count * bits // 8)


def test_the_export_has_the_same_codes(tmp_path: Path) -> None:
    codes = torch.arange(3 * 8).view(8, 3) % 8
    np.testing.assert_array_equal(in_onnx(PackedCodes(codes, 3), torch.arange(8), tmp_path), codes.numpy())
