"""Models against plain loops, and where one model is another."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.models.base import RankingModel
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs

DIM, ROWS = 3, 5
INPUTS = Inputs(id_fields=tuple(IdField(name=f"c{k}", rows=10) for k in range(4)), numeric_fields=("n0", "n1"))
IDS_ONLY = Inputs(id_fields=tuple(IdField(name=f"c{k}", rows=10) for k in range(6)), numeric_fields=())


def make(name: str, inputs: Inputs = INPUTS, **settings: Any) -> RankingModel:
    """A model with random parameters, those that start at zero or one too."""
    torch.manual_seed(0)
    model = build(name, inputs, DIM, settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def feed(model: RankingModel) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    embeddings = {g.name: torch.randn(ROWS, len(model.inputs.id_fields), g.dim) for g in model.groups(DIM)}
    return embeddings, torch.randn(ROWS, len(model.inputs.numeric_fields))


def first_order(model: Any, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
    return embeddings["linear"].sum((1, 2)) + dense @ model.first_order.vectors.numeric.weight[:, 0] + model.first_order.bias


def all_vectors(model: Any, embeddings: Tensor, dense: Tensor) -> Tensor:
    return torch.cat([embeddings, dense.unsqueeze(2) * model.vectors.numeric.weight], dim=1)


def test_ffm_is_the_double_sum() -> None:
    model = make("ffm")
    embeddings, dense = feed(model)
    v = all_vectors(model, embeddings["field_aware"], dense).view(ROWS, 6, 5, DIM)

    def towards(i: int, j: int) -> Tensor:
        others = [k for k in range(6) if k != i]
        return v[:, i, others.index(j)]

    pairs = sum((towards(i, j) * towards(j, i)).sum(1) for i, j in combinations(range(6), 2))
    torch.testing.assert_close(model(embeddings, dense), first_order(model, embeddings, dense) + pairs)


def test_fwfm_is_the_double_sum() -> None:
    model: Any = make("fwfm")
    embeddings, dense = feed(model)
    v = all_vectors(model, embeddings["embedding"], dense)
    pairs = sum(r * (v[:, i] * v[:, j]).sum(1) for r, (i, j) in zip(model.weights, combinations(range(6), 2), strict=True))
    fields = sum(v[:, i] @ w for i, w in enumerate(model.first_order.weight.view(6, DIM)))
    torch.testing.assert_close(model(embeddings, dense), fields + model.first_order.bias + pairs)


def test_fwfm_with_equal_weights_is_fm() -> None:
    fm, fwfm = make("fm"), make("fwfm", first_order="id")
    fwfm.load_state_dict({**fm.state_dict(), "weights": torch.ones(15)})
    embeddings, dense = feed(fm)
    torch.testing.assert_close(fwfm(embeddings, dense), fm(embeddings, dense))


def test_ffm_whose_vectors_do_not_depend_on_the_other_field_is_fm() -> None:
    fm, ffm = make("fm", IDS_ONLY), make("ffm", IDS_ONLY)
    ffm.load_state_dict(fm.state_dict())
    embeddings, dense = feed(fm)
    repeated = {"field_aware": embeddings["embedding"].repeat(1, 1, 5), "linear": embeddings["linear"]}
    torch.testing.assert_close(ffm(repeated, dense), fm(embeddings, dense))


def test_afm_is_a_softmax_over_pairs() -> None:
    model: Any = make("afm", attention_dim=4)
    embeddings, dense = feed(model)
    v = all_vectors(model, embeddings["embedding"], dense)
    hidden, _, score = model.attention
    for row in range(ROWS):
        products = [v[row, i] * v[row, j] for i, j in combinations(range(6), 2)]
        scores = torch.stack([score.weight[0] @ (hidden.weight @ p + hidden.bias).clamp(min=0) for p in products])
        pooled = sum(a * p for a, p in zip(torch.softmax(scores, 0), products, strict=True))
        expected = first_order(model, embeddings, dense)[row] + model.output.weight[0] @ pooled
        torch.testing.assert_close(model(embeddings, dense)[row], expected)


def test_afm_without_attention_is_a_scaled_fm() -> None:
    """All scores equal: each pair weighs 1 / pairs, and with p = pairs in every dim the weights are FM's ones."""
    fm, afm = make("fm", IDS_ONLY), make("afm", IDS_ONLY)
    state = afm.state_dict() | fm.state_dict()
    state |= {"attention.2.weight": torch.zeros_like(state["attention.2.weight"]), "output.weight": torch.full((1, DIM), 15.0)}
    afm.load_state_dict(state)
    embeddings, dense = feed(fm)
    torch.testing.assert_close(afm(embeddings, dense), fm(embeddings, dense))


