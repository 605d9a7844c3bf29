"""Each baseline is what its paper says, and finds the shop's tastes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.baselines.als import Als, AlsSettings
from ctrkit.retrieval.baselines.autorec import AutoRec, AutoRecSettings, fit_autorec, loss_of
from ctrkit.retrieval.baselines.boosting import BoostingSettings, PairFeatures, fit_boosting, value_shares
from ctrkit.retrieval.baselines.bpr_mf import BprSettings, MatrixFactors, fit_bpr
from ctrkit.retrieval.baselines.deepfm import DeepFmRecommender, DeepFmSettings, PairModel
from ctrkit.retrieval.baselines.interactions import histories
from ctrkit.retrieval.baselines.item_knn import ItemKnn, ItemKnnSettings, similarities
from ctrkit.retrieval.baselines.lightgcn import LightGcn, LightGcnSettings, normalised_graph
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.baselines.pairwise import FixedVectors
from ctrkit.retrieval.batch import tower_batch
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.job import Job
from ctrkit.retrieval.prepare import prepare
from ctrkit.retrieval.trainer import train
from tests.retrieval.conftest import config
from tests.retrieval.test_evaluate import bags, queries
from tests.retrieval.test_training import QUIET, changed

SEEN = sparse.csr_array(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]], np.float32))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "item_knn"},
        {"name": "als", "factors": 8},
        {"name": "bpr_mf", "factors": 8, "learning_rate": 0.02},
        {"name": "lightgcn", "factors": 8, "layers": 2},
        {"name": "autorec", "hidden": 16, "users": 16},
        {"name": "deepfm", "hidden": [16]},
        {"name": "boosting", "trees": 30, "leaves": 8},
        {"name": "sasrec", "factors": 8, "blocks": 1},
        {"name": "sasrec", "factors": 8, "blocks": 1, "loss": "binary"},
    ],
    ids=lambda model: "-".join(filter(None, (model["name"], model.get("loss")))),
)
def test_every_baseline_beats_popularity(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, model: dict[str, Any]
) -> None:
    """The most popular items find 0.175 of the targets."""
    found = train(changed(experiment, tmp_path, model, epochs=5, learning_rate=0.02), dataset, console=QUIET)
    assert found.test["recall@5"] > 0.25 and found.params > 0
    again = train(changed(experiment, tmp_path, model, epochs=5, learning_rate=0.02), dataset, console=QUIET)
    assert again.test == found.test, "the same seed, the same figures"


def test_similarities_are_shrunk_cosines() -> None:
    near = similarities(SEEN, ItemKnnSettings(neighbours=4, shrinkage=1.0)).toarray()
    np.testing.assert_allclose(near[0], [0, 2 / (2 + 1), 1 / (2 + 1), 0], rtol=1e-6)
    assert not near[3].any() and not near.diagonal().any()
    only = similarities(SEEN, ItemKnnSettings(neighbours=1, shrinkage=0.0)).toarray()
    np.testing.assert_allclose(only, [[0, 1, 0, 0], [1, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]], rtol=1e-6)
    scores = ItemKnn(sparse.csr_array(near)).scores(queries(bags([3], [3]), bags([0, 1], [])), np.array([0, 1]))
    np.testing.assert_allclose(scores, [near[0] + near[1], np.zeros(4)], rtol=1e-6)


def test_a_user_folded_in_minimises_the_weighted_squares() -> None:
    """``sum_i c_i (p_i - <x, y_i>)^2 + lambda |x|^2`` with c = 1 + alpha and p = 1 of the history, 1 and 0 elsewhere."""
    random = np.random.default_rng(0)
    settings = AlsSettings(factors=3, alpha=4.0, regularisation=0.3)
    model = Als(random.normal(size=(6, 3)).astype(np.float32), settings)
    history = np.array([1, 4])
    x = torch.tensor(model._user(history), dtype=torch.float64, requires_grad=True)
    wanted = torch.zeros(6, dtype=torch.float64)
    wanted[history] = 1
    errors = (wanted - torch.from_numpy(model.items).double() @ x).square() * (1 + settings.alpha * wanted)
    (errors.sum() + settings.regularisation * x.square().sum()).backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 0, atol=1e-4)


@pytest.mark.parametrize("hidden", [[8, 4], [8]])
def test_deepfm_gives_every_pair_what_it_gives_a_single_one(shop: Path, tmp_path: Path, hidden: list[int]) -> None:
    torch.manual_seed(0)
    experiment = config(shop, tmp_path, context_features=[{"name": "hour", "kind": "numeric"}])
    dataset = prepare(experiment)
    model = PairModel(dataset, Job(experiment, dataset, tmp_path, QUIET), DeepFmSettings(hidden=tuple(hidden), dropout=0.5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    asked = dataset.queries("test")
    which = np.array([3, 0, 7])
    found = DeepFmRecommender(model, dataset).scores(asked, which)
    items = np.arange(dataset.items.height)
    rows = dataset.encoded_queries(asked.event[which]), dataset.encoded_items.take(np.tile(items, len(which)))
    pairs = torch.from_numpy(np.repeat(np.arange(len(which)), len(items)))
    with torch.no_grad():
        expected = model(tower_batch(*rows, dataset.query_inputs, dataset.item_inputs), pairs)
    np.testing.assert_allclose(found, expected.numpy().reshape(found.shape), rtol=1e-4, atol=1e-4)
    assert dataset.query_inputs.numeric_fields == ("hour",) and dataset.item_inputs.numeric_fields == ("price",)


def test_bpr_learns_what_is_popular(tmp_path: Path) -> None:
    """Its other item is drawn uniformly: were it drawn by popularity, an item would be the better one as often as the other."""
    _popular_first(tmp_path)
    experiment, dataset = _bare(tmp_path, {"name": "bpr_mf"})
    model = fit_bpr(Job(experiment, dataset, tmp_path, QUIET), BprSettings(factors=4, learning_rate=0.02)).recommender
    assert isinstance(model, FixedVectors)
    assert np.corrcoef(model.items[:, -1], np.log(dataset.counts))[0, 1] > 0.9
    assert (model.users[:, -1] == 1).all()


def test_bpr_sets_its_pairs_against_the_whole_catalogue(tmp_path: Path) -> None:
    """A film that no one has seen is as much an item that a user has not had as any other: it is learned to be the last."""
    _popular_first(tmp_path)
    (tmp_path / "items.csv").write_text("\n".join(["item", *map(str, range(21))]))
    experiment, dataset = _bare(tmp_path, {"name": "bpr_mf"}, items={"path": str(tmp_path / "items.csv"), "on": "item"})
    assert list(np.flatnonzero(dataset.counts == 0)) == [20]
    model = fit_bpr(Job(experiment, dataset, tmp_path, QUIET), BprSettings(factors=4, learning_rate=0.02)).recommender
    assert isinstance(model, FixedVectors)
    assert model.items[:, -1].argmin() == 20


def test_a_step_moves_the_rows_of_its_batch_alone() -> None:
    model = MatrixFactors(torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool), 3)
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.1)

    def step(rows: list[int]) -> None:
        optimizer.zero_grad()
        model(torch.tensor(rows))[0].sum().backward()
        optimizer.step()

    step([0, 2, 3])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step([1, 4])
    factors, bias = (parameter.detach() for parameter in model.parameters())
    assert torch.equal(factors[[0, 2, 3]], before[0][[0, 2, 3]]) and torch.equal(bias[:2], before[1][:2])
    assert (factors[[1, 4]] != before[0][[1, 4]]).all() and (bias[2] != before[1][2]).all()


def test_a_factor_without_events_starts_at_zero() -> None:
    vectors = MatrixFactors(torch.tensor([True, False]), torch.tensor([False, True, True]), 3)(torch.arange(5))[0]
    assert (vectors[[1, 2], :-1] == 0).all() and (vectors[[0, 3, 4], :-1] != 0).all()
    assert vectors[:, -1].tolist() == [1, 1, 0, 0, 0], "of a user 1, of an item its bias"


def test_the_graph_is_normalised_by_both_degrees() -> None:
    graph = normalised_graph(SEEN).toarray()
    assert graph.shape == (7, 7)
    np.testing.assert_allclose(graph, graph.T)
    assert graph[0, 3] == pytest.approx(1 / np.sqrt(2 * 2)) and graph[2, 5] == pytest.approx(1 / np.sqrt(1 * 2))
    assert not graph[:3, :3].any() and not graph[6].any()


def test_light_convolution_is_the_mean_of_its_layers() -> None:
    model = LightGcn(SEEN, LightGcnSettings(factors=2, layers=2))
    graph = torch.from_numpy(normalised_graph(SEEN).toarray())
    start = model.start * model.known
    expected = (start + graph @ start + graph @ graph @ start) / 3
    torch.testing.assert_close(model.spread(), expected)
    weights = torch.randn(expected.shape)
    gradients = [torch.autograd.grad((found * weights).sum(), model.start)[0] for found in (model.spread(), expected)]
    torch.testing.assert_close(*gradients)
    assert not model.spread()[6].any(), "an item nobody had is a zero"
    vectors, learned = model(torch.tensor([4, 0]))
    torch.testing.assert_close(vectors, expected[[4, 0]])
    torch.testing.assert_close(learned, model.start[[4, 0]])


def test_light_convolution_starts_by_xavier_s_rule() -> None:
    start = LightGcn(sparse.csr_array((3000, 500)), LightGcnSettings(factors=64)).start
    for rows, count in ((start[:3000], 3000), (start[3000:], 500)):
        bound = (6 / (count + 64)) ** 0.5
        assert 0.99 * bound < rows.abs().max() <= bound
        assert rows.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_unseen_items_are_unseen() -> None:
    drawn = unseen_items(SEEN, np.repeat([0, 1], 200), np.arange(4), np.random.default_rng(0))
    assert set(drawn[:200]) == {2, 3} and set(drawn[200:]) == {3}


def _random_autorec() -> AutoRec:
    torch.manual_seed(0)
    model = AutoRec(4, 3)
    for parameter in model.decode.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_autorec_starts_without_favourites() -> None:
    """A random start would put items that nobody wants above all for many epochs."""
    assert not AutoRec(4, 3).scores(queries(bags([], []), bags([2, 0], [1])), np.array([0, 1])).any()


def test_autorec_s_loss_is_the_paper_s_with_light_zeros() -> None:
    model = _random_autorec()
    seen = np.array([[1, 0, 0, 1], [0, 0, 1, 0]], np.float64)
    v, mu, w, b = (part.detach().double().numpy() for part in (model.encode.weight, model.bias, *model.decode.parameters()))
    rebuilt = 1 / (1 + np.exp(-(seen @ v + mu))) @ w.T + b
    rows = sparse.csr_array(seen)
    np.testing.assert_allclose(model(rows).detach().numpy(), rebuilt, rtol=1e-5)
    squares = (np.where(seen == 1, 1, 0.25) * (seen - rebuilt) ** 2).sum() / 2
    assert loss_of(model, rows, 0.25).item() == pytest.approx(squares, rel=1e-5)


def test_autorec_takes_an_item_had_twice_for_one() -> None:
    found = _random_autorec().scores(queries(bags([], []), bags([2, 0, 2], [0, 2])), np.array([0, 1]))
    np.testing.assert_allclose(found[0], found[1])
    assert len(np.unique(found[0])) == 4


def test_autorec_s_penalty_leaves_the_biases_alone(tmp_path: Path) -> None:
    """A great one leaves nothing of both layers: a user's own items do not tell, and popularity is what the biases learn."""
    _popular_first(tmp_path)
    experiment, dataset = _bare(tmp_path, {"name": "autorec"})
    experiment = changed(experiment, tmp_path, {"name": "autorec"}, learning_rate=0.02)
    spread = {}
    for regularisation in (0.0, 100.0):
        torch.manual_seed(0)
        settings = AutoRecSettings(hidden=8, users=16, regularisation=regularisation)
        model = fit_autorec(Job(experiment, dataset, tmp_path, QUIET), settings).recommender
        scores = model.scores(dataset.queries("test"), np.arange(50))
        spread[regularisation] = scores.std(0).max()
    assert spread[100.0] < 0.01 < spread[0.0]
    assert scores.max() > 0.5 and np.corrcoef(scores.mean(0), np.log(dataset.counts))[0, 1] > 0.9


