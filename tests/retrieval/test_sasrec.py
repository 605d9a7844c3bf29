"""SASRec sees the past alone, whoever is in the batch, and asks for what it needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.prepare import prepare
from ctrkit.retrieval.sasrec import SasRec, SasRecRecommender, SasRecSettings, alike, history_of, left_aligned
from ctrkit.retrieval.trainer import train
from tests.retrieval.conftest import config
from tests.retrieval.test_evaluate import bags
from tests.retrieval.test_training import QUIET, changed


def model(rows: int, length: int, **settings: Any) -> SasRec:
    torch.manual_seed(0)
    return SasRec(rows, length, SasRecSettings(factors=8, heads=2, **settings)).eval()


def test_a_place_sees_only_what_is_before_it() -> None:
    own = model(12, 6)
    a, b = torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([[3, 1, 4, 2, 6, 0]])
    torch.testing.assert_close(own(a)[:, :3], own(b)[:, :3])
    assert not torch.allclose(own(a)[:, 3], own(b)[:, 3])
    torch.testing.assert_close(own(a[:, :4])[:, 3], own(a)[:, 3])


def test_attention_is_the_textbook_s() -> None:
    """One block against softmax(q k / sqrt(d)) v written out, head by head."""
    own = model(12, 4, blocks=1)
    (block,) = own.blocks
    x = own.items(torch.tensor([[3, 1, 4, 1]])) * 8**0.5 + own.positions.weight
    query, key, value = block.attended(block.attention_norm(x)).chunk(3, dim=2)
    heads = []
    for place in (slice(0, 4), slice(4, 8)):
        scores = (query[..., place] @ key[..., place].transpose(1, 2) / 2).masked_fill(torch.ones(4, 4).triu(1) == 1, -torch.inf)
        heads.append(scores.softmax(2) @ value[..., place])
    attended = x + block.join(torch.cat(heads, dim=2))
    wanted = attended + block.outer(block.inner(block.inner_norm(attended)).relu())
    torch.testing.assert_close(own(torch.tensor([[3, 1, 4, 1]])), own.norm(wanted))


def test_a_user_is_the_last_place_and_nobody_without_a_history_is_zero() -> None:
    own = model(12, 6)
    sequences, lengths = torch.tensor([[3, 1, 0], [0, 0, 0]]), torch.tensor([2, 0])
    torch.testing.assert_close(own.users(sequences, lengths)[0], own(sequences)[0, 1])
    assert not own.users(sequences, lengths)[1].any()


def test_sequences_are_cut_at_their_beginning_and_padded_at_their_end() -> None:
    found, lengths = left_aligned(bags([7, 8, 9, 6], [], [2]), 3)
    assert found.tolist() == [[8, 9, 6], [0, 0, 0], [2, 0, 0]] and lengths.tolist() == [3, 0, 1]


def test_sequences_of_like_lengths_go_together_and_none_is_lost() -> None:
    lengths = np.array([5, 1, 1, 9, 2, 0, 5])
    parts = alike(lengths, 3)
    assert sorted(np.concatenate(parts)) == list(range(7))
    assert [max(lengths[part]) for part in parts] == [1, 5, 9]
    assert [part.tolist() for part in alike(np.array([3, 1]), 8)] == [[1], [0]]


def test_a_user_s_scores_are_the_same_among_others_and_alone(dataset: RetrievalDataset) -> None:
    rows = dataset.item_inputs.id_fields[0].rows
    recommender = SasRecRecommender(model(rows, history_of(dataset).length), dataset)
    queries = dataset.queries("test")
    which = np.random.default_rng(0).permutation(np.repeat(np.arange(len(queries)), 3))
    assert len(which) > 128, "more than one part"
    found = recommender.scores(queries, which)
    alone = [recommender.scores(queries, which[place : place + 1])[0] for place in range(0, len(which), 7)]
    np.testing.assert_allclose(found[::7], np.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "features", "message"),
    [
        ("user_features", [{"name": "user", "kind": "categorical"}], "reads the user's history"),
        ("item_features", [{"name": "colour", "kind": "categorical"}], "'item' is none of the item features"),
    ],
)
def test_what_it_reads_must_be_there(shop: Path, tmp_path: Path, side: str, features: list[dict[str, str]], message: str) -> None:
    without = {"user_features": [{"name": "user", "kind": "categorical"}], side: features}
    experiment = config(shop, tmp_path, **without)
    dataset = prepare(experiment)
    with pytest.raises(CtrkitError, match=message):
        train(changed(experiment, tmp_path, {"name": "sasrec"}), dataset, console=QUIET)


def test_heads_divide_the_width(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="3 do not divide factors, 64"):
        train(changed(experiment, tmp_path, {"name": "sasrec", "heads": 3}), dataset, console=QUIET)


def test_a_user_must_have_two_training_events(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("\n".join(["user,item", *(f"u{user},{item}" for user in range(4) for item in range(3))]))
    ids = {f"{side}_features": [{"name": side, "kind": "categorical"}] for side in ("user", "item")}
    ids["user_features"].append({"name": "recent", "kind": "sequence", "of": "item"})
    settings = {"task": "retrieval", "name": "short", "data": {"path": str(tmp_path / "short.csv")}, "user": "user", "item": "item", **ids}
    experiment = RetrievalExperiment.model_validate({**settings, "model": {"name": "sasrec"}, "output": str(tmp_path / "out")})
    with pytest.raises(CtrkitError, match="no user has two training events"):
        train(experiment, prepare(experiment), console=QUIET)
    assert not (tmp_path / "out" / "runs" / "short-sasrec-1").exists()
