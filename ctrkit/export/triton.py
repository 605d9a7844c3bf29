"""``config.pbtxt``: what NVIDIA Triton's ONNX Runtime backend must know of a model."""

from collections.abc import Sequence

from ctrkit.bundle import output_names
from ctrkit.feeds import input_names
from ctrkit.schema import Feature, Kind


def triton_config(name: str, features: Sequence[Feature], tasks: Sequence[str] = ()) -> str:
    """The configuration's text. ``max_batch_size: 0`` since bags' values have another first dimension than rows."""
    inputs = ",\n".join(_tensor(tensor, kind) for feature in features for tensor, kind in _inputs(feature))
    outputs = ",\n".join(_tensor(output, "TYPE_FP32") for output in output_names(tasks))
    return f'name: {_quoted(name)}\nbackend: "onnxruntime"\nmax_batch_size: 0\ninput [\n{inputs}\n]\noutput [\n{outputs}\n]\n'


def _inputs(feature: Feature) -> list[tuple[str, str]]:
    kind = "TYPE_FP64" if feature.kind is Kind.NUMERIC else "TYPE_STRING" if feature.dtype == "string" else "TYPE_INT64"
    kinds = [kind, "TYPE_INT64"] if feature.multi_valued else [kind]
    return list(zip(input_names(feature), kinds, strict=True))


def _tensor(name: str, kind: str) -> str:
    return f"  {{ name: {_quoted(name)}, data_type: {kind}, dims: [ -1 ] }}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
