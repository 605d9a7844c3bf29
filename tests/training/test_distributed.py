"""Sharded training: N processes compute what one does, and weights move between plans."""

import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import KeyedJaggedTensor

from ctrkit.config import AutoDis, Embedding, UnifiedEmbedding
from ctrkit.data.batch import Batch
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build_for, build_search, models
from ctrkit.models.search import Search
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import Distributed, Worker, distribute, gather_full_weights, load_full_weights, mean_loss, process_group
from tests.zoo import has_search, info_of, small_settings

INPUTS = Inputs(
    id_fields=(
        IdField(name="user", rows=101),
        IdField(name="a.b", rows=7),
        IdField(name="tags", rows=37, multi_valued=True),
        IdField(name="words", rows=53, multi_valued=True, pooling="sum"),
        IdField(name="past", rows=101, multi_valued=True, of="user", length=3),
    ),
    numeric_fields=("x", "y"),
)
BATCH = 40
STEPS = 6
TASKS = ("first", "second")
"""Of multi-task models."""


@dataclass(frozen=True)
class Case:
    sharding: str
    embedding: Embedding
    model: str
    settings: dict[str, Any] = field(default_factory=lambda: {"hidden": [16]})
    search: bool = False
    """Train the model's search in its place."""

    @property
    def inputs(self) -> Inputs:
        inputs = INPUTS.model_copy(update={"tasks": TASKS}) if info_of(self.model).kind == "multi-task" else INPUTS
        return inputs.model_copy(update={"id_fields": INPUTS.tables}) if has_search(self.model) else inputs

    def __str__(self) -> str:
        e = self.embedding
        return "-".join([self.model, e.kind, self.sharding, e.optimizer, e.l2_rows, *(["search"] if self.search else [])])


SEARCH = {"base": "deepfm", "base_settings": {"hidden": [16]}, "l1": 1e-3, "gate_learning_rate": 0.1, "search_epochs": STEPS}
"""Gates on every value, of bags too, and a penalty on all of them."""
CASES = [
    Case("table_wise", Embedding(dim=8, optimizer="adagrad", l2=1e-3), "deepfm"),
    Case("column_wise", Embedding(dim=8, optimizer="adagrad"), "deepfm"),
    Case("table_wise", Embedding(dim=8, optimizer="rowwise_adagrad", l2=1e-3), "deepfm"),
    Case("table_wise", Embedding(dim=8, optimizer="sgd", learning_rate=1.0), "deepfm"),
    Case("column_wise", Embedding(dim=8, optimizer="adam", l2=1e-3, l2_rows="all"), "deepfm"),
    Case("table_wise", Embedding(dim=8, optimizer="adam", l2=1e-3), "deepfm"),
    Case("table_wise", Embedding(dim=8, optimizer="rowwise_adagrad", l2=1e-3), "din"),
    Case("column_wise", Embedding(dim=8, optimizer="adagrad"), "din"),
    Case("column_wise", UnifiedEmbedding(rows=64, dim=8, lookups=2, feature_lookups={"user": 3}, l2=1e-3), "deepfm"),
    Case("table_wise", Embedding(dim=8, l2=1e-3), "optfs", SEARCH, search=True),
    Case("column_wise", Embedding(dim=8, optimizer="adam", l2=1e-3, l2_rows="all"), "optfs", SEARCH, search=True),
    Case("table_wise", Embedding(dim=8, numeric=AutoDis(meta_embeddings=3)), "deepfm"),
    *(Case("column_wise", Embedding(dim=8), m.name, small_settings(m.name)) for m in models()),
    *(Case("table_wise", Embedding(dim=8), m.name, small_settings(m.name), search=True) for m in models() if has_search(m.name)),
]
COLUMNS = replace(CASES[0], sharding="column_wise")


def global_batches() -> list[list[tuple[list[list[int]], list[float], float]]]:
    """Rows as (ids of each field, numeric values, label)."""
    random = torch.Generator().manual_seed(3)

    def integer(high: int, low: int = 1) -> int:
        return int(torch.randint(low, high, (1,), generator=random))

    def row() -> tuple[list[list[int]], list[float], float]:
        ids = [[integer(f.rows) for _ in range(integer(4, 0) if f.multi_valued else 1)] for f in INPUTS.id_fields]
        x, y = torch.randn(2, generator=random).tolist()
        return ids, [float("nan") if integer(5) == 1 else x, y], float(ids[0][0] % 3 == 0)

    return [[row() for _ in range(BATCH)] for _ in range(STEPS)]


