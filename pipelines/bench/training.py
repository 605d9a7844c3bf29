"""``ctrkit bench training``: AutoInt's samples per second, against the same model written plainly.

The plain side is what one finds in most repositories: one ``nn.Embedding`` a field, the attention formula as printed, float32,
and one dense Adam over everything. Both sides have the same sizes, see the same batches in the same process, take turns round by
round, and take the same step: forward, logloss, backward, gradient norm clipped to 10, optimizers.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_
from torchrec import KeyedJaggedTensor

from ctrkit.config import Embedding
from ctrkit.data.batch import Batch
from ctrkit.models.base import CTRModel
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import Worker, distribute, mean_loss, process_group
from ctrkit.training.metrics import auc

if TYPE_CHECKING:
    from rich.console import Console

CLIP_NORM = 10.0
LEARNING_RATE = 1e-3
TEST_BATCHES = 10
STEPS_A_ROUND = 5


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batches."""

    fields: int = 39
    dim: int = 16
    batch_size: int = 4096
    layers: int = 3
    heads: int = 2
    attention_dim: int = 64


def bench_training(
    rows: Sequence[int] = (1_000_000, 10_000_000),
    steps: int = 100,
    sizes: Sizes = Sizes(),
    precisions: Sequence[Literal["fp32", "bf16"]] = ("fp32", "bf16"),
    seed: int = 0,
    threads: int | None = None,
    console: "Console | None" = None,
) -> dict[str, Any]:
    """Trains both sides on learnable synthetic rows and prints a table.

    Args:
        rows: of all tables together, one measurement each.
        steps: training steps each side takes; the first round of ``STEPS_A_ROUND`` is not timed.
        precisions: of ctrkit's dense arch, each a side of its own.
        threads: CPU threads; default all cores.

    Returns:
        {fields, dim, batch_size, attention_dim, threads, results: [{rows, plain: {samples_per_s, auc}, fp32: {samples_per_s, auc,
        ratio}, bf16: {...}}]}; samples per second are medians over rounds.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if threads:
        torch.set_num_threads(threads)
    table = Table(title=f"training AutoInt: {sizes.fields} fields x {sizes.dim}, batch {sizes.batch_size}, {steps} steps")
    for heading in ("rows of tables", "side", "samples/s", "ratio", "AUC"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    results = []
    for count in rows:
        sides = _measure(count, steps, sizes, precisions, seed, console)
        plain = sides["plain"]["samples_per_s"]
        for name, side in sides.items():
            side["ratio"] = side["samples_per_s"] / plain
            label = name if name == "plain" else f"ctrkit {name}"
            table.add_row(f"{count:,}", label, f"{side['samples_per_s']:,.0f}", f"{side['ratio']:.2f}", f"{side['auc']:.4f}")
        results.append({"rows": count, **sides})
    console.print(table)
    return {
        "fields": sizes.fields,
        "dim": sizes.dim,
        "batch_size": sizes.batch_size,
        "attention_dim": sizes.attention_dim,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "results": results,
    }


def _measure(rows: int, steps: int, sizes: Sizes, precisions: Sequence[str], seed: int, console: "Console") -> dict[str, dict[str, float]]:
    clicks = Clicks(rows // sizes.fields, sizes.fields, seed)
    with process_group() as worker:
        sides: dict[str, Side] = {"plain": plain_side(rows // sizes.fields, sizes, seed)}
        sides |= {precision: ctrkit_side(rows // sizes.fields, sizes, precision, seed, worker) for precision in precisions}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        with console.status(f"{rows:,} rows of tables"):
            for number in range(max(2, steps // STEPS_A_ROUND)):
                batches = [clicks.batch(sizes.batch_size, step) for step in range(number * STEPS_A_ROUND, (number + 1) * STEPS_A_ROUND)]
                for name, side in sides.items():
                    prepared = [side.prepare(*batch) for batch in batches]
                    start = time.perf_counter()
                    for batch in prepared:
                        side.step(batch)
                    seconds = time.perf_counter() - start
                    if number:
                        speeds[name].append(len(batches) * sizes.batch_size / seconds)
        test = [clicks.batch(sizes.batch_size, -1 - number) for number in range(TEST_BATCHES)]
        labels = torch.cat([y for _, y in test]).numpy()
        return {
            name: {
                "samples_per_s": statistics.median(speeds[name]),
                "auc": auc(labels, torch.cat([side.predict(side.prepare(*batch)) for batch in test]).numpy()),
            }
            for name, side in sides.items()
        }


class Clicks:
    """Learnable rows: popular ids are frequent, and the log-odds are a sum of effects of ids and of products of two fields' traits."""

    def __init__(self, ids: int, fields: int, seed: int) -> None:
        self.ids, self.seed = ids, seed
        random = torch.Generator().manual_seed(seed)
        self.effects = torch.randn(fields, ids, generator=random) / fields**0.5
        self.traits = torch.randn(fields, ids, generator=random)

    def batch(self, size: int, number: int) -> tuple[Tensor, Tensor]:
        """Batch ``number``: ids ``[size, fields]`` from 1 on, labels ``[size]``."""
        fields = len(self.effects)
        random = torch.Generator().manual_seed((self.seed << 32) + number + TEST_BATCHES)
        ids = ((self.ids - 1) * torch.rand(fields, size, generator=random) ** 6).long() + 1
        traits = self.traits.gather(1, ids)
        logits = 1.5 * self.effects.gather(1, ids).sum(0) + (traits[:-1:2] * traits[1::2]).sum(0) / (fields / 2) ** 0.5 - 1
        return ids.t().contiguous(), torch.bernoulli(logits.sigmoid(), generator=random)


