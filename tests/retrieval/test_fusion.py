"""Adaptive fusion: what its parts do, and that cold items are found by their metadata."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.export import export_towers
from ctrkit.retrieval.fusion import ColdViews, FusionSettings, FusionTower, build_fusion
from ctrkit.retrieval.prepare import prepare
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.run import catalogue_of, read_weights
from ctrkit.retrieval.trainer import train
from ctrkit.schema import UNKNOWN_ID, IdField, Inputs
from tests.retrieval.conftest import config
from tests.retrieval.test_training import QUIET, changed

INPUTS = Inputs(id_fields=tuple(IdField(name=name, rows=5) for name in "abc"), numeric_fields=("x",))
SETTINGS = FusionSettings(hidden=(6,), width=4)


def test_weights_compete_and_adapt_to_the_row() -> None:
    torch.manual_seed(0)
    tower = FusionTower(INPUTS, [[0, 3], [1, 2]], 8, SETTINGS)
    e = torch.randn(5, 4, 8)
    weights, shares = tower.weights(e), tower.shares(torch.randn(5, 2, 4))
    torch.testing.assert_close(weights.mean(1), torch.ones(5))
    torch.testing.assert_close(shares.mean(1), torch.ones(5))
    assert torch.unique(weights, dim=0).shape[0] == 5
    plain = FusionTower(INPUTS, [[0, 1, 2, 3]], 8, FusionSettings(hidden=(6,), width=4, selection=False, gate=False))
    assert (plain.weights(e) == 1).all() and plain.gate is None


def test_what_is_masked_is_not_read() -> None:
    torch.manual_seed(0)
    tower = FusionTower(INPUTS, [[0, 3], [1, 2]], 8, SETTINGS)
    masked = torch.tensor([[True, False, False, True]]).expand(3, 4)
    a, b = torch.randn(3, 3, 8), torch.randn(3, 3, 8)
    b[:, 1:] = a[:, 1:]
    torch.testing.assert_close(tower(a, torch.ones(3, 1), masked), tower(b, torch.zeros(3, 1), masked), rtol=0, atol=0)
    assert not torch.allclose(tower(a, torch.ones(3, 1)), tower(b, torch.ones(3, 1)))


def test_a_cold_view_never_has_the_id() -> None:
    views = ColdViews(FusionSettings(share=0.5), INPUTS, INPUTS, 2, None)
    rows = Rows(200, {}, {}, {})
    extra = views.draw(rows, rows, np.random.default_rng(0))
    assert extra.query_mask is not None and extra.query_mask[:, 2].all()
    assert 0.4 < extra.item_mask.mean() < 0.6 and 0.4 < extra.query_mask[:, :2].mean() < 0.6


def test_a_cold_view_shows_something() -> None:
    """Of two fields, one the id, the other stays; of the id alone no view is made."""
    two, one = (Inputs(id_fields=INPUTS.id_fields[:count], numeric_fields=()) for count in (2, 1))
    rows = Rows(50, {}, {}, {})
    extra = ColdViews(FusionSettings(share=0.9), two, two, 0, None).draw(rows, rows, np.random.default_rng(0))
    assert extra.query_mask is not None and extra.query_mask.tolist() == [[True, False]] * 50
    assert not extra.item_mask.all(1).any() and extra.item_mask.any()
    none = ColdViews(FusionSettings(), one, one, 0, 0).draw(rows, rows, np.random.default_rng(0))
    assert none.queries is not None and (none.queries.count, none.items.count) == (0, 0)


def test_modalities_are_the_users_attributes_history_and_context(dataset: RetrievalDataset) -> None:
    towers = build_fusion(dataset, 8, SETTINGS)
    user, item = towers.user, towers.item
    assert isinstance(user, FusionTower) and isinstance(item, FusionTower)
    names = ["user", "taste", "recent", "hour"]
    assert [[names[i] for i in fields] for fields in user.modalities] == [["user", "taste"], ["recent"], ["hour"]]
    assert item.modalities == [[1, 2, 3, 4], [0]], "metadata, then the id"


@pytest.fixture(scope="module")
def cold(experiment: RetrievalExperiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[RetrievalExperiment, RetrievalDataset]:
    tree = experiment.model_dump(mode="json")
    split = {"cold_items": 0.2, "cold_users": 0.1}
    changed_split = RetrievalExperiment.model_validate({**tree, "split": split, "output": str(tmp_path_factory.mktemp("cold"))})
    return changed_split, prepare(changed_split)


@pytest.mark.parametrize("model", [{"weight": 0.3}, {"weight": 0.0, "gate": False}], ids=["whole", "without-contrast-and-gate"])
def test_cold_items_and_users_are_found(cold: tuple[RetrievalExperiment, RetrievalDataset], tmp_path: Path, model: dict[str, Any]) -> None:
    """Of cold items nothing but the metadata is known: those of the user's taste are half of them."""
    experiment, dataset = cold
    settings = {"name": "fusion", "hidden": [16], "width": 8, "temperature": 0.2, **model}
    result = train(changed(experiment, tmp_path, settings, epochs=8, patience=8, learning_rate=0.01), dataset, console=QUIET)
    assert result.slices["warm_items"]["recall@5"] > 0.2
    assert result.slices["cold_users"]["queries"] == 12
    if model["weight"]:
        assert result.slices["cold_items"]["recall@5"] > 0.1
        default = read_weights(result.run)["towers"]["item.default"][0]
        torch.testing.assert_close(read_weights(result.run)["tables"]["embedding/item"][UNKNOWN_ID], default)
        assert catalogue_of(result.run).context_names == ["hour"]
        assert export_towers(result.run, tmp_path / "repo").max_abs_diff <= 1e-5


def test_ids_in_buckets_that_nobody_trained_get_the_default_vector(shop: Path, tmp_path: Path) -> None:
    """Items 38 and 39 are in no event, and have buckets of their own."""
    buckets = {"kind": "vocabulary", "oov_buckets": 8}
    features = [{"name": "item", "kind": "categorical", "dtype": "int", "transform": buckets}, {"name": "colour", "kind": "categorical"}]
    settings = config(shop, tmp_path, item_features=features, model={"name": "fusion", "hidden": [8], "width": 8})
    dataset = prepare(settings)
    weights = read_weights(train(settings, dataset, console=QUIET).run)
    ids = dataset.encoded_items.ids["item"][-2:]
    table, default = weights["tables"]["embedding/item"], weights["towers"]["item.default"][0]
    assert ids[0] != ids[1] and UNKNOWN_ID not in ids
    torch.testing.assert_close(table[torch.from_numpy(ids)], default.expand(2, -1), rtol=0, atol=0)
    trained = np.unique(dataset.encoded_items.ids["item"][dataset.counts > 0])
    assert not (table[torch.from_numpy(trained)] == default).all(1).any()
