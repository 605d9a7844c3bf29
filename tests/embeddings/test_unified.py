"""The unified embedding: where ids fall, what a field's vector is made of, and what it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctrkit.config import UnifiedEmbedding
from ctrkit.embeddings.unified import JoinLookups, hash_coefficients, hash_ids, plan_lookups
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build_for, models
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import Distributed, Worker, distribute, gather_full_weights
from tests.embeddings.recorder import Recorder, batch_of
from tests.zoo import has_search, info_of

INT64 = st.integers(-(2**63), 2**63 - 1)
INPUTS = Inputs(
    id_fields=(
        IdField(name="user", rows=2**31),
        IdField(name="tags", rows=7, multi_valued=True, pooling="mean"),
        IdField(name="a.b", rows=4),
        IdField(name="words", rows=6, multi_valued=True, pooling="sum"),
    ),
    numeric_fields=(),
)
ROWS = [([2**31 - 1], [1, 3], [1], []), ([2], [], [3], [5, 5, 1]), ([4], [6], [1], [2])]
DIM = 4
KNOWN_COEFFICIENTS = [1776166440, 859983022, 1883296778, 283240952]
KNOWN_ROWS = [676, 4075, 6701]


def rows_of(ids: list[int], field: str, lookup: int, rows: int) -> list[int]:
    return hash_ids(torch.tensor(ids), torch.tensor(hash_coefficients(field, lookup)), rows).tolist()


# -- the hash


@given(st.lists(INT64, min_size=1, max_size=20), st.text(max_size=5), st.integers(0, 9), st.integers(2, 2**31 - 1))
def test_the_hash_is_the_cubic_of_the_docstring_for_any_id(ids: list[int], field: str, lookup: int, rows: int) -> None:
    prime = 2**31 - 1
    a, b, c, d = hash_coefficients(field, lookup)
    expected = [0 if x == 0 else 1 + (a * x**3 + b * x**2 + c * x + d) % prime % (rows - 1) for x in ids]
    assert rows_of(ids, field, lookup, rows) == expected
    assert all(1 <= row < rows for row, x in zip(expected, ids, strict=True) if x)


def test_the_hash_of_an_old_model_is_the_hash_of_today() -> None:
    assert hash_coefficients("user", 0) == KNOWN_COEFFICIENTS
    assert rows_of([1, 2, 2**40], "user", 0, 10_000) == KNOWN_ROWS


def test_fields_and_lookups_have_hashes_of_their_own() -> None:
    ids = list(range(1, 2001))
    user, item, again = (np.array(rows_of(ids, *which, 1000)) for which in (("user", 0), ("item", 0), ("user", 1)))
    assert rows_of(ids, "user", 0, 1000) == user.tolist()
    for other in (item, again):
        assert (user == other).mean() < 0.01, "equal in one id of a thousand, by chance"


def test_neighbouring_ids_collide_as_random_ones_do() -> None:
    """Pairs of 100 ids that fall on one of 10,000 rows: 0.495 on average. Under a linear hash one field in a hundred has some fifty."""
    pairs = []
    for field in range(400):
        counts = np.bincount(rows_of(list(range(1, 101)), f"field {field}", 0, 10_001))
        pairs.append((counts * (counts - 1) // 2).sum())
    assert np.mean(pairs) == pytest.approx(0.495, abs=0.12)
    assert max(pairs) <= 6
    assert np.var(pairs) == pytest.approx(0.495, abs=0.2)


# -- tables


def make(settings: UnifiedEmbedding, worker: Worker) -> tuple[Distributed, Recorder]:
    torch.manual_seed(0)
    recorder = Recorder(INPUTS, DIM)
    recorder.join = JoinLookups(INPUTS, plan_lookups(INPUTS, recorder.groups(settings.width), settings))
    return distribute(CTRModel(recorder, settings), settings, worker, seed=0), recorder


def pooled(table: Tensor, bag: list[int], field: IdField, lookup: int) -> Tensor:
    """By hand, one look-up of a bag."""
    vectors = table[torch.tensor(rows_of(bag, field.name, lookup, len(table)), dtype=torch.int64)]
    return vectors.mean(0) if field.pooling == "mean" and bag else vectors.sum(0)


def test_a_fields_vector_is_its_lookups_side_by_side(worker: Worker) -> None:
    settings = UnifiedEmbedding(rows=23, dim=DIM, lookups=2, init_std=1.0)
    distributed, recorder = make(settings, worker)
    weights = gather_full_weights(distributed.model)
    assert {name: tuple(w.shape) for name, w in weights.items()} == {"embedding/shared": (23, DIM), "linear/shared": (23, 1)}
    assert not any(w[0].any() for w in weights.values())
    distributed.model(batch_of(INPUTS, ROWS))
    for row, bags in enumerate(ROWS):
        for f, field in enumerate(INPUTS.id_fields):
            expected = torch.cat([pooled(weights["embedding/shared"], bags[f], field, k) for k in range(2)])
            torch.testing.assert_close(recorder.seen["embedding"][row, f], expected)
            torch.testing.assert_close(recorder.seen["linear"][row, f], pooled(weights["linear/shared"], bags[f], field, 0))
    assert not list(recorder.join.parameters()), "nothing to project"


def test_fields_of_another_width_are_projected(worker: Worker) -> None:
    settings = UnifiedEmbedding(rows=23, dim=DIM, lookups=2, feature_lookups={"user": 3, "words": 1}, init_std=1.0)
    distributed, recorder = make(settings, worker)
    table = gather_full_weights(distributed.model)["embedding/shared"]
    projections = {name: p for name, p in recorder.join.named_parameters()}
    assert [tuple(p.shape) for p in projections.values()] == [(2 * DIM, 3 * DIM), (2 * DIM, DIM)]
    distributed.model(batch_of(INPUTS, ROWS))
    lookups = [3, 2, 2, 1]
    for row, bags in enumerate(ROWS):
        for f, field in enumerate(INPUTS.id_fields):
            expected = torch.cat([pooled(table, bags[f], field, k) for k in range(lookups[f])])
            for name, projection in projections.items():
                if f".{f}." in name:
                    expected = projection @ expected
            torch.testing.assert_close(recorder.seen["embedding"][row, f], expected)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_a_row_learns_from_every_field_that_falls_on_it(worker: Worker, l2: float) -> None:
    """Five rows for eleven ids: SGD steps by the sum of all their gradients, padding by nothing."""
    settings = UnifiedEmbedding(rows=6, dim=DIM, lookups=2, optimizer="sgd", learning_rate=0.1, init_std=1.0, l2=l2)
    distributed, recorder = make(settings, worker)
    table = gather_full_weights(distributed.model)["embedding/shared"].requires_grad_()
    by_hand = torch.stack(
        [
            torch.stack([torch.cat([pooled(table, bags[f], field, k) for k in range(2)]) for f, field in enumerate(INPUTS.id_fields)])
            for bags in ROWS
        ]
    )
    gradient = torch.randn(by_hand.shape, generator=torch.Generator().manual_seed(1))
    ((by_hand * gradient).sum() + l2 / 2 / len(ROWS) * by_hand.square().sum()).backward()
    logits = distributed.model(batch_of(INPUTS, ROWS))
    ((recorder.seen["embedding"] * gradient).sum() + 0 * logits.sum()).backward()
    after = gather_full_weights(distributed.model)["embedding/shared"]
    assert table.grad is not None
    torch.testing.assert_close(after, table.detach() - 0.1 * table.grad)
    assert not after[0].any()


@pytest.mark.parametrize("name", [m.name for m in models() if m.kind != "sequence" and not has_search(m.name)])
def test_every_model_trains_and_has_rows_times_width_parameters_whatever_the_fields(name: str, worker: Worker) -> None:
    settings = UnifiedEmbedding(rows=90, dim=4, lookups=3, feature_lookups={"user": 1}, optimizer="sgd", init_std=0.5)
    tasks = ("first", "second") if info_of(name).kind == "multi-task" else ()
    inputs = INPUTS.model_copy(update={"numeric_fields": ("x",), "tasks": tasks})
    torch.manual_seed(0)
    dense_arch = build_for(settings, name, inputs, {})
    distributed = distribute(CTRModel(dense_arch, settings), settings, worker, seed=0)
    widths = {g.name: g.dim // 3 if g.dim % 12 == 0 else g.dim for g in dense_arch.groups(12)}
    assert {t.name: (t.rows, t.dim) for t in distributed.plan} == {f"{group}/shared": (90, dim) for group, dim in widths.items()}

    before = gather_full_weights(distributed.model)
    batch = batch_of(INPUTS, ROWS)
    batch.dense = torch.ones(len(ROWS), 1)
    labels = torch.tensor([1.0, 0.0, 1.0])
    logits = distributed.model(batch)
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.unsqueeze(1).expand_as(logits) if tasks else labels).backward()
    for group, after in gather_full_weights(distributed.model).items():
        assert not torch.equal(after, before[group]) and not after[0].any()
    assert all(p.grad is not None and p.grad.any() for p in dense_arch.join.parameters())


def test_another_number_of_lookups_costs_its_projection_alone() -> None:
    plain, wider = (
        sum(p.numel() for p in build_for(UnifiedEmbedding(rows=9, dim=4, lookups=2, feature_lookups=f), "dnn", INPUTS, {}).parameters())
        for f in ({}, {"user": 5})
    )
    assert wider - plain == (5 * 4) * (2 * 4)


def test_a_sequence_by_place_is_hashed_as_its_target_is(worker: Worker) -> None:
    """Zeros in front of a shorter history, each place's look-ups side by side, and a field of other look-ups projected."""
    inputs = Inputs(
        id_fields=(
            IdField(name="seen", rows=9, multi_valued=True, of="item", length=3),
            IdField(name="item", rows=9),
            IdField(name="user", rows=5),
        ),
        numeric_fields=(),
    )
    rows = [([1, 2], [2], [1]), ([], [1], [2]), ([3, 8, 3], [3], [4])]
    settings = UnifiedEmbedding(rows=40, dim=2, lookups=2, feature_lookups={"user": 1, "item": 3}, init_std=1.0)

    recorder = Recorder(inputs, 4, unpooled=True)
    recorder.join = JoinLookups(inputs, plan_lookups(inputs, recorder.groups(settings.width), settings))
    distributed = distribute(CTRModel(recorder, settings), settings, worker, seed=1)
    distributed.model(batch_of(inputs, rows))

    weights = gather_full_weights(distributed.model)
    table = weights["embedding/shared"]

    def vectors(field: str, ids: Tensor, lookups: int) -> Tensor:
        salts = torch.tensor([hash_coefficients(field, k) for k in range(lookups)]).T
        found = [table[hash_ids(ids, salts[:, k], 40)] for k in range(lookups)]
        return torch.cat(found, dim=-1)

    projections = recorder.join.projections["embedding"].odd
    padded = torch.tensor([[0, 1, 2], [0, 0, 0], [3, 8, 3]])
    places = vectors("item", padded, 3) @ projections["0"].weight.T
    torch.testing.assert_close(recorder.seen["embedding/seen"], places * (padded != 0).unsqueeze(2))
    item = vectors("item", torch.tensor([2, 1, 3]), 3) @ projections["1"].weight.T
    user = vectors("user", torch.tensor([1, 2, 4]), 1) @ projections["2"].weight.T
    torch.testing.assert_close(recorder.seen["embedding"], torch.stack([item, user], dim=1))
    assert recorder.seen["mask/seen"].tolist() == (padded != 0).tolist()
    assert recorder.seen["linear"].shape == (3, 3, 1)