@pytest.mark.parametrize(
    "known", [["item", "colour", "shape", "tags", "price"], ["item", "colour", "shape", "tags"]], ids=["unlike", "alike"]
)
def test_the_trees_see_the_same_of_a_pair_alone_and_in_the_catalogue(shop: Path, tmp_path: Path, known: list[str]) -> None:
    """Items of which all is the same are of one kind, and only those."""
    experiment = config(shop, tmp_path)
    own = tuple(feature for feature in experiment.item_features if feature.name in known)
    dataset = prepare(experiment.model_copy(update={"item_features": own}))
    queries, items = dataset.queries("test"), dataset.items.height
    features = PairFeatures(dataset, np.ones(items, np.int64))
    which = np.arange(5)
    moments = features.moments(queries.event[which], histories(queries, which, items))
    kinds = features.all_pairs(moments)
    everything = kinds.reshape(5, -1, kinds.shape[1])[:, features.kind].reshape(-1, kinds.shape[1])
    row, item = np.repeat(which, items), np.tile(np.arange(items), 5)
    np.testing.assert_allclose(features.pairs(moments, row, item), everything, rtol=1e-6)
    assert len(features.signs) == kinds.shape[1]
    assert len(features.categorical) == 2 + 2, "colour and shape, taste and hour: no user, no item"
    assert len(set(features.kind)) == (40 if "price" in known else 2 * 5)