@dataclass(frozen=True)
class Side:
    """One way to train. ``prepare`` is the loader's work and not timed."""

    prepare: Callable[[Tensor, Tensor], Any]
    step: Callable[[Any], None]
    predict: Callable[[Any], Tensor]


class PlainInteraction(nn.Module):
    """AutoInt's interacting layer as the paper prints it."""

    def __init__(self, inputs: int, attention_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (nn.Linear(inputs, attention_dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, fields, _ = x.shape
        query, key, value = (f(x).view(batch, fields, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)), dim=-1)
        attended = torch.matmul(weights, value).transpose(1, 2).contiguous().view(batch, fields, -1)
        return torch.relu(attended + self.residual(x))


class PlainAutoInt(nn.Module):
    """ids ``[batch, fields]`` -> logits ``[batch]``."""

    def __init__(self, ids: int, sizes: Sizes) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ids, sizes.dim) for _ in range(sizes.fields))
        for weight in self.tables.parameters():
            nn.init.normal_(weight, std=0.01)
        widths = [sizes.dim] + [sizes.attention_dim] * sizes.layers
        self.attention = nn.Sequential(*(PlainInteraction(width, sizes.attention_dim, sizes.heads) for width in widths[:-1]))
        self.output = nn.Linear(sizes.fields * sizes.attention_dim, 1)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1)
        return self.output(self.attention(vectors).flatten(1)).squeeze(1)


def plain_side(ids: int, sizes: Sizes, seed: int) -> Side:
    """Eager float32 and one Adam over all parameters, rows of tables included."""
    torch.manual_seed(seed)
    model = PlainAutoInt(ids, sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(batch[0]), batch[1]).backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    @torch.no_grad()
    def predict(batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).sigmoid()

    return Side(lambda ids, labels: (ids, labels), step, predict)


def ctrkit_side(ids: int, sizes: Sizes, precision: str, seed: int, worker: Worker) -> Side:
    """What ``ctrkit train`` does in a step, with its default optimizers."""
    torch.manual_seed(seed)
    inputs = Inputs(id_fields=tuple(IdField(name=f"field_{i}", rows=ids) for i in range(sizes.fields)), numeric_fields=())
    settings = {"layers": sizes.layers, "heads": sizes.heads, "attention_dim": sizes.attention_dim}
    dense_arch = build("autoint", inputs, sizes.dim, settings)
    embedding = Embedding(dim=sizes.dim)
    distributed = distribute(CTRModel(dense_arch, embedding, precision), embedding, worker, seed, sizes.batch_size)
    model, table_optimizer = distributed.model, distributed.table_optimizer
    parameters = list(dense_arch.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    keys = [field.name for field in inputs.id_fields]

    def prepare(ids: Tensor, labels: Tensor) -> Batch:
        rows = len(labels)
        sparse = KeyedJaggedTensor(keys, values=ids.t().flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int32))
        return Batch(sparse, torch.empty(rows, 0), labels)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        table_optimizer.zero_grad()
        mean_loss(binary_cross_entropy_with_logits(model(batch), batch.labels, reduction="none")).backward()
        clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        table_optimizer.step()

    @torch.no_grad()
    def predict(batch: Batch) -> Tensor:
        model.eval()
        return model(batch).sigmoid()

    return Side(prepare, step, predict)