def to_batch(rows: list[tuple[list[list[int]], list[float], float]], inputs: Inputs = INPUTS) -> Batch:
    ids = [[row[0][INPUTS.id_fields.index(field)] for row in rows] for field in inputs.id_fields]
    values = torch.tensor([i for field in ids for bag in field for i in bag], dtype=torch.int64)
    lengths = torch.tensor([len(bag) for field in ids for bag in field], dtype=torch.int32)
    sparse = KeyedJaggedTensor(keys=[f.name for f in inputs.id_fields], values=values, lengths=lengths)
    labels = torch.tensor([row[2] for row in rows])
    if inputs.tasks:
        labels = torch.stack([labels, torch.tensor([float(row[0][1][0] % 2) for row in rows])], dim=1)
    return Batch(sparse, torch.tensor([row[1] for row in rows]), labels)


def share(rows: list[Any], worker: Worker) -> list[Any]:
    """Uneven on purpose: the first of two processes has a quarter of the rows."""
    cut = len(rows) if worker.world == 1 else len(rows) // 4
    return rows[:cut] if worker.rank == 0 else rows[cut:]


def make(case: Case, worker: Worker) -> tuple[Distributed, torch.optim.Optimizer, Search | None]:
    torch.manual_seed(5)
    search, rate = None, None
    if case.search:
        search = build_search(case.model, case.inputs, case.embedding.width, case.settings, case.embedding.numeric)
        assert search is not None
        search.observe(to_batch(rows, case.inputs).sparse for rows in global_batches())
        dense_arch, rate = search.model, search.learning_rate
    else:
        dense_arch = build_for(case.embedding, case.model, case.inputs, case.settings)
    model = CTRModel(dense_arch, case.embedding)
    distributed = distribute(model, case.embedding, worker, seed=1, sharding=[case.sharding], gate_learning_rate=rate)
    return distributed, torch.optim.SGD(dense_arch.parameters(), lr=0.1), search