def test_the_trees_do_not_take_a_stranger_for_the_best_item(tmp_path: Path) -> None:
    """Were an event's item counted without that event, the trees would learn that a rare item counted less is the right one: put first, it is rarely."""
    random = np.random.default_rng(0)
    items = [f"popular{random.integers(5)}" if random.random() < 0.5 else f"rare{random.integers(400)}" for _ in range(1600)]
    rows = dict.fromkeys(f"{user % 200},{item}" for user, item in enumerate(items))
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *rows]))
    found = train(*_bare(tmp_path, {"name": "boosting", "trees": 50, "leaves": 8}), console=QUIET)
    assert found.test["popularity_bias@5"] > 1 and found.slices["head"]["recall@5"] > 0


def test_of_items_known_by_their_counts_alone_the_trees_put_no_rarer_one_first(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = dict.fromkeys(f"{user},{min(int(random.zipf(1.3)), 300)}" for user in range(150) for _ in range(12))
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *rows]))
    experiment, dataset = _bare(tmp_path, {"name": "boosting"})
    model = fit_boosting(Job(experiment, dataset, tmp_path, QUIET), BoostingSettings()).recommender
    scores = model.scores(dataset.queries("test"), np.arange(3))[:, np.argsort(dataset.counts, kind="stable")]
    assert (np.diff(scores, axis=1) >= 0).all() and (scores[:, -1] > scores[:, 0]).all()


