import json
from pathlib import Path

import numpy as np
import pytest

from ctrkit.bundle import MANIFEST_FILE, MODEL_FILE, describe_files, model_names, open_bundle, versions
from ctrkit.errors import CtrkitError
from tests.handmade import make_bundle, probability

ROWS = [
    {"user": "u1", "age": 40, "price": 2.5, "tags": ["a"]},
    {"user": "nobody", "price": -1},
    {},
    {"user": "u2", "tags": "a|b|c", "age": None},
]


def test_rows_get_their_probabilities(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path, golden=ROWS))
    probabilities = bundle.score(ROWS)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, [probability(row) for row in ROWS], rtol=1e-5)
    np.testing.assert_allclose(bundle.golden().probabilities, probabilities, rtol=1e-5)
    assert bundle.score([]).shape == (0,)


def test_a_model_folder_opens_its_latest_version(tmp_path: Path) -> None:
    for version in (9, 10, 2):
        make_bundle(tmp_path, version=version)
    (tmp_path / "clicks" / ".11-half").mkdir()
    (tmp_path / "clicks" / "12").mkdir()
    assert versions(tmp_path / "clicks") == [2, 9, 10]
    assert open_bundle(tmp_path / "clicks").manifest.version == 10
    assert open_bundle(tmp_path / "clicks" / "2").manifest.version == 2
    assert model_names(tmp_path) == ["clicks"]


@pytest.mark.parametrize("place", ["", "clicks/7", "nowhere"])
def test_no_bundle_is_one_clear_error(tmp_path: Path, place: str) -> None:
    make_bundle(tmp_path)
    with pytest.raises(CtrkitError, match="no bundle at"):
        open_bundle(tmp_path / place)


def test_an_altered_file_is_found(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    model = folder / MODEL_FILE
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(CtrkitError, match="model.onnx' is corrupted: it does not match its sha256 checksum"):
        open_bundle(folder)


def test_a_file_cut_short_is_found(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    model = folder / MODEL_FILE
    size = model.stat().st_size
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(CtrkitError, match=f"has 100 bytes instead of {size}"):
        open_bundle(folder)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / MODEL_FILE).unlink()
    with pytest.raises(CtrkitError, match="lacks its file 'model.onnx'"):
        open_bundle(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "clicks"}'])
def test_a_manifest_that_is_none_is_found(tmp_path: Path, content: str) -> None:
    folder = make_bundle(tmp_path)
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(CtrkitError, match="is no manifest of a bundle"):
        open_bundle(folder)


def test_a_manifest_of_a_newer_ctrkit_opens(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    content = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**content, "signature": "new"}))
    assert open_bundle(folder).manifest.name == "clicks"


def test_a_model_that_onnxruntime_cannot_load_is_one_clear_error(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / MODEL_FILE).write_bytes(b"no graph")
    content = json.loads((folder / MANIFEST_FILE).read_text())
    content["files"] = {name: entry.model_dump() for name, entry in describe_files(folder).items()}
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(CtrkitError, match="onnxruntime .* cannot load"):
        open_bundle(folder).score([])


def test_an_empty_repository_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="holds no model"):
        model_names(tmp_path)
    with pytest.raises(CtrkitError, match="no model repository at"):
        model_names(tmp_path / "nowhere")


def test_a_models_folder_is_told_from_a_repository(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    for path in (folder, folder.parent):
        with pytest.raises(CtrkitError, match="is a model, not a repository of models. Give the folder that holds it"):
            model_names(path)
