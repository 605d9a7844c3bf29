"""Blocks of rows that share one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.dedup import map_type, mean_blocks, most_unique, share
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of

TOTAL = 600


@pytest.mark.parametrize(("budget", "dim", "block"), [(1.0, 8, 1), (0.5, 5, 1), (0.5, 8, 7), (0.1, 8, 1), (0.1, 16, 4), (0.02, 8, None)])
def test_the_unique_blocks_and_the_map_fill_the_budget(budget: float, dim: int, block: int | None) -> None:
    method = method_of("dedup", budget, dim, block=block)
    codec, tables = made(method)
    size, blocks = method.block, -(-TOTAL // method.block)
    taken = stored_bytes(codec.stored(tables))
    assert taken == method.unique * size * dim * 4 + blocks * map_type(method.unique).itemsize
    grain = size * dim * 4 + blocks * (method.unique == 256)  # the 257th block widens the map too
    assert taken <= method.allowed_bytes < taken + grain


@given(st.integers(1, 10**7), st.integers(4, 4096), st.integers(0, 10**9))
def test_room_for_unique_blocks(blocks: int, row: int, allowed: int) -> None:
    def takes(unique: int) -> int:
        return unique * row + blocks * map_type(unique).itemsize

    unique = most_unique(blocks, row, allowed)
    assert 0 <= unique <= blocks
    assert not unique or takes(unique) <= allowed
    assert unique == blocks or takes(unique + 1) > allowed


def test_blocks_that_are_the_same_are_the_first_to_be_shared() -> None:
    different = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    pattern = torch.randint(30, (200,), generator=torch.Generator().manual_seed(1))
    pattern[:30] = torch.arange(30)
    shared = share(different[pattern], 30)
    torch.testing.assert_close(mean_blocks(different[pattern], shared, 30)[shared], different[pattern])


def test_near_rows_share_and_far_ones_do_not() -> None:
    """Ten rows that were trained among ninety that hardly moved."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.cat([torch.randn(90, 8, generator=draw) * 1e-4, torch.randn(10, 8, generator=draw)])
    shared = share(rows, 12)
    assert len(shared[90:].unique()) == 10 and not set(shared[90:].tolist()) & set(shared[:90].tolist())


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_every_number_is_used(count: int, unique: int, seed: int) -> None:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).round()
    shared = share(rows, unique)
    assert sorted(set(shared.tolist())) == list(range(min(unique, count)))
    assert torch.equal(shared, share(rows, unique))


def test_the_training_starts_from_the_means_of_what_is_shared() -> None:
    method = method_of("dedup", 0.3, 4, block=7)
    table = torch.randn(TOTAL, 4, generator=torch.Generator().manual_seed(5))
    decision = method.decide(method.supernet(counts_of(method.space)), {"rows": table}, counts_of(method.space), lambda rows: 0.0)
    codec, started = method.codec(decision, counts_of(method.space)), method.start(decision, {"rows": table})
    vectors = looked_up(codec, started, torch.arange(TOTAL))
    for number in range(method.unique):
        (own,) = (decision["shared"] == number).nonzero(as_tuple=True)
        for k in range(7):
            ids = own * 7 + k
            if ids.max() < TOTAL:
                torch.testing.assert_close(vectors[ids], table[ids].mean(0).expand(len(ids), -1))


def test_an_id_keeps_its_place_in_its_block() -> None:
    method = method_of("dedup", 0.5, 4, block=10)
    shared = torch.arange(60) % 3
    codec = method.codec({"shared": shared}, counts_of(method.space))
    assert codec.places(torch.tensor([0, 9, 10, 25, 34, 599]))[0].tolist() == [0, 9, 10, 25, 4, 29]


def test_with_room_for_the_table_hardly_anything_is_shared() -> None:
    method = method_of("dedup", 1.0, 16)
    assert method.block == 1 and method.unique >= 0.96 * TOTAL


def test_the_export_has_the_same_vectors(tmp_path: Path) -> None:
    codec, tables = made(method_of("dedup", 0.2, 5, block=3))
    ids, stored = torch.arange(TOTAL), codec.stored(tables)
    assert torch.equal(stored(ids), looked_up(codec, tables, ids))
    np.testing.assert_array_equal(in_onnx(stored, ids, tmp_path), stored(ids).numpy())


@pytest.mark.parametrize("block", [None, 1, 50, 700])
def test_the_least_budget_of_the_error_is_enough(block: int | None) -> None:
    with pytest.raises(CtrkitError, match="needs .* bytes at the least") as refused:
        method_of("dedup", 1e-4, block=block)
    (least,) = re.findall(r"needs ([\d,]+) bytes", str(refused.value))
    number, full = int(least.replace(",", "")), TOTAL * 8 * 4
    if number <= full:
        assert method_of("dedup", (number + 0.5) / full, block=block).unique >= 1
        with pytest.raises(CtrkitError, match="needs"):
            method_of("dedup", (number - 0.5) / full, block=block)


def test_a_search_comes_first_and_the_space_is_the_users() -> None:
    method = method_of("dedup", 0.5, space=space_of({"a": 30}), search_epochs=3)
    assert (method.search_epochs, method.search_stops_early, method.starts_from) == (3, True, "end")
    assert (looked_up(method.supernet(torch.ones(30)), {"rows": torch.eye(30)}, torch.tensor([4]))[0]).argmax() == 4
