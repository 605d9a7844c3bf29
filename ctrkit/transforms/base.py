"""The contract of a transform: fitted once on the training split, then compiled to Polars and to ONNX.

Both compilations read the canonical raw values (see ``canonical``) and give the same ids bit for bit, and the same floats
within rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from ctrkit.schema import Feature

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart, OnnxWriter


class FittedTransform(Protocol):
    """One feature's transform, ready to use.

    Attributes:
        feature: the column it reads.
        rows: rows of the table its ids index, padding included; None when it gives floats.
    """

    @property
    def feature(self) -> Feature: ...

    @property
    def rows(self) -> int | None: ...

    def to_polars(self) -> pl.Expr:
        """Canonical column -> ``Int64`` ids, ``List(Int64)`` ids or ``Float32``, under the feature's name."""
        ...

    def to_onnx(self) -> OnnxPart:
        """The same as ONNX nodes, named after the feature."""
        ...

    def state(self) -> dict[str, Any]:
        """What was fitted, as JSON values."""
        ...

    def vocabulary(self) -> pl.Series | None:
        """The values with an id of their own, in the order of their ids; None for other kinds."""
        ...


class Fitter(Protocol):
    """Learns a transform from the training split, chunk by chunk, in bounded memory."""

    def update(self, frame: pl.DataFrame) -> None:
        """Takes in a chunk with the feature's canonical column."""
        ...

    def finish(self) -> FittedTransform:
        """Ends the fit.

        Raises:
            CtrkitError: the training split holds no value of the feature.
        """
        ...


class Lookup(Protocol):
    """Value -> id, the core that single-valued and multi-valued features share."""

    @property
    def rows(self) -> int: ...

    def encode(self, values: pl.Expr) -> pl.Expr:
        """Values without nulls -> ``Int64`` ids."""
        ...

    def write_onnx(self, writer: OnnxWriter, values: str) -> str:
        """Adds nodes that turn the tensor ``values`` [n] into ids INT64 [n]; returns the ids' tensor name."""
        ...

    def state(self) -> dict[str, Any]: ...

    def vocabulary(self) -> pl.Series | None: ...


class LookupFitter(Protocol):
    """Fits a ``Lookup`` from series of values without nulls."""

    def update(self, values: pl.Series) -> None: ...

    def update_counts(self, counts: pl.DataFrame) -> None:
        """Takes in values that are counted already: columns ``value`` and ``count``."""
        ...

    def finish(self) -> Lookup: ...
