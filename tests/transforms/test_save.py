"""Saved == reloaded, bit for bit; a damaged folder says so."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from ctrkit.errors import CtrkitError
from ctrkit.schema import Feature, Kind
from ctrkit.transforms import FittedTransforms, with_sequences

FEATURES = (
    Feature(name="../up/é?*", kind=Kind.CATEGORICAL),
    Feature(name="ids", kind=Kind.CATEGORICAL, dtype="int", transform={"kind": "vocabulary", "oov_buckets": 4}),
    Feature(name="hashed", kind=Kind.CATEGORICAL, transform={"kind": "hash", "buckets": 9, "salt": 3}),
    Feature(name="bag", kind=Kind.MULTI_VALUED, separator=",", max_length=3, pooling="sum"),
    Feature(name="price", kind=Kind.NUMERIC, transform={"kind": "log1p"}),
    Feature(name="age", kind=Kind.NUMERIC),
    Feature(name="hour", kind=Kind.NUMERIC, transform={"kind": "buckets", "count": 50}),
    Feature(name="past", kind=Kind.SEQUENCE, of="ids", dtype="int", transform={"kind": "vocabulary", "oov_buckets": 4}, max_length=3),
)


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "../up/é?*": ["", "a\0b", "\n", '"', "日本", "a"] * 50,
            "ids": random.integers(-(2**62), 2**62, 300),
            "hashed": random.integers(0, 99, 300).astype(str),
            "bag": [["a", "b", "", "c", "d"], []] * 150,
            "price": random.lognormal(size=300),
            "age": random.normal(1e6, 1e-3, size=300),
            "hour": random.random(300) * 1e-300,
            "past": random.integers(-5, 5, (300, 5)).tolist(),
            "@label": [0.0, 1.0] * 150,
        }
    )


@pytest.fixture(scope="module")
def fitted(fit, frame) -> FittedTransforms:
    own = {f.name: fit(f, frame[f.name].head(200)) for f in FEATURES if f.of is None}
    return FittedTransforms(with_sequences(FEATURES, own))


def test_round_trip(fitted, frame, tmp_path):
    fitted.save(tmp_path / "deep" / "transforms")
    loaded = FittedTransforms.load(tmp_path / "deep" / "transforms")
    assert loaded.features == fitted.features and loaded.inputs == fitted.inputs
    for before, after in zip(fitted.transforms, loaded.transforms, strict=True):
        assert before.state() == after.state()
    assert loaded.encode(frame).equals(fitted.encode(frame), null_equal=True)
    graphs = [[part.nodes + part.initializers for part in t.onnx_graph()] for t in (fitted, loaded)]
    assert graphs[0] == graphs[1]


def test_lazy_streaming_and_eager_encode_alike(fitted, frame, tmp_path):
    frame.write_parquet(tmp_path / "raw.parquet", row_group_size=37)
    eager = fitted.encode(frame)
    assert eager["@label"].equals(frame["@label"]), "other columns stay"
    for engine in ("in-memory", "streaming"):
        assert fitted.encode(pl.scan_parquet(tmp_path / "raw.parquet")).collect(engine=engine).equals(eager)


def test_save_replaces_and_leaves_nothing_beside(fitted, fit, tmp_path):
    folder = tmp_path / "transforms"
    fitted.save(folder)
    FittedTransforms([fit(FEATURES[2], ["a"])]).save(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["transforms"]
    assert [p.name for p in folder.iterdir()] == ["transforms.json"]
    assert FittedTransforms.load(folder).features == FEATURES[2:3]


def test_failed_save_leaves_the_old_one(fitted, fit, tmp_path, monkeypatch):
    folder = tmp_path / "transforms"
    FittedTransforms([fit(FEATURES[2], ["a"])]).save(folder)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space"):
        fitted.save(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["transforms"]
    assert FittedTransforms.load(folder).features == FEATURES[2:3]


def test_load_errors_name_the_folder(fitted, tmp_path):
    folder = tmp_path / "transforms"
    with pytest.raises(CtrkitError, match="no fitted transforms at .*transforms"):
        FittedTransforms.load(folder)
    fitted.save(folder)
    content = json.loads((folder / "transforms.json").read_text())

    (folder / "transforms.json").write_text(json.dumps(content)[:-20])
    with pytest.raises(CtrkitError, match="damaged"):
        FittedTransforms.load(folder)

    (folder / "transforms.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(CtrkitError, match="format 99"):
        FittedTransforms.load(folder)

    (folder / "transforms.json").write_text(json.dumps(content))
    vocabulary = next(folder.glob("*.parquet"))
    whole = vocabulary.read_bytes()
    vocabulary.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CtrkitError, match="damaged"):
        FittedTransforms.load(folder)
    vocabulary.unlink()
    with pytest.raises(CtrkitError, match="is missing"):
        FittedTransforms.load(folder)
    shutil.rmtree(folder)
