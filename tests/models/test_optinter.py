"""OptInter's special cases and its search in closed form."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.config import UnifiedEmbedding
from ctrkit.embeddings.crosses import cross_name
from ctrkit.errors import CtrkitError
from ctrkit.models.base import Decision, RankingModel
from ctrkit.models.optinter import FACTORISED, MEMORISED, METHODS, METHODS_KEY, NAIVE, OptInterSearch
from ctrkit.models.registry import build, build_for, build_search
from ctrkit.schema import IdField, Inputs

DIM, WIDTH = 3, 2
INPUTS = Inputs(
    id_fields=(
        IdField(name="a", rows=5),
        IdField(name="b", rows=4),
        IdField(name="c", rows=3),
        IdField(name="bag", rows=4, multi_valued=True),
    ),
    numeric_fields=("x",),
)
FIELDS = ["a", "b", "c", "bag", "x"]
PAIRS = list(combinations(FIELDS, 2))
MEMORISABLE = [("a", "b"), ("a", "c"), ("b", "c")]
SMALL = {"pair_dim": WIDTH, "tail_buckets": 2, "hidden": (7, 4)}


def decision(ways: list[int]) -> Decision:
    memorised = [pair for pair, way in zip(PAIRS, ways, strict=True) if way == MEMORISED]
    return {METHODS_KEY: torch.tensor(ways, dtype=torch.int8)} | {cross_name(pair): torch.tensor([6, 9]) for pair in memorised}


def made(ways: list[int], **settings: Any) -> RankingModel:
    torch.manual_seed(0)
    return build("optinter", INPUTS, DIM, {**SMALL, **settings}, decision=decision(ways)).eval()


def feed(model: RankingModel, rows: int = 6) -> tuple[dict[str, Tensor], Tensor]:
    """Vectors of each group, for as many fields as it has."""
    draw = torch.Generator().manual_seed(1)
    fields = {"embedding": 4, "factor": 4, "cross": len(model.crosses.names) if model.crosses is not None else 0}
    embeddings = {g.name: torch.randn(rows, fields[g.name], g.dim, generator=draw) for g in model.groups(DIM)}
    return embeddings, torch.randn(rows, 1, generator=draw)


def search(**settings: Any) -> OptInterSearch:
    torch.manual_seed(3)
    found = build_search("optinter", INPUTS, DIM, {**SMALL, **settings})
    assert isinstance(found, OptInterSearch)
    return found


def test_all_pairs_naive_are_the_deep_network() -> None:
    model = made([NAIVE] * len(PAIRS))
    assert [group.name for group in model.groups(DIM)] == ["embedding"]
    dnn = build("dnn", INPUTS, DIM, {"hidden": SMALL["hidden"]}).eval()
    dnn.load_state_dict(model.state_dict())
    embeddings, dense = feed(model)
    torch.testing.assert_close(model(embeddings, dense), dnn(embeddings, dense))


def test_all_pairs_factorised_are_a_product_network() -> None:
    """The layer's outer products cut down to their diagonal: every pair's values multiplied, beside the vectors themselves."""
    model = made([FACTORISED] * len(PAIRS))
    embeddings, dense = feed(model)
    vectors = model.vectors(embeddings["embedding"], dense)
    factors = torch.cat([embeddings["factor"], model.factors.vectors.numeric(dense)], dim=1)
    products = [factors[:, i] * factors[:, j] for i, j in combinations(range(5), 2)]
    expected = model.tower(torch.cat([vectors.flatten(1), *products], dim=1)).squeeze(1)
    torch.testing.assert_close(model(embeddings, dense), expected)


def test_all_pairs_memorised_without_hidden_layers_are_poly2() -> None:
    """A weight for every value and one for every pair of values, summed: each the product of its vector and the network's row."""
    ways = [MEMORISED if pair in MEMORISABLE else NAIVE for pair in PAIRS]
    model = made(ways, hidden=())
    embeddings, dense = feed(model)
    weight, bias = model.tower.layers[0].weight[0], model.tower.layers[0].bias
    vectors = model.vectors(embeddings["embedding"], dense)
    of_fields = [vectors[:, i] @ weight[i * DIM : (i + 1) * DIM] for i in range(5)]
    start = 5 * DIM
    of_pairs = [embeddings["cross"][:, k] @ weight[start + k * WIDTH : start + (k + 1) * WIDTH] for k in range(3)]
    torch.testing.assert_close(model(embeddings, dense), torch.stack(of_fields + of_pairs).sum(0) + bias)


def test_only_fields_that_are_multiplied_have_factors() -> None:
    ways = [FACTORISED if pair in (("a", "x"), ("a", "bag")) else NAIVE for pair in PAIRS]
    (_, factor) = made(ways).groups(DIM)
    assert factor.fields == frozenset(("a", "bag"))