def train(case: Case, worker: Worker) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tables and dense weights after ``STEPS`` steps, with a learning rate that falls."""
    distributed, dense_optimizer, search = make(case, worker)
    dense_arch = distributed.model.module.dense_arch
    for step, rows in enumerate(global_batches()):
        batch = to_batch(share(rows, worker), case.inputs)
        distributed.table_optimizer.set_learning_rate(1 / (1 + step))
        distributed.table_optimizer.zero_grad()
        dense_optimizer.zero_grad()
        if search is not None:
            search.advance(step, step, STEPS)
        losses = binary_cross_entropy_with_logits(distributed.model(batch), dense_arch.targets(batch.labels), reduction="none")
        loss = mean_loss(losses.sum(1) if case.inputs.tasks else losses)
        if search is not None:
            loss = loss + search.penalty(distributed.table_optimizer.gate_numbers())
        loss.backward()
        distributed.table_optimizer.step()
        dense_optimizer.step()
    dense = {k: v.detach().clone() for k, v in dense_arch.state_dict().items()}
    return gather_full_weights(distributed.model), dense


def two_processes(rank: int, port: int, folder: Path) -> None:
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with process_group() as worker:
        work(worker, folder)


def work(worker: Worker, folder: Path) -> None:
    results = [train(case, worker) for case in CASES]
    start = gather_full_weights(make(COLUMNS, worker)[0].model)
    distributed, *_ = make(COLUMNS, worker)
    weights = torch.load(folder / "one.pt")
    load_full_weights(distributed.model, weights)
    again = gather_full_weights(distributed.model)
    if worker.rank == 0:
        ranks = {plan.name: sorted(plan.bytes_per_rank) for plan in distributed.plan}
        torch.save({"results": results, "start": start, "again": again, "ranks": ranks}, folder / "two.pt")


@pytest.fixture(scope="module")
def worker():
    with process_group() as worker:
        yield worker


@pytest.fixture(scope="module")
def one_process(worker: Worker) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return [train(replace(case, sharding="table_wise"), worker) for case in CASES]


@pytest.fixture(scope="module")
def two(one_process: list[tuple[dict[str, Tensor], dict[str, Tensor]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    torch.save(one_process[0][0], folder / "one.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(two_processes, (port, folder), nprocs=2)
    return torch.load(folder / "two.pt")


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_two_processes_train_what_one_does(case: int, one_process: list[Any], two: dict[str, Any]) -> None:
    for one, other in zip(one_process[case], two["results"][case], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 6])
def test_the_first_step_is_as_long_as_configured_whatever_the_width(dim: int, optimizer: Any, factor: float, worker: Worker) -> None:
    """Under Adagrad every number of a row goes the rate's way at first, under row-wise Adagrad their root mean square does."""
    group, model = ("linear", "lr") if dim == 1 else ("embedding", "dnn")
    case = Case("table_wise", Embedding(dim=dim, optimizer=optimizer, learning_rate=0.02, init_std=1e-12), model, small_settings(model))
    distributed, _, _ = make(case, worker)
    before = gather_full_weights(distributed.model)
    distributed.table_optimizer.set_learning_rate(factor)
    batch = to_batch(global_batches()[0])
    loss = mean_loss(binary_cross_entropy_with_logits(distributed.model(batch), batch.labels, reduction="none"))
    (1e6 * loss).backward()  # far above what the optimizer adds to its divisor
    distributed.table_optimizer.step()
    after = gather_full_weights(distributed.model)
    moved = (after[f"{group}/user"] - before[f"{group}/user"]).norm(dim=1)
    assert moved[moved > 0].tolist() == pytest.approx([factor * 0.02 * dim**0.5] * int((moved > 0).sum()), rel=1e-3)
    assert (moved > 0).sum() > 10


def test_rows_are_drawn_alike_whatever_the_plan(worker: Worker, two: dict[str, Any]) -> None:
    one = gather_full_weights(make(CASES[0], worker)[0].model)
    assert all(torch.equal(one[name], two["start"][name]) for name in one)


def test_weights_of_one_process_load_into_two_and_back(worker: Worker, one_process: list[Any], two: dict[str, Any]) -> None:
    assert all(torch.equal(one_process[0][0][name], two["again"][name]) for name in two["again"])
    distributed, *_ = make(CASES[0], worker)
    load_full_weights(distributed.model, two["results"][0][0])
    assert all(torch.equal(w, two["results"][0][0][name]) for name, w in gather_full_weights(distributed.model).items())


def test_columns_are_cut_over_both_processes(two: dict[str, Any]) -> None:
    """Where the planner finds that to be the better balance: of the largest tables in any case."""
    for name in ("user", "words"):
        assert two["ranks"][f"embedding/{name}"] == [0, 1]


TRAIN_A_STEP = """
from pathlib import Path

import torch
from torchrec import KeyedJaggedTensor
from ctrkit.config import Embedding
from ctrkit.data.batch import Batch
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import distribute, process_group

inputs = Inputs(id_fields=(IdField(name="user", rows=10),), numeric_fields=("x",))


def train_a_step(worker):
    for settings in (Embedding(dim=4), Embedding(dim=4, optimizer="adam")):
        distributed = distribute(CTRModel(build("autoint", inputs, 4, {}), settings), settings, worker, seed=0)
        distributed.model(Batch(sparse, torch.zeros(2, 1), torch.zeros(2))).sum().backward()
        distributed.table_optimizer.step()


sparse = KeyedJaggedTensor(keys=["user"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 1], dtype=torch.int32))
with process_group() as worker:
    train_a_step(worker)
print("done", *(name for task in Path("/proc/self/task").iterdir() if "gloo" in (name := (task / "comm").read_text())))
"""


def test_no_warning_of_the_libraries_beneath_and_no_thread_of_gloo_is_left() -> None:
    """A thread of gloo that drops a tensor while the interpreter shuts down aborts the process, after all its work is done."""
    done = subprocess.run([sys.executable, "-c", TRAIN_A_STEP], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
