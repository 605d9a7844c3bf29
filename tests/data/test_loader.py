"""The loader: every row once, in an order that depends on seed and epoch alone, whatever the number of processes."""

import gc
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError
from ctrkit.schema import IdField, Inputs

INPUTS = Inputs(
    id_fields=(IdField(name="row", rows=2**40), IdField(name="tags", rows=2**40, multi_valued=True), IdField(name="item", rows=100)),
    numeric_fields=("price", "age"),
)
BIG = 2**31 + 1


@dataclass
class Shards:
    """A dataset of two shards of small row groups; row i holds ids, bag, numbers and label that follow from i."""

    path: Path
    inputs: Inputs
    rows: dict[str, int]
    group: str | None = "user"

    def parts(self, split: str) -> list[Path]:
        return sorted((self.path / split).glob("*.parquet"))


def bag(i: int) -> list[int]:
    return [BIG + i + k for k in range(i % 4)]


def table(first: int, last: int) -> pa.Table:
    rows = range(first, last)
    return pa.table(
        {
            "item": pa.array([2 + i % 90 for i in rows], pa.int64()),
            "row": pa.array([BIG + i for i in rows], pa.int64()),
            "tags": pa.array([bag(i) for i in rows], pa.list_(pa.int64())),
            "price": pa.array([i / 2 for i in rows], pa.float32()),
            "age": pa.array([float("nan") if i % 5 == 0 else i for i in rows], pa.float32()),
            "@label": pa.array([i % 2 for i in rows], pa.float32()),
            "@group": pa.array([i // 3 for i in rows], pa.int64()),
        }
    )


def write(folder: Path, rows: int, row_group: int = 7) -> Shards:
    (folder / "train").mkdir(parents=True)
    middle = rows // 2
    pq.write_table(table(0, middle), folder / "train" / "part-00000.parquet", row_group_size=row_group)
    pq.write_table(table(middle, rows), folder / "train" / "part-00001.parquet", row_group_size=row_group)
    return Shards(folder, INPUTS, {"train": rows})


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return write(tmp_path, 101)


def numbers(batches) -> list[int]:
    """The rows' numbers, in the order they come."""
    return [int(i) - BIG for batch in batches for i in batch.sparse["row"].values()]


STREAMED = {"memory_limit": 4 * 1000}  # blocks of a few row groups


def test_a_batch_holds_the_columns_of_its_rows(shards: Shards) -> None:
    batches = list(Loader(shards, "train", 32, shuffle=True).iter(0))
    assert [b.rows for b in batches] == [26, 25, 25, 25]
    for batch in batches:
        rows = np.array([int(i) - BIG for i in batch.sparse["row"].values()])
        assert batch.sparse.keys() == ["row", "tags", "item"]
        assert batch.sparse.stride() == batch.rows
        assert str(batch.sparse.values().dtype) == "torch.int64"
        assert batch.sparse["item"].values().tolist() == [2 + i % 90 for i in rows]
        assert [b.tolist() for b in batch.sparse["tags"].to_dense()] == [bag(i) for i in rows]
        np.testing.assert_array_equal(batch.dense[:, 0], rows / 2)
        np.testing.assert_array_equal(batch.dense[:, 1], np.where(rows % 5 == 0, np.nan, rows))
        np.testing.assert_array_equal(batch.labels, rows % 2)
        np.testing.assert_array_equal(batch.groups, rows // 3)


@pytest.mark.parametrize("limit", [{}, STREAMED])
def test_several_labels_come_side_by_side_in_the_order_of_the_tasks(tmp_path: Path, limit: dict) -> None:
    (tmp_path / "train").mkdir()
    content = table(0, 101).drop_columns(["@label"])
    for task, every in (("buy", 3), ("click", 2)):
        content = content.append_column(f"@label:{task}", pa.array([float(i % every == 0) for i in range(101)], pa.float32()))
    pq.write_table(content, tmp_path / "train" / "part-00000.parquet", row_group_size=7)
    shards = Shards(tmp_path, INPUTS.model_copy(update={"tasks": ("click", "buy")}), {"train": 101})
    for batch in Loader(shards, "train", 32, shuffle=True, **limit).iter(0):
        rows = np.array(numbers([batch]))
        assert batch.rows == len(rows)
        np.testing.assert_array_equal(batch.labels, np.stack([rows % 2 == 0, rows % 3 == 0], axis=1))


@pytest.mark.parametrize("limit", [{}, STREAMED])
def test_every_row_once_and_in_another_order_each_epoch(shards: Shards, limit: dict) -> None:
    loader = Loader(shards, "train", 16, seed=3, shuffle=True, **limit)
    first, second = numbers(loader.iter(0)), numbers(loader.iter(1))
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second and first != sorted(first)
    assert numbers(Loader(shards, "train", 16, seed=3, shuffle=True, **limit).iter(0)) == first
    assert numbers(Loader(shards, "train", 16, seed=4, shuffle=True, **limit).iter(0)) != first


@pytest.mark.parametrize("limit", [{}, STREAMED])
def test_unshuffled_rows_keep_their_order(shards: Shards, limit: dict) -> None:
    assert numbers(Loader(shards, "train", 10, **limit).iter(5)) == list(range(101))


@pytest.mark.parametrize("limit", [{}, STREAMED])
@pytest.mark.parametrize("skip", [0, 1, 3, 6, 7])
def test_skip_continues_where_an_epoch_was_left(shards: Shards, skip: int, limit: dict) -> None:
    loader = Loader(shards, "train", 16, seed=1, shuffle=True, **limit)
    done = sum(loader.batch_rows(batch) for batch in range(skip))
    assert numbers(loader.iter(2, skip=skip)) == numbers(loader.iter(2))[done:]


@pytest.mark.parametrize("limit", [{}, STREAMED])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_global_batch(shards: Shards, world: int, limit: dict) -> None:
    alone = Loader(shards, "train", 20, seed=1, shuffle=True, **limit)
    order = np.array(numbers(alone.iter(0)))
    for rank in range(world):
        mine = Loader(shards, "train", 20, seed=1, shuffle=True, rank=rank, world=world, **limit)
        assert [numbers([b]) for b in mine.iter(0)] == [order[start + rank : stop : world].tolist() for start, stop in mine.bounds]
        assert order[mine.positions(rank)].tolist() == numbers(mine.iter(0))


@pytest.mark.parametrize("limit", [{}, STREAMED])
def test_the_first_rows_are_as_many_as_asked(shards: Shards, limit: dict) -> None:
    loader = Loader(shards, "train", 64, seed=1, shuffle=True, **limit)
    for rows in (64, 1, 101):
        assert numbers([loader.first(rows)]) == numbers(loader.iter(0))[:rows]
    assert loader.first(1000).rows == 101


def test_batches_have_as_many_rows_or_one_more(shards: Shards) -> None:
    """101 rows: none is in a batch of its own, where it would weigh fifty times what it weighs elsewhere."""
    assert [b.rows for b in Loader(shards, "train", 50).iter(0)] == [34, 34, 33]
    assert [b.rows for b in Loader(shards, "train", 50, rank=1, world=2).iter(0)] == [17, 17, 16]
    assert [b.rows for b in Loader(shards, "train", 101).iter(0)] == [101]


def test_without_bags_numbers_or_group(shards: Shards) -> None:
    shards.inputs, shards.group = Inputs(id_fields=(INPUTS.id_fields[2],), numeric_fields=()), None
    batch = next(Loader(shards, "train", 8).iter(0))
    assert batch.dense.shape == (8, 0) and batch.groups is None
    assert batch.sparse.lengths().tolist() == [1] * 8


def test_without_id_fields(shards: Shards) -> None:
    shards.inputs = Inputs(id_fields=(), numeric_fields=("price",))
    batch = next(Loader(shards, "train", 8).iter(0))
    assert batch.dense[:, 0].tolist() == [i / 2 for i in range(8)] and batch.sparse.stride() == 8


def test_a_damaged_shard_reaches_the_consumer_by_name(shards: Shards) -> None:
    loader = Loader(shards, "train", 8)
    part = shards.parts("train")[1]
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(CtrkitError, match="part-00001.parquet.*cannot be read"):
        list(loader.iter(0))


def test_a_null_id_is_refused(shards: Shards) -> None:
    broken = table(0, 50).set_column(0, "item", pa.array([None] * 50, pa.int64()))
    pq.write_table(broken, shards.parts("train")[0])
    with pytest.raises(CtrkitError, match="'item'.*nulls"):
        list(Loader(shards, "train", 8).iter(0))


def test_missing_rows_are_noticed_before_reading(shards: Shards) -> None:
    shards.parts("train")[1].unlink()
    with pytest.raises(CtrkitError, match="50 rows, dataset.json says 101"):
        Loader(shards, "train", 8)


def test_more_processes_than_rows_or_batch_is_refused(tmp_path: Path) -> None:
    tiny = write(tmp_path, 2)
    with pytest.raises(CtrkitError, match="2 rows for 3 processes"):
        Loader(tiny, "train", 8, world=3)
    with pytest.raises(CtrkitError, match="batch_size is 2"):
        Loader(tiny, "train", 2, world=3)


def test_an_abandoned_iterator_stops_its_thread(shards: Shards) -> None:
    before = set(threading.enumerate())
    batches = Loader(shards, "train", 2).iter(0)
    next(batches)
    assert set(threading.enumerate()) - before
    del batches
    gc.collect()
    assert set(threading.enumerate()) == before
