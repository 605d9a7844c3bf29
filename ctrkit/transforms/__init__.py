"""Raw value -> id or float. Fitted once on the training split, compiled twice: to Polars expressions and to ONNX nodes."""

from ctrkit.transforms.base import FittedTransform, Fitter
from ctrkit.transforms.canonical import canonical, canonical_dtype, canonicalise
from ctrkit.transforms.fitted import FittedTransforms, fitter_for, with_sequences

__all__ = ["FittedTransform", "FittedTransforms", "Fitter", "canonical", "canonical_dtype", "canonicalise", "fitter_for", "with_sequences"]
