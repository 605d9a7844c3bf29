"""How fast a run's compressed embeddings are looked up and differentiated, against plain tables."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.hash import HashCodec
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.models.registry import rebuild
from ctrkit.training.run import load_run

ROWS, REPEATS = 1024, 30


def lookup_ratio(run: Path) -> float:
    """Seconds of forward and backward of a run's codecs, those of a full table of the same vectors being 1.

    A batch is 1024 rows, a value a table drawn uniformly; both sides take turns, and the median of 30 turns counts. Tables give sparse
    gradients; there is no optimizer.

    Args:
        run: folder of a finished run, compressed or not.
    """
    experiment, inputs, weights = load_run(run)
    model = rebuild(weights, inputs)
    space = IdSpace(inputs)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(rows, (ROWS,), generator=generator) for rows in space.rows]
    ids = torch.cat([draw + start for draw, start in zip(draws, space.starts.tolist(), strict=True)])
    spent, spent_plain = 0.0, 0.0
    for group in model.groups(experiment.embedding.width):
        plain = HashCodec(space, group.dim, space.total)  # as many rows as ids: the identity
        codec = plain if model.codecs is None else model.codecs.codec(group.name)
        full = {"rows": torch.randn(space.total, group.dim, generator=generator)}
        trained = {part.name: weights["tables"][f"{group.name}/{part.name}"] for part in codec.parts} if codec is not plain else full
        sides = [(codec.train(), _trainable(trained)), (plain, _trainable(full))]
        turns = [[_seconds(side, tables, ids) for side, tables in sides] for _ in range(REPEATS)]
        spent += median(turn[0] for turn in turns)
        spent_plain += median(turn[1] for turn in turns)
    return spent / spent_plain


def _trainable(tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: table.detach().clone().requires_grad_() for name, table in tables.items()}


def _seconds(codec: Codec, tables: Mapping[str, Tensor], ids: Tensor) -> float:
    codec.zero_grad()
    for table in tables.values():
        table.grad = None
    start = perf_counter()
    places = codec.places(ids)
    looked_up = [functional.embedding(rows, tables[part.name], sparse=True) for rows, (_, part) in zip(places, codec.lookups, strict=True)]
    codec.combine(ids, looked_up).sum().backward()
    return perf_counter() - start
