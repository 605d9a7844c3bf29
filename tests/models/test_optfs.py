"""OptFS's closed forms: the gate, its temperature, the penalty, and gated look-ups against plain loops."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.config import AutoDis, Embedding, Scale, UnifiedEmbedding
from ctrkit.data.batch import Batch
from ctrkit.errors import CtrkitError
from ctrkit.layers.gate import ContinuousGate
from ctrkit.models.base import CTRModel, RankingModel
from ctrkit.models.optfs import OptFSSearch
from ctrkit.models.registry import build, build_for, build_search
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import Worker, distribute, gather_full_weights, load_full_weights, process_group

INPUTS = Inputs(
    id_fields=(
        IdField(name="a", rows=5),
        IdField(name="mean", rows=4, multi_valued=True),
        IdField(name="sum", rows=4, multi_valued=True, pooling="sum"),
    ),
    numeric_fields=("x", "y"),
)
SCALE = 1 + math.exp(-0.5)
"""1 / sigmoid(0.5)."""


def search(**settings) -> OptFSSearch:
    torch.manual_seed(0)
    found = build_search("optfs", INPUTS, 3, {"base": "fm", **settings})
    assert isinstance(found, OptFSSearch)
    return found


def test_a_gate_is_open_at_first_and_a_step_at_last() -> None:
    gate = ContinuousGate(0.5)
    c = torch.tensor([0.5, 0.0, -0.5, 2.0])
    expected = [SCALE / (1 + math.exp(-v)) for v in c.tolist()]
    torch.testing.assert_close(gate(c), torch.tensor(expected))
    assert gate(c)[0].item() == pytest.approx(1)
    gate.temperature.fill_(1e4)
    torch.testing.assert_close(gate(torch.tensor([0.01, -0.01])), torch.tensor([SCALE, 0.0]))


def test_the_temperature_rises_exponentially_over_the_epochs() -> None:
    model = search(temperature=1000.0, search_epochs=4)
    seen = []
    for epoch in range(4):
        model.advance(epoch, step=0, steps=1)
        seen.append(model.gated.gate.temperature.item())
    assert seen == pytest.approx([1, 10, 100, 1000])


def test_the_penalty_is_the_sum_of_all_gates() -> None:
    model = search(l1=0.01, temperature=4.0, search_epochs=3)
    model.advance(1, step=0, steps=1)
    ids = [torch.tensor([0.5, -1.0]), torch.tensor([2.0])]
    expected = 0.01 * sum(1 / (1 + math.exp(-2 * c)) for c in (0.5, -1.0, 2.0, 0.5, 0.5))
    assert model.penalty(ids).item() == pytest.approx(expected)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with process_group() as worker:
        yield worker


BAGS: dict[str, list[list[int]]] = {"a": [[1], [4], [2]], "mean": [[1, 2, 3], [], [3]], "sum": [[2, 2], [1, 3], []]}
DENSE = torch.tensor([[0.5, -1.0], [2.0, float("nan")], [0.0, 1.0]])


def batch() -> Batch:
    values = torch.tensor([i for bags in BAGS.values() for bag in bags for i in bag])
    lengths = torch.tensor([len(bag) for bags in BAGS.values() for bag in bags], dtype=torch.int32)
    return Batch(KeyedJaggedTensor(keys=list(BAGS), values=values, lengths=lengths), DENSE, torch.zeros(3))


def random_tables(model: RankingModel) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    rows = {f.name: f.rows for f in INPUTS.id_fields}
    return {f"{g.name}/{f}": torch.randn(rows[f], g.dim, generator=draw) for g in model.groups(3) for f in rows}


def test_every_value_of_a_bag_has_its_gate_and_an_interaction_the_product(worker: Worker) -> None:
    """FM's double sum over gated vectors, by plain loops."""
    found = search(temperature=9.0, search_epochs=3)
    found.advance(1, step=0, steps=1)
    arch = found.gated
    settings = Embedding(dim=3)
    distributed = distribute(CTRModel(arch, settings), settings, worker, seed=0).model
    tables = random_tables(arch)
    load_full_weights(distributed, tables)
    numbers = torch.tensor([0.3, -0.2])
    found.deciding[0].data.copy_(numbers)
    logits = distributed(batch())

    base = arch.base
    for row in range(3):
        vectors, total = [], base.first_order.bias.item()
        for group, dim in (("embedding", 3), ("linear", 1)):
            parts = []
            for field in INPUTS.id_fields:
                bag = BAGS[field.name][row]
                gated = [SCALE * torch.sigmoid(3 * tables[f"gate/{field.name}"][i]) * tables[f"{group}/{field.name}"][i] for i in bag]
                pooled = torch.stack(gated).sum(0) if gated else torch.zeros(dim)
                parts.append(pooled / max(1, len(bag)) if field.pooling == "mean" else pooled)
            layer = (base.vectors if group == "embedding" else base.first_order.vectors).numeric.inner
            for j in range(2):
                x = DENSE[row, j]
                gate = SCALE * torch.sigmoid(3 * numbers[j])
                parts.append(gate * (layer.missing[j] if x.isnan() else x * layer.weight[j]))
            if group == "embedding":
                vectors = parts
            else:
                total += sum(parts).item()
        total += sum((vectors[i] @ vectors[j]).item() for i in range(5) for j in range(i))
        assert logits[row].item() == pytest.approx(total, abs=1e-4)