def test_ipnn_feeds_vectors_and_inner_products() -> None:
    model: Any = make("ipnn", hidden=())
    embeddings, dense = feed(model)
    v = all_vectors(model, embeddings["embedding"], dense)
    products = [(v[:, i] * v[:, j]).sum(1, keepdim=True) for i, j in combinations(range(6), 2)]
    (top,) = model.tower.layers
    torch.testing.assert_close(model(embeddings, dense), torch.cat([v.flatten(1), *products], dim=1) @ top.weight[0] + top.bias)


def test_opnn_feeds_vectors_and_the_sum_of_outer_products() -> None:
    model: Any = make("opnn", hidden=())
    embeddings, dense = feed(model)
    v = all_vectors(model, embeddings["embedding"], dense)
    (top,) = model.tower.layers
    for row in range(ROWS):
        outer = sum(torch.outer(a, b) for a in v[row] for b in v[row])
        expected = torch.cat([v[row].flatten(), outer.flatten()]) @ top.weight[0] + top.bias[0]
        torch.testing.assert_close(model(embeddings, dense)[row], expected, rtol=1e-4, atol=1e-5)


def test_widedeep_is_lr_plus_dnn() -> None:
    wide, deep, both = make("lr"), make("dnn", hidden=(4,)), make("widedeep", hidden=(4,))
    renamed = {name.replace("first_order", "wide"): w for name, w in wide.state_dict().items()}
    both.load_state_dict(renamed | {name.replace("tower", "deep"): w for name, w in deep.state_dict().items()})
    embeddings, dense = feed(both)
    torch.testing.assert_close(both(embeddings, dense), wide(embeddings, dense) + deep(embeddings, dense))


def test_a_dcnv2_of_rank_one_tied_to_the_input_is_a_dcn() -> None:
    """W = 1 w^T makes x_0 * (W x) = x_0 <w, x>; DCN's bias is added outside the product and is zero here."""
    dcn, dcnv2 = make("dcn", layers=2, hidden=(4,)), make("dcnv2", layers=2, hidden=(4,), low_rank=1)
    state = dcn.state_dict()
    renamed = {}
    for name, weight in state.items():
        layer = name.rpartition(".")[0]
        if name.endswith(("cross.layers.0.bias", "cross.layers.1.bias")):
            weight.zero_()
            renamed[f"{layer}.u.weight"] = torch.ones(len(weight), 1)
            renamed[f"{layer}.u.bias"] = torch.zeros(len(weight))
        elif "cross.layers" in name:
            renamed[name.replace("weight.weight", "v.weight")] = weight
        else:
            renamed[name] = weight
    dcn.load_state_dict(state)
    dcnv2.load_state_dict(renamed)
    embeddings, dense = feed(dcn)
    torch.testing.assert_close(dcnv2(embeddings, dense), dcn(embeddings, dense))


def test_finalmlp_gates_start_near_one_and_without_them_the_streams_see_the_same() -> None:
    torch.manual_seed(0)
    model: Any = build("finalmlp", INPUTS, DIM, {"context1": ["c1"]}).eval()
    vectors = 0.01 * torch.randn(ROWS, 6, DIM)
    for gate in model.gates:
        ratio = gate(vectors) / vectors.flatten(1)
        assert ((ratio > 0.0) & (ratio < 2.0)).all()
    first, second = model.gates
    other = vectors.clone()
    other[:, 1] = 0.5 + torch.rand(ROWS, DIM)
    changed = (first(other) / other.flatten(1) - first(vectors) / vectors.flatten(1)).abs().amax(1)
    assert (changed > 1e-4).all()  # field c1 drives the first gate
    torch.testing.assert_close(second(other) / other.flatten(1), second(vectors) / vectors.flatten(1), rtol=1e-3, atol=1e-4)


