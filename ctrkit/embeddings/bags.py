"""Bags taken apart, for what must be done to each value before they are pooled."""

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.schema import Inputs


def one_value_a_row(sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Row k of a field holds the field's k-th value of the whole batch; there are as many rows as the fullest field has values."""
    counts = sparse.length_per_key()
    rows = max(sparse.stride(), *counts)
    lengths = torch.zeros(len(counts), rows, dtype=sparse.lengths().dtype)
    for field, count in enumerate(counts):
        lengths[field, :count] = 1
    return KeyedJaggedTensor(keys=sparse.keys(), values=sparse.values(), lengths=lengths.flatten().to(sparse.device()))


def pool(vectors: Tensor, sparse: KeyedJaggedTensor, inputs: Inputs) -> Tensor:
    """Vectors looked up with ``one_value_a_row(sparse)`` -> those of the bags. ``[values, fields, dim]`` -> ``[batch, fields, dim]``."""
    rows, counts = sparse.stride(), sparse.length_per_key()
    all_lengths = sparse.lengths().view(len(counts), rows)
    pooled = []
    for number, (field, count, lengths) in enumerate(zip(inputs.id_fields, counts, all_lengths, strict=True)):
        own = vectors[:count, number]
        pooled.append(pool_bag(own, lengths, field.pooling) if field.multi_valued else own)
    return torch.stack(pooled, dim=1)


def pool_bag(vectors: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """The mean or sum of each bag, zeros for an empty one: ``[values, dim]`` in order, int ``[rows]`` -> ``[rows, dim]``."""
    bag = torch.arange(len(lengths), device=vectors.device).repeat_interleave(lengths, output_size=len(vectors))
    total = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add(0, bag, vectors)
    return total / lengths.clamp(min=1).unsqueeze(1) if pooling == "mean" else total