def test_trees_of_a_single_event_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"a,{item}\n" for item in range(6)) + "b,0\n")
    experiment, dataset = _bare(tmp_path, {"name": "boosting"})
    assert train(experiment, dataset, console=QUIET).params > 0
    (tmp_path / "log.csv").write_text("user,item\na,0\na,1\na,2\n")
    with pytest.raises(CtrkitError, match="one half of the training events"):
        train(*_bare(tmp_path, {"name": "boosting"}), console=QUIET)


def test_the_trees_read_columns_that_polars_lends() -> None:
    """They cannot be written to, and their values are in the file's order, some twice."""
    values, offsets = bags([3, 1, 3], [2])
    values.flags.writeable = False
    shares = value_shares((values, offsets)).toarray()
    np.testing.assert_allclose(shares, [[0, 1 / 5**0.5, 0, 2 / 5**0.5], [0, 0, 1, 0]], rtol=1e-6)
    assert values.tolist() == [3, 1, 3, 2]


def test_what_a_history_shares_with_an_item_is_the_mean_cosine(dataset: RetrievalDataset) -> None:
    features, queries, items = PairFeatures(dataset, dataset.counts), dataset.queries("test"), dataset.items.height
    which = np.arange(1)
    past = histories(queries, which, items)
    found = features.all_pairs(features.moments(queries.event[which], past))[features.kind, -3:]  # colour, shape, tags
    raw, had = dataset.items, past.indices
    for item in range(items):
        same = np.mean([raw["colour"][int(other)] == raw["colour"][item] for other in had])
        tags = np.mean([len(set(raw["tags"][int(other)]) & set(raw["tags"][item])) / 2 for other in had])
        assert found[item] == pytest.approx([same, same, tags], abs=1e-6)


def _popular_first(folder: Path) -> None:
    """``log.csv``: of twenty items the first are had by most of two hundred users, whoever they are."""
    random = np.random.default_rng(0)
    rows = [f"{user},{item}" for user in range(200) for item in range(20) if random.random() < 0.9 / (1 + item / 2)]
    (folder / "log.csv").write_text("\n".join(["user,item", *rows]))


def _bare(folder: Path, model: dict[str, Any], **more: Any) -> tuple[RetrievalExperiment, RetrievalDataset]:
    """Of a folder's ``log.csv``, users and items of which nothing is known but their ids."""
    experiment = RetrievalExperiment.model_validate(
        {
            "task": "retrieval",
            "name": "bare",
            "data": {"path": str(folder / "log.csv")},
            "user": "user",
            "item": "item",
            "split": {"by": "leave-random-out"},
            "item_features": [{"name": "item", "kind": "categorical"}],
            "user_features": [{"name": "user", "kind": "categorical"}],
            "model": model,
            "training": {"batch_size": 64, "epochs": 5, "threads": 1, "monitor": "ndcg@5"},
            "evaluation": {"at": [5]},
            **more,
            "output": str(folder / "out"),
        }
    )
    return experiment, prepare(experiment)
