"""Deep hash embedding: no table, a network of an id's hashes (Kang et al., Learning to Embed Categorical Features without Embedding Tables for
Recommendation, KDD 2021, arXiv 2010.10784)::

    h_j(x) = ((a_j x + b_j) mod p) mod 10^6      j = 1 .. k, p = 2^31 - 1
    e_j(x) = 2 h_j(x) / (10^6 - 1) - 1           uniform; or Gaussian, by Box and Muller's transform of pairs of hashes
    v(x)   = MLP(e(x))                           hidden layers: linear, BatchNorm, Mish

The width of the hidden layers is solved from the budget. The paper's 1,024 hashes would take all of a small budget, so they are no more than
4 x the width there: the first layer is then no larger than the other four. What is stored is a, b and the MLP, BatchNorm folded into it.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec, seeded
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.unified import PRIME
from ctrkit.layers.normalisation import BatchNorm

Encoding = Literal["uniform", "gaussian"]

_BUCKETS = 10**6
_HASH_BYTES = 8
_INIT_STD = 0.01


class DHESettings(MethodSettings):
    hashes: int = Field(default=1024, ge=2, multiple_of=2, description="at most: the paper's k")
    layers: int = Field(default=5, ge=1, description="hidden layers")
    encoding: Encoding = Field(default="uniform", description="what the hashes are mapped to")


def dhe_bytes(hashes: int, width: int, layers: int, dim: int) -> int:
    """Of the hashes' a and b, and of the MLP with its biases."""
    numbers = (hashes + 1) * width + (layers - 1) * (width + 1) * width + (width + 1) * dim
    return hashes * _HASH_BYTES + numbers * FLOAT_BYTES


def encode(ids: Tensor, slopes: Tensor, offsets: Tensor, encoding: Encoding) -> Tensor:
    """int64 ``[n]`` -> float32 ``[n, k]``; ``slopes`` and ``offsets`` are int32 ``[k]``."""
    hashed = ((ids % PRIME).unsqueeze(1) * slopes.to(torch.int64) + offsets.to(torch.int64)) % PRIME % _BUCKETS
    if encoding == "uniform":
        return hashed.to(torch.float32) * (2 / (_BUCKETS - 1)) - 1
    radius, angle = ((hashed.to(torch.float32) + 0.5) / _BUCKETS).chunk(2, dim=1)
    radius, angle = torch.sqrt(-2 * torch.log(radius)), 2 * math.pi * angle
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)


class DHECodec(Codec):
    slopes: Tensor
    offsets: Tensor

    def __init__(self, space: IdSpace, dim: int, hashes: int, width: int, layers: int, encoding: Encoding) -> None:
        super().__init__(space, dim)
        self.encoding: Encoding = encoding
        draw = seeded("dhe", hashes)
        self.register_buffer("slopes", torch.randint(1, PRIME, (hashes,), generator=draw).to(torch.int32))
        self.register_buffer("offsets", torch.randint(0, PRIME, (hashes,), generator=draw).to(torch.int32))
        widths = [hashes] + [width] * layers
        self.linears = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(width) for _ in range(layers))
        self.last = nn.Linear(width, dim)
        nn.init.normal_(self.last.weight, std=_INIT_STD / math.sqrt(width))
        nn.init.zeros_(self.last.bias)

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The network sees each distinct id once; the norms weigh it as often as it is there, so nothing else changes."""
        distinct, place, times = ids.unique(return_inverse=True, return_counts=True)
        x = encode(distinct, self.slopes, self.offsets, self.encoding)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = functional.mish(norm(linear(x), times))
        return functional.embedding(place, self.last(x))

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredDHE(self)


class StoredDHE(nn.Module):
    slopes: Tensor
    offsets: Tensor

    def __init__(self, codec: DHECodec) -> None:
        super().__init__()
        self.encoding: Encoding = codec.encoding
        self.register_buffer("slopes", codec.slopes.clone())
        self.register_buffer("offsets", codec.offsets.clone())
        layers = [_folded(linear, norm) for linear, norm in zip(codec.linears, codec.norms, strict=True)]
        layers.append((codec.last.weight, codec.last.bias))
        self.depth = len(layers)
        for number, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight_{number}", weight.detach().clone())
            self.register_buffer(f"bias_{number}", bias.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        x = encode(ids, self.slopes, self.offsets, self.encoding)
        for number in range(self.depth):
            x = functional.linear(x, self.get_buffer(f"weight_{number}"), self.get_buffer(f"bias_{number}"))
            if number + 1 < self.depth:
                x = functional.mish(x)
        return x


def _folded(linear: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer and the BatchNorm behind it, as evaluation has it."""
    assert isinstance(linear, nn.Linear) and isinstance(norm, BatchNorm)
    assert norm.scale is not None and norm.shift is not None
    scale = norm.scale / torch.sqrt(norm.variance + norm.eps)
    return linear.weight * scale.unsqueeze(1), norm.shift - norm.mean * scale


@register(
    "dhe",
    kind="inter-feature: hashing, hybrid",
    paper="Kang et al., Learning to Embed Categorical Features without Embedding Tables for Recommendation, KDD 2021",
    sharded="nothing: hashes and MLP are in every process",
    benchmarked=True,
)
class DHE(Method):
    Settings = DHESettings
    has_rows = False

    def __init__(self, settings: DHESettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        least = dhe_bytes(2, 1, settings.layers, dim)
        if least > self.allowed_bytes:
            raise self.refuse(least, "Raise it, or take fewer layers")
        fewest, most = 1, self.allowed_bytes
        while fewest < most:
            middle = (fewest + most + 1) // 2
            fits = dhe_bytes(min(settings.hashes, 4 * middle), middle, settings.layers, dim) <= self.allowed_bytes
            fewest, most = (middle, most) if fits else (fewest, middle - 1)
        self.width = fewest
        left = self.allowed_bytes - dhe_bytes(0, self.width, settings.layers, dim)
        self.hashes = min(settings.hashes, left // (_HASH_BYTES + self.width * FLOAT_BYTES) // 2 * 2)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return DHECodec(self.space, self.dim, self.hashes, self.width, self.settings.layers, self.settings.encoding)