def permuted(embeddings: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    return {name: tensor[:, order] for name, tensor in embeddings.items()}


@pytest.mark.parametrize("name", ["fm", "afm"])
def test_the_order_of_fields_is_nothing_to_a_factorization_machine(name: str) -> None:
    model = make(name, IDS_ONLY)
    embeddings, dense = feed(model)
    torch.testing.assert_close(model(permuted(embeddings, [3, 0, 5, 1, 4, 2]), dense), model(embeddings, dense))


def test_the_order_of_fields_matters_to_fgcnn() -> None:
    """The classifier is symmetric (FM), so that all of the change comes from the convolution."""
    model = make("fgcnn", IDS_ONLY, classifier="fm", channels=(3, 2), kernel=3)
    embeddings, dense = feed(model)
    for order in ([1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        difference = (model(permuted(embeddings, order), dense) - model(embeddings, dense)).abs()
        assert (difference > 1e-4).all()


@pytest.mark.parametrize(
    ("fields", "pooling", "convolutions"), [(1, 2, 1), (3, 2, 1), (7, 2, 2), (10, 2, 3), (39, 2, 4), (39, 4, 2), (3, 1, 4)]
)
def test_fgcnn_convolves_while_there_are_neighbours(fields: int, pooling: int, convolutions: int) -> None:
    inputs = Inputs(id_fields=tuple(IdField(name=f"v{k}", rows=2) for k in range(fields)), numeric_fields=())
    model: Any = build("fgcnn", inputs, DIM, {"pooling": pooling})
    assert len(model.generator.convolutions) == convolutions
    explicit: Any = build("fgcnn", inputs, DIM, {"pooling": pooling, "channels": [5, 4, 3]})
    assert len(explicit.generator.convolutions) == 3


def test_fgcnn_hands_raw_and_generated_vectors_to_its_classifier() -> None:
    model: Any = make("fgcnn", classifier="deepfm", classifier_settings={"hidden": (4,)}, channels=(3, 2), kernel=3, new_features=2)
    assert [(g.name, g.dim) for g in model.groups(DIM)] == [("embedding", DIM), ("generation", DIM), ("linear", 1)]
    embeddings, dense = feed(model)
    raw = all_vectors(model, embeddings["embedding"], dense)
    generation = torch.cat([embeddings["generation"], dense.unsqueeze(2) * model.generation_vectors.numeric.weight], dim=1)
    generated = model.generator(generation)
    assert generated.shape == (ROWS, (3 + 2) * 2, DIM)  # 6 fields, halved twice
    linear = torch.cat([embeddings["linear"], dense.unsqueeze(2) * model.linear_vectors.numeric.weight], dim=1)
    plain = build(
        "deepfm", Inputs(id_fields=tuple(IdField(name=f"v{k}", rows=2) for k in range(16)), numeric_fields=()), DIM, {"hidden": (4,)}
    )
    plain.load_state_dict(model.classifier.state_dict())
    features = {"embedding": torch.cat([raw, generated], dim=1), "linear": torch.cat([linear, torch.zeros(ROWS, 10, 1)], dim=1)}
    torch.testing.assert_close(model(embeddings, dense), plain(features, torch.zeros(ROWS, 0)))


def test_fgcnn_trains_away_from_chance_at_the_usual_learning_rate() -> None:
    """Others' are reported stuck at 0.5 from the first steps on: their generated features start at full swing."""
    torch.manual_seed(0)
    ids = torch.randint(0, 8, (2048, 10))
    labels = ((ids[:, 0] + ids[:, 3]) % 2).float()
    inputs = Inputs(id_fields=tuple(IdField(name=f"c{k}", rows=8) for k in range(10)), numeric_fields=())
    for seed in range(3):
        torch.manual_seed(seed)
        model = build("fgcnn", inputs, 8, {"classifier_settings": {"hidden": (64, 32)}})
        tables = {g.name: torch.nn.Parameter(0.01 * torch.randn(10, 8, 8)) for g in model.groups(8)}
        optimizer = torch.optim.Adam([*model.parameters(), *tables.values()], lr=1e-3)
        losses = []
        for step in range(60):
            rows = slice(step % 8 * 256, step % 8 * 256 + 256)
            looked_up = {name: table[torch.arange(10), ids[rows]] for name, table in tables.items()}
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(looked_up, torch.zeros(256, 0)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert max(losses[:10]) < 0.72, losses  # log 2 and no overshoot
        assert losses[-1] < 0.5, losses
