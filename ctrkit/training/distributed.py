"""TorchRec's part of training: processes, the sharding plan, and weights gathered from and spread over any plan.

One process is a world of one: the same code, the same ``DistributedModelParallel``. More come from ``torchrun``.
"""

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, PlannerError, TopologyFactory, TrainerConfig
from torchrec.distributed.types import ParameterSharding, ShardingPlan
from torchrec.optim import SGD, Adagrad, RowWiseAdagrad

from ctrkit.config import Embedding
from ctrkit.embeddings.compression.codec import Shard
from ctrkit.embeddings.tables import WIDTH_UNIT, Tables, average_rows, stored_width
from ctrkit.errors import CtrkitError
from ctrkit.models.base import TabledModel

_SHARDERS = cast(Any, [EmbeddingBagCollectionSharder()])

_FUSED: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "sgd": SGD,
}
_FBGEMM = torch.library.Library("fbgemm", "IMPL")
"""FBGEMM differentiates its dense look-up inside the CPU kernel but does not tell torch, which warns of wrong gradients."""
_FBGEMM.impl("dense_embedding_codegen_lookup_function", torch.library.fallthrough_kernel, "AutogradCPU")

_INIT_ROWS = 65_536
"""Rows drawn from one random stream, so that a shard's rows come out the same however the table is cut."""


@dataclass(frozen=True)
class Worker:
    """This process: one of ``world``, with its device."""

    rank: int
    world: int
    device: torch.device


