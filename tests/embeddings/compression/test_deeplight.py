"""DeepLight prunes by one threshold over all shards, gradually, and evaluates what it would store."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from ctrkit.embeddings.compression.codec import Codec, Shard, stored_bytes
from tests.embeddings.compression.made import looked_up, made, method_of


def alone(tensor: Tensor) -> Tensor:
    return tensor


def prune(codec: Codec, table: Tensor, epoch: float, step: int = 9) -> None:
    codec.advance(epoch, step)
    codec.after_step({"rows": [Shard(0, table[:250]), Shard(250, table[250:])]}, alone)


def test_what_is_evaluated_is_what_is_stored_even_in_the_warm_up() -> None:
    codec, tables = made(method_of("deeplight", 0.2))
    before = tables["rows"].clone()
    prune(codec, tables["rows"], epoch=0.3)
    assert torch.equal(tables["rows"], before), "nothing is pruned yet"
    ids = torch.arange(600)
    stored = codec.stored(tables)
    torch.testing.assert_close(looked_up(codec.eval(), tables, ids), stored(ids))
    assert torch.equal(looked_up(codec.train(), tables, ids), before)


def test_the_share_of_zeros_follows_the_schedule_and_ends_where_the_table_fits() -> None:
    method = method_of("deeplight", 0.2, warmup=1.0, ramp=2.0)
    codec, tables = made(method)
    final = 1 - float((codec.stored(tables)(torch.arange(600)) != 0).double().mean())
    for epoch in (1.0, 1.5, 2.0, 3.0):
        prune(codec, tables["rows"], epoch)
        zeros = float((tables["rows"] == 0).double().mean())
        expected = final * (1 - 0.01 ** ((epoch - 1) / 2)) if epoch < 3 else final
        assert zeros == pytest.approx(expected, abs=1e-3)
    assert stored_bytes(codec.stored(tables)) <= method.allowed_bytes
    assert torch.equal(codec.stored(tables)(torch.arange(600)), tables["rows"])


def test_it_prunes_only_every_so_many_steps() -> None:
    codec, tables = made(method_of("deeplight", 0.2, every=4))
    before = tables["rows"].clone()
    prune(codec, tables["rows"], epoch=5, step=4)
    assert torch.equal(tables["rows"], before)
    prune(codec, tables["rows"], epoch=5, step=7)
    assert (tables["rows"] == 0).any()


def test_the_threshold_is_one_over_all_processes() -> None:
    codec, tables = made(method_of("deeplight", 0.2))
    together = tables["rows"].clone()
    prune(codec, together, epoch=1.5)

    meet, sums = Barrier(2), [torch.zeros(2), torch.zeros(2)]

    def process(number: int, first: int, rows: Tensor) -> Tensor:
        def add_up(counts: Tensor) -> Tensor:
            sums[number] = counts
            meet.wait()
            total = sums[0] + sums[1]
            meet.wait()
            return total

        own, _ = made(method_of("deeplight", 0.2))
        own.advance(1.5, 9)
        own.after_step({"rows": [Shard(first, rows)]}, add_up)
        return rows

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(process, 0, 0, tables["rows"][:250]), pool.submit(process, 1, 250, tables["rows"][250:])]
        apart = torch.cat([process.result(timeout=60) for process in running])
    assert torch.equal(apart, together) and (together == 0).any()


def test_a_full_budget_prunes_nothing() -> None:
    codec, tables = made(method_of("deeplight", 1.0))
    before = tables["rows"].clone()
    prune(codec, tables["rows"], epoch=5)
    assert torch.equal(tables["rows"], before)
