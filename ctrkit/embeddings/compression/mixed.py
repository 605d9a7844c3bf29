"""Tables of mixed widths, one width a field, with projections to the full one::

    v_f(x) = E_f[x] P_f        E_f: [n_f, d_f]; P_f: [d_f, dim], none if d_f = dim

The rows of all fields of one width are one TorchRec table, with a spare row that ids of other widths look up, which is not stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.embeddings.compression.codec import Codec, Part
from ctrkit.embeddings.compression.method import FLOAT_BYTES
from ctrkit.embeddings.compression.space import IdSpace, table_of


def mixed_bytes(rows: int, width: int, dim: int) -> int:
    """What a field of so many rows takes: they and their projection."""
    return FLOAT_BYTES * (rows * width + (width * dim if width < dim else 0))


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


def _pick(of: Sequence[int], table: Tensor) -> Tensor:
    """A number of each field -> of each id's. int64 ``[n]`` -> int64 ``[n]``."""
    return torch.tensor(of, dtype=torch.int64, device=table.device)[table]
