"""A compressed group that nobody trained: ids, counts, and a codec with random tables, through its method's search if there is one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctrkit.config import Compression
from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import Method
from ctrkit.embeddings.compression.registry import plan_method
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.schema import IdField, Inputs

FIELDS = {"user": 400, "item": 160, "city": 33, "sex": 7}


def space_of(rows: Mapping[str, int] = FIELDS) -> IdSpace:
    return IdSpace(Inputs(id_fields=tuple(IdField(name=name, rows=count) for name, count in rows.items()), numeric_fields=()))


def counts_of(space: IdSpace) -> Tensor:
    """Of the k-th id of a field 1,000 / k, as in a log."""
    return torch.cat([1000 // torch.arange(1, rows + 1) for rows in space.rows])


def method_of(name: str, budget: float, dim: int = 8, space: IdSpace | None = None, **settings: Any) -> Method:
    return plan_method(Compression.model_validate({"method": name, "budget": budget, **settings}), space or space_of(), dim)


def tables_of(parts: tuple[Part, ...], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {part.name: torch.randn(part.rows, part.width, generator=draw) * 0.1 for part in parts}


def made(method: Method) -> tuple[Codec, dict[str, Tensor]]:
    """A codec of the method, and its full tables."""
    torch.manual_seed(0)
    counts = counts_of(method.space)
    supernet = method.supernet(counts) if method.search_epochs else None
    decision: dict[str, Tensor] = {}
    searched: dict[str, Tensor] = {}
    if supernet is not None:
        parts = tables_of(supernet.parts, seed=1)
        decision = method.decide(supernet, parts, counts, lambda rows: 0.0)
        searched = method.start(decision, parts) if method.starts_from is not None else {}
    codec = method.codec(decision, counts)
    return codec, tables_of(codec.parts) | searched


def looked_up(codec: Codec, tables: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """``codec.combine`` of what its tables hold."""
    rows = [tables[part.name][place] for (_, part), place in zip(codec.lookups, codec.places(ids), strict=True)]
    return codec.combine(ids, rows)
