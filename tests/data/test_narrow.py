"""A dataset narrowed to fewer features is the one that prepare makes of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.loader import Loader
from ctrkit.data.narrow import narrow
from ctrkit.data.prepare import prepare
from ctrkit.errors import CtrkitError

FEATURES = {
    "user": {"name": "user", "kind": "categorical"},
    "tags": {"name": "tags", "kind": "multi_valued"},
    "item.id": {"name": "item.id", "kind": "categorical", "transform": {"min_count": 2}},
    "seen": {"name": "seen", "kind": "sequence", "of": "item.id", "max_length": 5},
    "price": {"name": "price", "kind": "numeric", "transform": "log1p"},
    "age": {"name": "age", "kind": "numeric", "transform": {"kind": "buckets", "count": 4}},
}
Make = Callable[..., Experiment]


@pytest.fixture
def of(tmp_path: Path) -> Make:
    """The experiment of some of the features."""
    rng = np.random.default_rng(0)
    rows = 400
    items = rng.integers(0, 30, rows)
    columns = {
        "user": [f"u{u}" for u in rng.integers(0, 20, rows)],
        "item.id": [f"i{i}" for i in items],
        "tags": ["|".join(f"t{k}" for k in range(i % 4)) for i in items],
        "seen": ["|".join(f"i{k}" for k in range(i % 3)) for i in items],
        "price": rng.normal(size=rows),
        "age": rng.integers(18, 80, rows).astype(float),
        "click": rng.integers(0, 2, rows),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")

    def make(*names: str) -> Experiment:
        return Experiment.model_validate(
            {
                "name": "tiny",
                "data": {"path": str(tmp_path / "log.parquet")},
                "label": "click",
                "group": "user",
                "features": [FEATURES[name] for name in names],
                "output": str(tmp_path / "out"),
            }
        )

    return make


def batches(dataset: Dataset, **options: int) -> list[tuple]:
    loader = Loader(dataset, "train", 64, seed=1, shuffle=True, **options)
    return [
        (b.sparse.keys(), b.sparse.values().tolist(), b.sparse.lengths().tolist(), b.dense, b.labels, b.groups.tolist())
        for b in loader.iter(1)
        if b.groups is not None
    ]


def assert_same_batches(left: list[tuple], right: list[tuple]) -> None:
    assert len(left) == len(right) == 5
    for a, b in zip(left, right, strict=True):
        assert a[:3] + a[5:] == b[:3] + b[5:]
        assert torch.equal(a[3].nan_to_num(9e9), b[3].nan_to_num(9e9)) and torch.equal(a[4], b[4])


@pytest.mark.parametrize("names", [("price",), ("tags", "price"), ("item.id", "seen"), ("user", "item.id", "age"), tuple(FEATURES)])
def test_it_is_what_prepare_makes(of: Make, tmp_path: Path, names: tuple[str, ...]) -> None:
    wide = prepare(of(*FEATURES))
    narrowed, prepared = narrow(wide, of(*names), tmp_path / "narrow"), prepare(of(*names), tmp_path / "prepared")
    assert_same_batches(batches(narrowed), batches(prepared))
    bytes_read = 400 * 8
    assert_same_batches(batches(narrowed, memory_limit=bytes_read), batches(prepared, memory_limit=bytes_read))
    for part in ("name", "fingerprint", "label", "group", "inputs", "features", "rows"):
        assert getattr(narrowed, part) == getattr(prepared, part)
    for part in ("splits", "features"):
        assert narrowed.profile[part] == prepared.profile[part]
    assert narrowed.golden().equals(prepared.golden())
    raw = prepared.golden()
    assert narrowed.transforms().encode(raw).equals(prepared.transforms().encode(raw))


def test_it_is_streamed_where_a_prepared_one_is(of: Make, tmp_path: Path) -> None:
    """What a loader holds in memory is what it reads, not what lies in the shards."""
    wide = prepare(of(*FEATURES))
    narrowed, prepared = narrow(wide, of("price"), tmp_path / "narrow"), prepare(of("price"), tmp_path / "prepared")
    streamed = [Loader(dataset, "train", 64, memory_limit=10_000)._block_bytes for dataset in (wide, narrowed, prepared)]
    assert streamed == [2_500, None, None]


def test_what_it_lacks_is_refused(of: Make, tmp_path: Path) -> None:
    dataset = prepare(of("user", "price"))
    with pytest.raises(CtrkitError, match="has no feature 'age' of these settings"):
        narrow(dataset, of("user", "age"), tmp_path / "narrow")
    other = of("user").features[0].model_copy(update={"transform": of("item.id").features[0].transform})
    with pytest.raises(CtrkitError, match="has no feature 'user' of these settings"):
        narrow(dataset, of("user").model_copy(update={"features": (other,)}), tmp_path / "narrow")
    narrow(dataset, of("user"), tmp_path / "narrow")
    with pytest.raises(CtrkitError, match="is there already"):
        narrow(dataset, of("user"), tmp_path / "narrow")
