"""Tables: what a look-up returns, and what each optimizer does to the rows it touches and to those it does not."""

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.config import Embedding
from ctrkit.data.batch import Batch
from ctrkit.errors import CtrkitError
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs
from ctrkit.training import distributed as distributed_module
from ctrkit.training.distributed import Distributed, Worker, distribute, gather_full_weights, load_full_weights
from tests.embeddings.recorder import Recorder, batch_of

INPUTS = Inputs(
    id_fields=(
        IdField(name="user", rows=5),
        IdField(name="tags", rows=7, multi_valued=True, pooling="mean"),
        IdField(name="a.b", rows=4),
        IdField(name="words", rows=6, multi_valued=True, pooling="sum"),
    ),
    numeric_fields=(),
)
ROWS = [([2], [1, 3], [1], []), ([2], [], [3], [5, 5, 1]), ([4], [6], [1], [2])]
DIM = 3


def make(settings: Embedding, worker: Worker, inputs: Inputs = INPUTS, seed: int = 0) -> tuple[Distributed, Recorder]:
    dense_arch = Recorder(inputs, DIM)
    return distribute(CTRModel(dense_arch, settings), settings, worker, seed), dense_arch


def step(distributed: Distributed, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """One step on random gradients of the embeddings; returns them."""
    distributed.table_optimizer.zero_grad()
    logits = distributed.model(batch)
    recorder = distributed.model.module.dense_arch
    draw = torch.Generator().manual_seed(seed)
    gradients = {name: torch.randn(e.shape, generator=draw) for name, e in recorder.seen.items()}
    (sum((recorder.seen[name] * g).sum() for name, g in gradients.items()) + 0 * logits.sum()).backward()
    distributed.table_optimizer.step()
    return gradients


def row_gradients(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """By hand: every looked-up row's gradient, the mean's shared among the bag."""
    totals = {}
    for group, gradient in gradients.items():
        for f, field in enumerate(INPUTS.id_fields):
            total = torch.zeros(field.rows, gradient.shape[2])
            for row, bags in enumerate(ROWS):
                share = 1 / len(bags[f]) if field.pooling == "mean" and bags[f] else 1
                for i in bags[f]:
                    total[i] += share * gradient[row, f]
            totals[f"{group}/{field.name}"] = total
    return totals


def test_bags_are_pooled_and_an_empty_one_is_zero(worker: Worker) -> None:
    distributed, recorder = make(Embedding(dim=DIM, init_std=1.0), worker)
    weights = gather_full_weights(distributed.model)
    distributed.model(batch_of(INPUTS, ROWS))
    for group in ("embedding", "linear"):
        for f, field in enumerate(INPUTS.id_fields):
            table = weights[f"{group}/{field.name}"]
            for row, bags in enumerate(ROWS):
                looked_up = table[torch.tensor(bags[f], dtype=torch.int64)]
                expected = looked_up.mean(0) if field.pooling == "mean" and bags[f] else looked_up.sum(0)
                torch.testing.assert_close(recorder.seen[group][row, f], expected)
    assert recorder.seen["embedding"].shape == (3, 4, DIM) and recorder.seen["linear"].shape == (3, 4, 1)


def test_rows_are_drawn_from_the_seed_and_padding_is_zero(worker: Worker) -> None:
    inputs = Inputs(id_fields=(IdField(name="a", rows=70_000), IdField(name="b", rows=70_000)), numeric_fields=())
    weights = gather_full_weights(make(Embedding(dim=DIM, init_std=0.1), worker, inputs)[0].model)
    again = gather_full_weights(make(Embedding(dim=DIM, init_std=0.1), worker, inputs)[0].model)
    other = gather_full_weights(make(Embedding(dim=DIM, init_std=0.1), worker, inputs, seed=1)[0].model)
    for name, weight in weights.items():
        assert torch.equal(weight, again[name]) and not torch.equal(weight, other[name])
        assert not weight[0].any()
        assert weight[1:].std().item() == pytest.approx(0.1, rel=0.02)
        assert weight[1:].mean().abs().item() < 0.002
    assert not torch.equal(weights["embedding/a"], weights["embedding/b"])
    tall = Inputs(id_fields=(IdField(name="a", rows=70_001),), numeric_fields=())
    taller = gather_full_weights(make(Embedding(dim=DIM, init_std=0.1), worker, tall)[0].model)
    assert torch.equal(taller["embedding/a"][:70_000], weights["embedding/a"])


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_sgd_and_the_penalty_on_looked_up_rows(worker: Worker, l2: float) -> None:
    distributed, recorder = make(Embedding(dim=DIM, optimizer="sgd", learning_rate=0.1, init_std=1.0, l2=l2), worker)
    before = gather_full_weights(distributed.model)
    distributed.table_optimizer.set_learning_rate(2.0)
    gradients = step(distributed, batch_of(INPUTS, ROWS))
    decayed = {name: g + l2 / len(ROWS) * recorder.seen[name].detach() for name, g in gradients.items()}
    expected = row_gradients(decayed)
    for name, weight in gather_full_weights(distributed.model).items():
        torch.testing.assert_close(weight, before[name] - 0.2 * expected[name])
        assert not weight[0].any()


def test_adagrad_divides_by_the_root_of_summed_squares(worker: Worker) -> None:
    distributed, _ = make(Embedding(dim=DIM, optimizer="adagrad", learning_rate=0.1), worker)
    expected = gather_full_weights(distributed.model)
    squares = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for seed in range(3):
        for name, gradient in row_gradients(step(distributed, batch_of(INPUTS, ROWS), seed)).items():
            squares[name] += gradient.square()
            expected[name] -= 0.1 * gradient / (squares[name].sqrt() + 1e-8)
    for name, weight in gather_full_weights(distributed.model).items():
        torch.testing.assert_close(weight, expected[name])


def test_rowwise_adagrad_keeps_one_number_a_row(worker: Worker) -> None:
    distributed, _ = make(Embedding(dim=DIM, optimizer="rowwise_adagrad", learning_rate=0.1), worker)
    before = gather_full_weights(distributed.model)
    expected = row_gradients(step(distributed, batch_of(INPUTS, ROWS)))
    for name, weight in gather_full_weights(distributed.model).items():
        moved = before[name] - weight
        touched = expected[name].any(1)
        assert not moved[~touched].any()
        torch.testing.assert_close(moved[touched].norm(dim=1), moved[touched].norm(dim=1)[:1].expand(int(touched.sum())))
        torch.testing.assert_close(
            torch.nn.functional.normalize(moved[touched], dim=1), torch.nn.functional.normalize(expected[name][touched], dim=1)
        )


@pytest.mark.parametrize("l2_rows", ["touched", "all"])
def test_adam_with_l2_is_torch_adam_on_whole_tables(worker: Worker, l2_rows: str) -> None:
    settings = Embedding.model_validate(
        {"dim": DIM, "optimizer": "adam", "learning_rate": 0.1, "init_std": 1.0, "l2": 0.5, "l2_rows": l2_rows}
    )
    distributed, recorder = make(settings, worker)
    expected = {name: weight.clone().requires_grad_() for name, weight in gather_full_weights(distributed.model).items()}
    adam = torch.optim.Adam(expected.values(), lr=0.1)
    for seed in range(3):
        gradients = step(distributed, batch_of(INPUTS, ROWS), seed)
        if l2_rows == "touched":
            gradients = {name: g + 0.5 / len(ROWS) * recorder.seen[name].detach() for name, g in gradients.items()}
        for name, gradient in row_gradients(gradients).items():
            expected[name].grad = gradient + (0.5 * expected[name].detach() if l2_rows == "all" else 0)
        adam.step()
    for name, weight in gather_full_weights(distributed.model).items():
        torch.testing.assert_close(weight, expected[name].detach(), atol=1e-5, rtol=1e-5)
        assert not weight[0].any()


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "adam"])
def test_optimizer_state_goes_on_where_it_was_saved(worker: Worker, optimizer: str, tmp_path) -> None:
    settings = Embedding.model_validate({"dim": DIM, "optimizer": optimizer})
    distributed, _ = make(settings, worker)
    step(distributed, batch_of(INPUTS, ROWS), 0)
    torch.save(distributed.table_optimizer.state_dict(), tmp_path / "state.pt")
    weights = gather_full_weights(distributed.model)
    step(distributed, batch_of(INPUTS, ROWS), 1)
    resumed, _ = make(settings, worker, seed=9)
    load_full_weights(resumed.model, weights)
    resumed.table_optimizer.load_state_dict(torch.load(tmp_path / "state.pt"))
    step(resumed, batch_of(INPUTS, ROWS), 1)
    expected = gather_full_weights(distributed.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in gather_full_weights(resumed.model).items())


