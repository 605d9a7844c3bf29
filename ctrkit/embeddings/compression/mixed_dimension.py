"""Mixed dimension embeddings: the more ids a field has, the narrower its rows are (Ginart et al., Mixed Dimension Embeddings with
Application to Memory-Efficient Recommendation Systems, ISIT 2021)::

    v_f(x) = E_f[x] P_f        E_f: [n_f, d_f]; P_f: [d_f, dim], none if d_f = dim
    d_f = lambda p_f^alpha     rounded, between 1 and dim; p_f = 1 / n_f: the chance of a row of a field that every example looks up once

lambda is the largest that the budget has room for. The paper's widths may be rounded to powers of two: any whole number comes nearer to
the budget. A projection that would take more than it saves is left out, and its field is ``dim`` wide.

The rows of all fields of one width are one TorchRec table, with a spare row that ids of other widths look up, which is not stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace, table_of


@dataclass(frozen=True)
class Piece:
    """The fields of one width, by number."""

    width: int
    tables: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where each id's row is.

    Attributes:
        pieces: one a width.
        starts: where each field's ids start.
        piece_of: field -> its piece.
        number_of: field -> its place in its piece.
        shift_of: field -> what is added to its ids to have their rows in its piece.
    """

    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    piece_of: tuple[int, ...]
    number_of: tuple[int, ...]
    shift_of: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[int], widths: Sequence[int]) -> "Layout":
        starts = tuple(accumulate(rows, initial=0))[:-1]
        pieces = tuple(Piece(width, tuple(t for t, own in enumerate(widths) if own == width)) for width in sorted(set(widths)))
        found = {}
        for k, piece in enumerate(pieces):
            first = 0
            for number, table in enumerate(piece.tables):
                found[table] = k, number, first - starts[table]
                first += rows[table]
        piece_of, number_of, shift_of = zip(*(found[table] for table in range(len(rows))), strict=True)
        return cls(pieces, starts, piece_of, number_of, shift_of)

    def table_of(self, ids: Tensor) -> Tensor:
        """The field of each id, by number. int64 ``[n]`` -> int64 ``[n]``."""
        return table_of(ids, torch.tensor(self.starts, device=ids.device))

    def rows(self, ids: Tensor, elsewhere: Sequence[int]) -> list[Tensor]:
        """The row in each piece of each id; of those in other pieces ``elsewhere``. int64 ``[n]`` -> a ``[n]`` for each piece."""
        table = self.table_of(ids)
        piece, shift = _pick(self.piece_of, table), _pick(self.shift_of, table)
        return [torch.where(piece == k, ids + shift, other) for k, other in enumerate(elsewhere)]


class MixedCodec(Codec):
    """
    Args:
        widths: of each table of ``space``, 1 .. dim.

    Vectors start as spread as ``embedding.init_std`` says: a projection starts as N(0, 1 / width).
    """

    def __init__(self, space: IdSpace, dim: int, widths: Sequence[int]) -> None:
        super().__init__(space, dim)
        self.layout = Layout.of(space.rows, widths)
        self.spare = [sum(space.rows[table] for table in piece.tables) for piece in self.layout.pieces]
        self.parts = tuple(
            Part(f"width_{piece.width}", rows + 1, piece.width) for piece, rows in zip(self.layout.pieces, self.spare, strict=True)
        )
        self.projections = nn.ParameterDict(
            {
                f"width_{piece.width}": nn.Parameter(torch.randn(len(piece.tables), piece.width, dim) / piece.width**0.5)
                for piece in self.layout.pieces
                if piece.width < dim
            }
        )

    def places(self, ids: Tensor) -> list[Tensor]:
        return self.layout.rows(ids, self.spare)

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        table = self.layout.table_of(ids)
        found = vectors[0].new_zeros(len(ids), self.dim)
        for part, piece, rows in zip(self.parts, self.layout.pieces, vectors, strict=True):
            for number, own in enumerate(piece.tables):
                chosen = (table == own).nonzero().squeeze(1)
                projected = rows[chosen] @ self.projections[part.name][number] if piece.width < self.dim else rows[chosen]
                found = found.index_add(0, chosen, projected)
        return found

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        return StoredMixed(self, parts)


class StoredMixed(nn.Module):
    """A table, without its spare row, and projections ``[fields, width, dim]`` for each width."""

    def __init__(self, codec: MixedCodec, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layout = codec.layout
        for part in codec.parts:
            self.register_buffer(part.name, parts[part.name][:-1].detach().clone())
            if part.name in codec.projections:
                self.register_buffer(f"{part.name}_projections", codec.projections[part.name].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        table = self.layout.table_of(ids)
        piece_of, number = _pick(self.layout.piece_of, table), _pick(self.layout.number_of, table)
        buffers = dict(self.named_buffers())
        found = []
        for k, (piece, rows) in enumerate(zip(self.layout.pieces, self.layout.rows(ids, [0] * len(self.layout.pieces)), strict=True)):
            vectors = functional.embedding(rows, buffers[f"width_{piece.width}"])
            if (projections := buffers.get(f"width_{piece.width}_projections")) is not None:
                own = projections[torch.where(piece_of == k, number, 0)]
                vectors = torch.bmm(vectors.unsqueeze(1), own).squeeze(1)
            found.append(torch.where((piece_of == k).unsqueeze(1), vectors, 0.0))
        return torch.stack(found).sum(0)


class MixedDimensionSettings(MethodSettings):
    temperature: float = Field(default=0.3, ge=0, le=1, description="alpha: 0 makes all fields equally wide, 1 gives all equal room")


@register(
    "mixed_dimension",
    kind="intra-feature: mixed dimension",
    paper="Ginart et al., Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation Systems, ISIT 2021",
    sharded="its tables, one a width",
    benchmarked=True,
)
class MixedDimension(Method):
    Settings = MixedDimensionSettings

    def __init__(self, settings: MixedDimensionSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        self.widths = self._widths(0.0)
        if (least := self._bytes(self.widths)) > self.allowed_bytes:
            raise self.refuse(
                least, "Every row is at least a number wide: give it a larger budget, or choose a method whose ids share rows"
            )
        low, high = 0.0, 2.0 * dim * max(space.rows) ** settings.temperature
        for _ in range(100):  # bytes never fall as lambda grows
            middle = (low + high) / 2
            widths = self._widths(middle)
            if self._bytes(widths) <= self.allowed_bytes:
                low, self.widths = middle, widths
            else:
                high = middle

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return MixedCodec(self.space, self.dim, self.widths)

    def _widths(self, scale: float) -> list[int]:
        """Of each table, for a lambda."""
        widths = [min(max(round(scale * rows**-self.settings.temperature), 1), self.dim) for rows in self.space.rows]
        return [self.dim if w * (rows + self.dim) >= rows * self.dim else w for w, rows in zip(widths, self.space.rows, strict=True)]

    def _bytes(self, widths: Sequence[int]) -> int:
        return FLOAT_BYTES * sum(
            rows * width + (width * self.dim if width < self.dim else 0) for rows, width in zip(self.space.rows, widths, strict=True)
        )


def _pick(of: Sequence[int], table: Tensor) -> Tensor:
    """A number of each field -> of each id's. int64 ``[n]`` -> int64 ``[n]``."""
    return torch.tensor(of, dtype=torch.int64, device=table.device)[table]