def test_gates_start_open_and_so_the_search_starts_as_its_base(worker: Worker) -> None:
    settings = Embedding(dim=3, init_std=0.5)
    arch = search().gated
    gated = distribute(CTRModel(arch, settings), settings, worker, seed=4).model
    plain_arch = build("fm", INPUTS, 3, {})
    plain_arch.load_state_dict({name.replace("inner.", ""): t for name, t in arch.base.state_dict().items()})
    plain = distribute(CTRModel(plain_arch, settings), settings, worker, seed=4).model
    torch.testing.assert_close(gated(batch()), plain(batch()))
    gates = {name: table for name, table in gather_full_weights(gated).items() if name.startswith("gate/")}
    assert len(gates) == 3 and all((table[1:] == 0.5).all() and table[0] == 0 for table in gates.values())


@pytest.mark.parametrize("numeric", [Scale(), AutoDis(meta_embeddings=3)])
@pytest.mark.parametrize("base", ["lr", "deepfm", "dcn", "ipnn", "autoint", "dlrm", "fgcnn"])
def test_a_closed_numeric_gate_hides_its_field(base: str, numeric: Scale | AutoDis) -> None:
    decision = {f.name: torch.ones(f.rows, dtype=torch.bool) for f in INPUTS.id_fields}
    decision |= {"x": torch.tensor(True), "y": torch.tensor(False)}
    torch.manual_seed(0)
    model = build("optfs", INPUTS, 4, {"base": base}, numeric, decision).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    embeddings = {g.name: torch.randn(1, 3, g.dim) for g in model.groups(4)}
    before = model(embeddings, torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(model(embeddings, torch.tensor([[1.0, -7.0]])), before)
    torch.testing.assert_close(model(embeddings, torch.tensor([[1.0, float("nan")]])), before)
    others = [model(embeddings, torch.tensor([[x, 2.0]])) for x in (-3.0, 0.0, 3.0)]
    assert max(abs(other - before) for other in others) > 1e-4


def test_what_is_decided_is_what_is_above_zero() -> None:
    model = search()
    tables = {f"gate/{f.name}": torch.tensor([[0.0], [0.1], [-0.1], *[[0.0]] * (f.rows - 3)]) for f in INPUTS.id_fields}
    decision = model.decide({"tables": tables, "dense_arch": {"numeric_gates.c": torch.tensor([-0.2, 0.2])}}, lambda rows: 0.0)
    assert {name: mask.tolist() for name, mask in decision.items()} == {
        "a": [False, True, False, False, False],
        "mean": [False, True, False, False],
        "sum": [False, True, False, False],
        "x": False,
        "y": True,
    }
    described = build("optfs", INPUTS, 3, {"base": "fm"}, decision=decision).describe()
    assert described is not None and described["summary"] == "kept 4 of 12 feature values (33.3%)"
    assert described["fields"]["a"] == {"values": 4, "kept": 1, "ratio": 0.25}


def test_a_unified_embedding_is_refused() -> None:
    with pytest.raises(CtrkitError, match="model 'optfs' decides on single fields' tables") as raised:
        build_for(UnifiedEmbedding(rows=9, dim=4), "optfs", INPUTS, {"base": "fm"})
    assert "embedding.kind" in raised.value.remedy


@pytest.mark.parametrize("base", ["fm", "din", "bst"])
def test_sequences_are_refused(base: str) -> None:
    """Pooled or attended to."""
    past = IdField(name="past", rows=5, multi_valued=True, of="a", length=3)
    inputs = INPUTS.model_copy(update={"id_fields": (*INPUTS.id_fields, past)})
    for built in (build, build_search):
        with pytest.raises(CtrkitError, match="sequence 'past'") as raised:
            built("optfs", inputs, 4, {"base": base})
        assert "Leave the sequences out" in raised.value.remedy
