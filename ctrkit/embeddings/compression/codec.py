"""How vectors are kept in less memory while they are trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrkit.embeddings.compression.space import IdSpace


@dataclass(frozen=True)
class Part:
    """A TorchRec table of a codec.

    Attributes:
        name: within the codec.
        rows: any; all of them may be looked up.
        width: of a row.
        init_std: rows start as N(0, init_std^2); None: with ``embedding.init_std``.
        start: rows start as this number instead.
        lookups: rows of it that an id has.
    """

    name: str
    rows: int
    width: int
    init_std: float | None = None
    start: float | None = None
    lookups: int = 1


@dataclass(frozen=True)
class Shard:
    """Rows of a part that this process holds, to be changed in place.

    Attributes:
        first: the first one's number in the part.
        weights: ``[rows, width]``.
    """

    first: int
    weights: Tensor


class Codec(nn.Module, ABC):
    """Ids of an ``IdSpace`` -> vectors: ``combine(ids, [rows looked up in the parts at places(ids)])``.

    Parameters of a codec are trained with the dense arch, by its optimizer, and are the same in every process; its parts are TorchRec
    tables, trained as ``embedding`` says and sharded.

    Args:
        space: the ids.
        dim: of the vectors.

    Attributes:
        parts: the tables; may be none.
    """

    parts: tuple[Part, ...] = ()

    def __init__(self, space: IdSpace, dim: int) -> None:
        super().__init__()
        self.space, self.dim = space, dim

    @property
    def lookups(self) -> list[tuple[str, Part]]:
        """What is looked up for an id, in order: a name of its own within the codec, and the part."""
        return [(f"{part.name}#{k}", part) for part in self.parts for k in range(part.lookups)]

    def places(self, ids: Tensor) -> list[Tensor]:
        """The row of each look-up for each id. int64 ``[n]`` -> a ``[n]`` for each of ``lookups``."""
        return []

    @abstractmethod
    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The ids' vectors, ``[n, dim]``.

        Args:
            ids: int64 ``[n]``.
            vectors: of each look-up ``[n, width]``.
        """

    @abstractmethod
    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        """The trained codec as it is kept: ids int64 ``[n]`` -> float32 ``[n, dim]``, in operations that ONNX has, without a loop.

        Its buffers are all that is stored: ``stored_bytes`` counts them. The same parts give the same module every time.

        Args:
            parts: the full tables by name, ``[rows, width]``.
        """

    def advance(self, epoch: float, step: int) -> None:
        """Told before each step of a training how many epochs and steps are done."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step, after ``combine``; None: nothing. Mean over rows or the like: it is the same in every process' share."""
        return None

    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        """Told after each step.

        Args:
            shards: of each part, the rows in this process.
            add_up: a tensor -> its sum over all processes.
        """

    def deciding(self) -> list[nn.Parameter]:
        """Parameters that a search decides by: they have its learning rate and no weight decay."""
        return []


def stored_bytes(stored: nn.Module) -> int:
    """What a stored form takes: every buffer, whatever it is for."""
    return sum(buffer.numel() * buffer.element_size() for buffer in stored.buffers())


def seeded(*of: object) -> torch.Generator:
    """A generator that is the same for the same words, in every process."""
    from hashlib import blake2b

    digest = blake2b("/".join(map(str, of)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
