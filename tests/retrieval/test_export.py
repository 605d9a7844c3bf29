"""Both towers as ONNX from raw values, an index over the catalogue, and what is refused."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from ctrkit.bundle import model_names
from ctrkit.errors import CtrkitError
from ctrkit.export.graph import refuse_loops
from ctrkit.feeds import RowError
from ctrkit.retrieval.build_index import build_index, find_bundle
from ctrkit.retrieval.bundle import ITEM_FILE, ITEMS_FILE, USER_FILE, RetrievalBundle, open_retrieval_bundle
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.evaluate import measure, rank
from ctrkit.retrieval.evaluate_run import evaluate_run
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.export import export_towers
from ctrkit.retrieval.index import ApproximateIndex, ExactIndex, best, recall, write_index
from ctrkit.retrieval.run import read_result
from ctrkit.retrieval.trainer import train
from ctrkit.training.run import WEIGHTS_FILE
from pipelines.bench.synthetic_towers import clustered, write_towers
from tests.retrieval.test_training import QUIET, SMALL, changed

MODELS = ({"name": "two_tower", **SMALL, "auxiliary": {"kind": "ssl"}}, {"name": "sasrec", "factors": 8, "heads": 2})


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model["name"])
def run(
    request: pytest.FixtureRequest, experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train(changed(experiment, tmp_path_factory.mktemp("run"), request.param, epochs=2), dataset, console=QUIET).run


@pytest.fixture(scope="module")
def bundle(run: Path) -> RetrievalBundle:
    exported = export_towers(run, run.parent / "repo")
    assert exported.max_abs_diff <= 1e-5
    return open_retrieval_bundle(exported.bundle)


def test_golden_rows_get_their_vectors(bundle: RetrievalBundle) -> None:
    golden = bundle.golden()
    np.testing.assert_allclose(bundle.user_vectors(golden.users), golden.user_vectors, atol=1e-6)
    np.testing.assert_allclose(bundle.item_vectors(golden.items), golden.item_vectors, atol=1e-6)
    assert len(golden.users) == 64 and len(golden.items) == 40
    for file in (USER_FILE, ITEM_FILE):
        refuse_loops(onnx.load(bundle.path / file).graph)


def test_a_history_changes_a_users_vector_and_a_missing_one_is_empty(bundle: RetrievalBundle) -> None:
    rows = [{"user": "u1", "recent": [1, 3]}, {"user": "u1", "recent": [2]}, {"user": "u1"}, {"user": "u1", "recent": []}]
    vectors = bundle.user_vectors(rows)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    np.testing.assert_array_equal(vectors[2], vectors[3])
    with pytest.raises(RowError, match="unknown feature"):
        bundle.user_vectors([{"usr": "u1"}])


def test_the_exact_index_finds_what_the_evaluation_ranked_first(run: Path, bundle: RetrievalBundle, dataset: RetrievalDataset) -> None:
    built = build_index(find_bundle(run, run.parent / "repo"))
    assert built["items"] == 40 and built["recall"] > 0.95
    queries = dataset.queries("test")
    users = bundle.user_vectors(dataset.raw_queries(queries.event).to_dicts())
    found, scores = bundle.index().search(users, 40)
    approximate, close = bundle.index(exact=False).search(users, 5)

    class Served:
        def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
            table = np.empty((len(which), 40), np.float32)
            np.put_along_axis(table, found[which], scores[which], 1)
            return table

    class Trained:
        def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
            return users[which] @ bundle.catalogue_vectors().T

    np.testing.assert_array_equal(rank(Served(), queries, 40, 5).ranks, rank(Trained(), queries, 40, 5).ranks)
    assert bundle.index().search(users.astype(np.float64), 40)[1].dtype == np.float32, "the vectors are not made doubles for it"
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(close[:, 0], scores[:, 0], atol=1e-5)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(approximate, found[:, :5], strict=True)]) > 4.5
    assert isinstance(bundle.index().vectors, np.memmap)  # pyright: ignore[reportAttributeAccessIssue]
    again = build_index(bundle)
    assert again["items"] == 40 and sorted(path.name for path in bundle.path.glob("*index*")) == ["index"]


def test_what_is_served_ranks_as_the_run_was_measured(run: Path, bundle: RetrievalBundle, dataset: RetrievalDataset) -> None:
    queries = dataset.queries("test")
    scores = bundle.user_vectors(dataset.raw_queries(queries.event).to_dicts()) @ bundle.catalogue_vectors().T

    class Served:
        def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
            return scores[which]

    served = measure(rank(Served(), queries, 40, 5), queries, dataset.counts, (5,))
    result = read_result(run)
    assert result is not None and served["mrr"] == pytest.approx(result["test"]["mrr"], rel=1e-3)
    assert evaluate_run(run, "test")["metrics"] == result["test"]


def test_an_index_is_as_good_as_its_scores() -> None:
    exact = np.array([[3.0, 2.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    assert recall(exact, exact) == 1
    assert recall(np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]], np.float32), exact) == pytest.approx(5 / 6), "any of equal items will do"
    assert recall(np.array([[3.0, 2.0, -np.inf], [0.0, -1.0, -np.inf]], np.float32), exact) == pytest.approx(3 / 6)


@pytest.mark.parametrize("count", [3, 390])
def test_scores_that_are_no_numbers_cost_nobody_a_place(count: int) -> None:
    scores = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    scores[[7, 9]] = np.nan
    found = best(scores, count)
    assert len(set(found.tolist())) == count and found[:2].tolist() == [7, 9], "who looks at their scores sees them"
    assert found[2] == np.nanargmax(scores)


def test_a_catalogue_with_a_vector_that_is_not_finite_is_not_indexed(tmp_path: Path) -> None:
    folder = write_towers(tmp_path, "shop", 1, clustered(40, 8, 4))
    catalogue = pl.read_parquet(folder / ITEMS_FILE)
    catalogue.with_columns(boost=pl.when(pl.col("item") == 30).then(1e39).otherwise("boost")).write_parquet(folder / ITEMS_FILE)
    before = (folder / "index" / "vectors.npy").read_bytes()
    with pytest.raises(CtrkitError, match=r"the catalogue's item 30, feature 'boost': .* whose largest number is 1e\+39: correct it"):
        build_index(open_retrieval_bundle(folder, verify=False))
    assert [path.name for path in folder.glob("*index*")] == ["index"] and (folder / "index" / "vectors.npy").read_bytes() == before


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files may have so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1000, 2048, 4096])
def test_no_room_for_an_index_is_said_and_the_old_one_stays(tmp_path: Path, size: int) -> None:
    folder = write_towers(tmp_path, "shop", 1, clustered(40, 8, 4))
    bundle = open_retrieval_bundle(folder)
    with room_for(size), pytest.raises(CtrkitError, match=r"the index cannot be written to '.*': .*\. Make room or mend the path"):
        build_index(bundle)
    assert [path.name for path in folder.glob("*index*")] == ["index"] and build_index(bundle)["items"] == 40


def test_no_room_for_the_catalogue_is_said_and_nothing_is_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs, which take a while, are left out; then there is no more room."""
    monkeypatch.setattr("ctrkit.retrieval.export._write", lambda *_: (np.empty((0, 8)), 0.0))
    with ExitStack() as until_the_end:
        write = pl.DataFrame.write_parquet

        def full(frame: pl.DataFrame, *arguments: Any, **settings: Any) -> None:
            until_the_end.enter_context(room_for(500))
            write(frame, *arguments, **settings)

        monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(CtrkitError, match=r"the bundle cannot be written to '.*': File too large\. Make room"):
            export_towers(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_leads_to_all_items_though_they_share_a_direction(tmp_path: Path) -> None:
    """Without their mean taken off it finds 0.11 of them."""
    random = np.random.default_rng(0)
    vectors = 2 + 0.4 * random.standard_normal((4000, 32))
    users = random.standard_normal((200, 32)).astype(np.float32)
    write_index(vectors.astype(np.float32), tmp_path)
    exact, graph = (kind(tmp_path).search(users, 10) for kind in (ExactIndex, ApproximateIndex))
    assert recall(graph[1], exact[1]) > 0.97
    np.testing.assert_allclose(graph[1], np.take_along_axis(users @ vectors.T, graph[0], 1), rtol=1e-4, atol=1e-4)


def test_an_index_may_be_opened_before_any_graph_of_onnx(bundle: RetrievalBundle) -> None:
    build_index(bundle)
    code = (
        "import sys\nfrom pathlib import Path\nfrom ctrkit.retrieval.bundle import open_retrieval_bundle\n"
        "bundle = open_retrieval_bundle(Path(sys.argv[1]))\nindex = bundle.index(exact=False)\n"
        "print(index.search(bundle.user_vectors([{'recent': [1]}]), 3)[0].shape)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=False, capture_output=True, text=True)
    assert ended.stdout.strip() == "(1, 3)", ended.stderr


def test_who_looks_for_models_that_score_passes_towers_by(bundle: RetrievalBundle) -> None:
    with pytest.raises(CtrkitError, match="holds no model"):
        model_names(bundle.path.parents[1])


def test_what_is_not_there_or_altered(run: Path, bundle: RetrievalBundle, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="holds no bundle of the run"):
        find_bundle(run, tmp_path)
    namesake = shutil.copytree(run, tmp_path / run.name)
    (namesake / WEIGHTS_FILE).write_bytes((namesake / WEIGHTS_FILE).read_bytes() + b" ")
    with pytest.raises(CtrkitError, match="holds no bundle of the run"):
        find_bundle(namesake, bundle.path.parents[1])
    assert find_bundle(run, bundle.path.parents[1]).path == bundle.path
    with pytest.raises(CtrkitError, match="no exported towers"):
        open_retrieval_bundle(tmp_path)
    with pytest.raises(CtrkitError, match="no index can be read"):
        RetrievalBundle(tmp_path, bundle.manifest).index()
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    (copy / ITEM_FILE).write_bytes(b"no graph")
    with pytest.raises(CtrkitError, match="is corrupted"):
        open_retrieval_bundle(copy)


def test_a_method_that_keeps_no_weights_is_not_exported(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    found = train(changed(experiment, tmp_path, {"name": "popularity"}), dataset, console=QUIET)
    with pytest.raises(CtrkitError, match="whose weights are not kept.*Export a run of two_tower, fusion, sasrec"):
        export_towers(found.run, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_a_bundle_and_its_index_are_read_without_torch() -> None:
    code = "import sys, ctrkit.retrieval.bundle, ctrkit.retrieval.index\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