def test_the_plan_counts_weights_and_optimizer_state(worker: Worker) -> None:
    sizes = {}
    for optimizer in ("sgd", "rowwise_adagrad", "adagrad", "adam"):
        plan = make(Embedding.model_validate({"dim": 16, "optimizer": optimizer}), worker)[0].plan
        assert [t.name for t in plan][:2] == ["embedding/user", "embedding/tags"] and plan[2].name == "embedding/a.b"
        user = plan[0]
        assert (user.rows, user.dim, user.sharding, user.kernel) == (5, 16, "table_wise", "dense" if optimizer == "adam" else "fused")
        sizes[optimizer] = user.bytes_per_rank
    weights = 5 * 16 * 4
    assert sizes == {
        "sgd": {0: weights},
        "rowwise_adagrad": {0: weights + 5 * 4},
        "adagrad": {0: 2 * weights},
        "adam": {0: 4 * weights},
    }


def test_tables_larger_than_memory_are_refused(worker: Worker) -> None:
    inputs = Inputs(id_fields=(IdField(name="user", rows=10**12),), numeric_fields=())
    with pytest.raises(CtrkitError, match="do not fit"):
        make(Embedding(dim=16), worker, inputs)


def test_a_model_without_id_fields_has_no_tables(worker: Worker) -> None:
    inputs = Inputs(id_fields=(), numeric_fields=("x",))
    settings = Embedding(dim=DIM)
    distributed = distribute(CTRModel(build("deepfm", inputs, DIM, {}), settings), settings, worker, seed=0)
    sparse = KeyedJaggedTensor(keys=[], values=torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int32), stride=4)
    logits = distributed.model(Batch(sparse, torch.randn(4, 1), torch.zeros(4)))
    logits.sum().backward()
    distributed.table_optimizer.zero_grad()
    distributed.table_optimizer.step()
    assert logits.shape == (4,) and gather_full_weights(distributed.model) == {} and distributed.plan == []


def test_ids_past_two_to_the_24_stay_apart(worker: Worker) -> None:
    rows = 2**24 + 3
    inputs = Inputs(id_fields=(IdField(name="user", rows=rows),), numeric_fields=())
    distributed, recorder = make(Embedding(dim=4, optimizer="sgd", learning_rate=1.0), worker, inputs)
    before = gather_full_weights(distributed.model)["embedding/user"][-3:].clone()
    ids = [[[2**24]], [[2**24 + 1]], [[2**24 + 2]]]
    gradient = step(distributed, batch_of(inputs, ids))["embedding"][:, 0]
    torch.testing.assert_close(recorder.seen["embedding"][:, 0].detach(), before)
    torch.testing.assert_close(gather_full_weights(distributed.model)["embedding/user"][-3:], before - gradient)


def test_without_torchrun_the_group_has_one_process(worker: Worker) -> None:
    assert (worker.rank, worker.world, worker.device.type) == (0, 1, "cuda" if torch.cuda.is_available() else "cpu")
    assert distributed_module.sharding_types(Embedding(), worker) == ["table_wise"]