def test_a_mixture_is_the_weighted_sum_of_the_ways() -> None:
    found = search(hidden=())
    found.observe([])
    mixture = found.mixture.eval()
    mixture.choice.data.copy_(torch.randn(len(PAIRS), 3, generator=torch.Generator().manual_seed(2)))
    mixture.temperature.fill_(0.5)
    embeddings, dense = feed(mixture)
    factors = torch.cat([embeddings["factor"], mixture.factors.vectors.numeric(dense)], dim=1)
    parts = [mixture.vectors(embeddings["embedding"], dense).flatten(1)]
    for number, pair in enumerate(PAIRS):
        i, j = (FIELDS.index(name) for name in pair)
        ways = 3 if pair in MEMORISABLE else 2
        powers = [math.exp(mixture.choice[number, k].item() / 0.5) for k in range(ways)]
        mixed = powers[FACTORISED] / sum(powers) * factors[:, i] * factors[:, j]
        if pair in MEMORISABLE:
            mixed = mixed + powers[MEMORISED] / sum(powers) * embeddings["cross"][:, MEMORISABLE.index(pair)]
        parts.append(mixed)
    torch.testing.assert_close(mixture(embeddings, dense), mixture.tower(torch.cat(parts, dim=1)).squeeze(1))


def test_the_choice_gets_colder_and_its_noise_is_gumbels_and_the_same_for_a_step() -> None:
    found = search(temperature=0.2)
    temperatures, noise = [], []
    for step in (0, 5, 10, 5):
        found.advance(epoch=0, step=step, steps=11)
        temperatures.append(found.mixture.temperature.item())
        noise.append(found.mixture.noise.clone())
    assert temperatures == pytest.approx([1, 0.6, 0.2, 0.6])
    assert torch.equal(noise[1], noise[3]) and not torch.equal(noise[0], noise[1])
    draws = []
    for step in range(400):
        found.advance(epoch=0, step=step, steps=400)
        draws.append(found.mixture.noise.clone())
    sample = torch.stack(draws)
    assert sample.mean().item() == pytest.approx(0.5772, abs=0.05)
    assert sample.var().item() == pytest.approx(math.pi**2 / 6, abs=0.1)
    mixture = found.mixture
    assert not torch.equal(mixture.train().shares(), mixture.eval().shares())
    mixture.noise.zero_()
    assert torch.equal(mixture.train().shares(), mixture.eval().shares()), "evaluation is without noise"


def test_the_largest_decides_among_what_a_pair_may_be() -> None:
    found = search()
    found.frequent = {pair: torch.tensor([7]) for pair in MEMORISABLE}
    choice = torch.zeros(len(PAIRS), 3)
    choice[:, MEMORISED] = 1.0
    choice[:, FACTORISED] = torch.arange(len(PAIRS)) / len(PAIRS) - 0.3
    choice[PAIRS.index(("b", "c")), NAIVE] = 2.0
    decided = found.decide({"dense_arch": {"choice": choice}}, lambda rows: 0.0)
    ways = dict(zip(PAIRS, decided[METHODS_KEY].tolist(), strict=True))
    assert {pair for pair, way in ways.items() if way == MEMORISED} == {("a", "b"), ("a", "c")}
    assert decided.keys() == {METHODS_KEY, "a@b", "a@c"}
    assert ways["b", "c"] == NAIVE and ways["a", "bag"] == NAIVE and ways["bag", "x"] == FACTORISED


@pytest.mark.parametrize("way", METHODS)
def test_one_way_for_all_needs_no_search(way: str) -> None:
    found = search(method=way)
    assert found.epochs == 0
    found.observe([])
    ways = found.decide({}, lambda rows: 0.0)[METHODS_KEY]
    expected = [METHODS.index(way) if way != "memorised" or pair in MEMORISABLE else NAIVE for pair in PAIRS]
    assert ways.tolist() == expected


def test_what_was_decided_is_described() -> None:
    ways = [NAIVE] * len(PAIRS)
    ways[PAIRS.index(("a", "c"))], ways[PAIRS.index(("bag", "x"))] = MEMORISED, FACTORISED
    described = made(ways).describe()
    assert described is not None
    assert described["counts"] == {"naive": 8, "factorised": 1, "memorised": 1} and described["rows"] == 5
    assert {"fields": ["a", "c"], "method": "memorised", "rows": 5} in described["pairs"]
    assert described["summary"] == "of 10 pairs of fields 8 naive, 1 factorised, 1 memorised (5 rows)"


def test_what_it_cannot_do_is_refused() -> None:
    one = Inputs(id_fields=INPUTS.id_fields[:1], numeric_fields=())
    for built in (build, build_search):
        with pytest.raises(CtrkitError, match="made of pairs of fields and has 1"):
            built("optinter", one, DIM, {})
    with pytest.raises(CtrkitError, match="decides on single fields' tables"):
        build_for(UnifiedEmbedding(rows=9, dim=4), "optinter", INPUTS, {})
    with pytest.raises(CtrkitError, match="search of its own"):
        build("fgcnn", INPUTS, DIM, {"classifier": "optinter"})
    with pytest.raises(CtrkitError, match="search of its own"):
        build("optfs", INPUTS, DIM, {"base": "optinter"})
    with pytest.raises(CtrkitError, match="method"):
        build("optinter", INPUTS, DIM, {"method": "factorized"})
    wide = Inputs(id_fields=tuple(IdField(name=name, rows=2**32) for name in "ab"), numeric_fields=())
    with pytest.raises(CtrkitError, match="do not fit 63 bits"):
        build_search("optinter", wide, DIM, SMALL)
    assert build_search("optinter", wide, DIM, {**SMALL, "method": "factorised"}) is not None