@contextmanager
def process_group() -> Iterator[Worker]:
    """Joins the processes torchrun started, or forms a group of one; leaves it at the end.

    gloo on CPU, nccl where this process has a GPU.

    Raises:
        CtrkitError: more processes on this machine than GPUs.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise CtrkitError(f"process {local_rank} has no GPU: this machine has {gpus}", f"Start torchrun with --nproc-per-node {gpus}")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    backend = "nccl" if gpus else "gloo"
    if gpus:
        torch.cuda.set_device(device)
    if launched:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield Worker(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
        gc.collect()  # frees the sharded modules, whose cycles would keep gloo's threads: one that outlives the interpreter aborts it


class TableOptimizer:
    """The tables' optimizer, fused into the backward pass or dense (``adam``); gates have a dense Adam of their own rate.

    ``zero_grad()`` before and ``step()`` after ``loss.backward()``: a fused optimizer has done its work by then and does nothing.
    """

    def __init__(self, model: DistributedModelParallel, settings: Embedding, gate_learning_rate: float | None = None) -> None:
        module = cast(TabledModel, model.module)
        lookups = [m for lookup in getattr(module.tables.collection, "_lookups", ()) for m in lookup.modules()]
        self._kernels = [m for m in lookups if isinstance(m, SplitTableBatchedEmbeddingBagsCodegen)]
        self._kernel_rates = [kernel.get_learning_rate() for kernel in self._kernels]
        dense = [m for m in lookups if isinstance(m, BatchedDenseEmbeddingBag)]
        gates = [any(t.name in module.tables.gate_tables for t in m.config.embedding_tables) for m in dense]
        weights = [cast(nn.Parameter, m.emb_module.weights) for m in dense]
        self.gates = [w for w, of_gates in zip(weights, gates, strict=True) if of_gates]
        self.parameters = [w for w, of_gates in zip(weights, gates, strict=True) if not of_gates]
        groups: list[dict[str, Any]] = []
        if self.parameters:
            all_rows = settings.l2 if settings.l2_rows == "all" else 0.0
            groups.append({"params": self.parameters, "lr": settings.learning_rate, "weight_decay": all_rows})
        if self.gates:
            groups.append({"params": self.gates, "lr": gate_learning_rate})
        self._rates = [group["lr"] for group in groups]
        self._adam = torch.optim.Adam(groups, fused=True) if groups else None

    def set_learning_rate(self, factor: float) -> None:
        """The configured learning rates times ``factor`` from the next step on."""
        for kernel, rate in zip(self._kernels, self._kernel_rates, strict=True):
            kernel.set_learning_rate(rate * factor)
        if self._adam is not None:
            for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor

    def gate_numbers(self) -> list[Tensor]:
        """All gates' numbers in this process, padding's included; gradients flow back to them. Each ``[rows of some tables]``."""
        return [weights.view(-1, WIDTH_UNIT)[:, 0] for weights in self.gates]

    def zero_grad(self) -> None:
        if self._adam is not None:
            self._adam.zero_grad()

    def step(self) -> None:
        if self._adam is not None:
            self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """This process' optimizer state: plain tensors, to be saved a file a rank and loaded under the same plan."""
        states = [[[s.clone() for s in table] for table in kernel.split_optimizer_states()] for kernel in self._kernels]
        return {"fused": states, "adam": self._adam.state_dict() if self._adam is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for kernel, saved in zip(self._kernels, state["fused"], strict=True):
            for table, values in zip(kernel.split_optimizer_states(), saved, strict=True):
                for current, value in zip(table, values, strict=True):
                    current.copy_(value)
        if self._adam is not None:
            self._adam.load_state_dict(state["adam"])


@dataclass(frozen=True)
class PlannedTable:
    """One row of the sharding plan."""

    name: str
    rows: int
    dim: int
    sharding: str
    kernel: str
    bytes_per_rank: dict[int, int]
    """rank -> bytes of weights, optimizer state and (dense) gradient."""


@dataclass(frozen=True)
class Distributed:
    """A sharded model: call ``model(batch)`` for logits; ``table_optimizer`` steps the tables."""

    model: DistributedModelParallel
    table_optimizer: TableOptimizer
    plan: list[PlannedTable]


def distribute(
    model: TabledModel,
    settings: Embedding,
    worker: Worker,
    seed: int,
    batch_size: int = 4096,
    sharding: Sequence[str] | None = None,
    gate_learning_rate: float | None = None,
) -> Distributed:
    """Plans and shards the tables, wraps the dense arch in DDP, and draws the tables' rows.

    Rows are N(0, init_std^2), the same for a seed whatever the world size; row 0 (padding) is zero.

    Args:
        batch_size: rows a step over all processes, for the planner.
        sharding: sharding types the planner chooses from; default ``sharding_types``.
        gate_learning_rate: of the gates, in a model that has some.

    Raises:
        CtrkitError: the tables do not fit the machines' memory.
    """
    tables = model.tables
    dense = frozenset(tables.weight_names) if settings.optimizer == "adam" else tables.gate_tables
    for name, bag in tables.collection.embedding_bags.items():
        if name not in dense:
            rate = settings.learning_rate * _of_rate(settings.optimizer, tables.dims[name])
            apply_optimizer_in_backward(_FUSED[settings.optimizer], [bag.weight], {"lr": rate})
    model.dense_arch.to(worker.device)
    plan = _plan(model, dense, worker, batch_size, sharding or sharding_types(settings, worker))
    parallel = DistributedModelParallel(model, device=worker.device, plan=plan, sharders=_SHARDERS)
    _initialise(parallel, seed)
    return Distributed(parallel, TableOptimizer(parallel, settings, gate_learning_rate), describe_plan(plan, tables, settings))


def _of_rate(optimizer: str, dim: int) -> float:
    """What the rate is multiplied with: row-wise Adagrad divides by the mean square over a row, which padding columns make smaller."""
    return math.sqrt(dim / stored_width(dim)) if optimizer == "rowwise_adagrad" else 1.0


def sharding_types(settings: Embedding, worker: Worker) -> list[str]:
    """What the planner chooses from: whole tables, and tables cut by rows (GPU) or by columns (CPU, where TorchRec cuts no rows).

    Replicated tables have no fused optimizer, and row-wise Adagrad is another optimizer when columns are cut: neither is offered.
    """
    if worker.world == 1 or settings.compression is not None and worker.device.type == "cpu":  # a codec is told of whole rows
        return ["table_wise"]
    if worker.device.type == "cuda":
        return ["table_wise", "row_wise"]
    return ["table_wise"] if settings.optimizer == "rowwise_adagrad" else ["table_wise", "column_wise"]


def mean_loss(losses: Tensor) -> Tensor:
    """Mean of per-row losses over the rows of all processes, up to the averaging of gradients over processes that follows.

    So N processes compute the gradient one would, even where their shares of a batch differ in size. ``[rows]`` -> scalar.
    """
    return losses.sum() / average_rows(losses.shape[0], losses.device)


def describe_plan(plan: ShardingPlan, tables: Tables, settings: Embedding) -> list[PlannedTable]:
    """The plan as rows: where each table's shards lie and the memory they take."""
    copies = {"sgd": 1.0, "adagrad": 2.0, "adam": 4.0, "rowwise_adagrad": 1.0}
    rows = []
    for config in tables.configs:
        sharding = _parameter_sharding(plan, config.name)
        optimizer = "adam" if config.name in tables.gate_tables else settings.optimizer
        per_rank: dict[int, int] = {}
        for shard in cast(EnumerableShardingSpec, sharding.sharding_spec).shards:
            height, width = shard.shard_sizes
            extra = height if optimizer == "rowwise_adagrad" else 0
            rank = cast(Any, shard.placement).rank()
            per_rank[rank] = per_rank.get(rank, 0) + int(4 * (copies[optimizer] * height * width + extra))
        name = tables.weight_names[config.name]
        kernel = sharding.compute_kernel
        rows.append(PlannedTable(name, config.num_embeddings, tables.dims[config.name], sharding.sharding_type, kernel, per_rank))
    return rows


def gather_full_weights(model: DistributedModelParallel) -> dict[str, Tensor]:
    """All tables' weights on rank 0: ``"<group>/<field>" -> [rows, dim]`` on the CPU; empty on other ranks. Every process must call it."""
    tables = _tables(model)
    full: dict[str, Tensor] = {}
    for name, weight in _sharded_weights(tables).items():
        out = torch.empty(weight.size(), device=model.device) if dist.get_rank() == 0 else None
        weight.gather(dst=0, out=out)
        if out is not None:
            full[tables.weight_names[name]] = out[:, : tables.dims[name]].cpu().contiguous()
    return full


def load_full_weights(model: DistributedModelParallel, weights: dict[str, Tensor]) -> None:
    """Puts what ``gather_full_weights`` gave, or some of it, into a model under any plan. Every process calls it with all weights."""
    tables = _tables(model)
    for name, sharded in _sharded_weights(tables).items():
        full = weights.get(tables.weight_names[name])
        if full is None:
            continue
        for shard in sharded.local_shards():
            (row, column), (height, width) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            part = full[row : row + height, column : column + width]
            shard.tensor.zero_()
            shard.tensor[:, : part.shape[1]].copy_(part)


def local_shards(model: DistributedModelParallel) -> dict[str, list[Shard]]:
    """Of every table the rows in this process, to be changed in place: ``"<group>/<part>"`` -> shards, their padding columns left out."""
    tables = _tables(model)
    return {
        tables.weight_names[name]: [
            Shard(shard.metadata.shard_offsets[0], shard.tensor[:, : tables.dims[name]]) for shard in sharded.local_shards()
        ]
        for name, sharded in _sharded_weights(tables).items()
    }


def add_up(tensor: Tensor) -> Tensor:
    """Its sum over all processes."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def _initialise(model: DistributedModelParallel, seed: int) -> None:
    tables = _tables(model)
    for name, sharded in _sharded_weights(tables).items():
        width, start_value = sharded.size(1), tables.starts.get(name)
        for shard in sharded.local_shards():
            (row, column), (height, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            for block in range(row // _INIT_ROWS, -(-(row + height) // _INIT_ROWS)):
                first = block * _INIT_ROWS
                if start_value is None:
                    values = _random_rows(f"{seed}/{tables.weight_names[name]}/{block}", width).mul_(tables.stds[name])
                else:
                    values = torch.full((_INIT_ROWS, width), start_value)
                values[:, tables.dims[name] :] = 0
                if block == 0 and name in tables.padded:
                    values[0] = 0
                start, stop = max(first, row), min(first + _INIT_ROWS, row + height)
                shard.tensor[start - row : stop - row].copy_(values[start - first : stop - first, column : column + columns])


def _random_rows(stream: str, width: int) -> Tensor:
    seed = int.from_bytes(blake2b(stream.encode(), digest_size=7).digest(), "big")
    return torch.randn(_INIT_ROWS, width, generator=torch.Generator().manual_seed(seed))


def _plan(model: TabledModel, dense: frozenset[str], worker: Worker, batch_size: int, sharding: Sequence[str]) -> ShardingPlan:
    configs = model.tables.configs
    if not configs:
        return ShardingPlan({})
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(worker.world)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = torch.cuda.get_device_properties(worker.device).total_memory if worker.device.type == "cuda" else None
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=worker.world, local_world_size=local),
            HardwareConfig(hbm_cap_bytes=gpu, ddr_cap_bytes=memory // local),
            KernelConfig(compute_device=worker.device.type),
        ),
        batch_size=max(1, batch_size // worker.world),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        constraints={
            c.name: ParameterConstraints(
                sharding_types=list(sharding),
                pooling_factors=[1.0] * len(c.feature_names),
                compute_kernels=[EmbeddingComputeKernel.FUSED.value],
                min_partition=-(-c.embedding_dim // worker.world // WIDTH_UNIT) * WIDTH_UNIT,
            )
            for c in configs
        },
        stats=[],
    )
    try:
        plan = planner.collective_plan(model, _SHARDERS, dist.group.WORLD)
    except PlannerError as error:
        need = sum(4 * c.num_embeddings * c.embedding_dim for c in configs)
        available = (gpu or memory // local) * worker.world
        raise CtrkitError(
            f"the tables ({need / 1e9:.1f} GB of weights, and their optimizer's state) do not fit {worker.world} process(es) "
            f"with {available / 1e9:.1f} GB in all",
            "Lower embedding.dim and embedding.rows or the features' max_size or buckets, use a fused optimizer, or start more processes with torchrun",
        ) from error
    for table in dense:  # the planner offers this kernel for replicated tables only, but sharded ones run it as well
        _parameter_sharding(plan, table).compute_kernel = EmbeddingComputeKernel.DENSE.value
    return plan


def _parameter_sharding(plan: ShardingPlan, table: str) -> ParameterSharding:
    (module,) = plan.plan.values()
    return cast(Any, module)[table]


def _tables(model: DistributedModelParallel) -> Tables:
    return cast(TabledModel, model.module).tables


def _sharded_weights(tables: Tables) -> dict[str, ShardedTensor]:
    state = tables.collection.state_dict()
    return {name: state[f"embedding_bags.{name}.weight"] for name in tables.weight_names}
