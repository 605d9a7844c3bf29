"""``config.pbtxt``: what NVIDIA Triton's ONNX Runtime backend must know of a model."""

from collections.abc import Sequence

from ctrkit.bundle import OUTPUT
from ctrkit.feeds import input_names
from ctrkit.schema import Feature, Kind


def triton_config(name: str, features: Sequence[Feature]) -> str:
    """The configuration's text. ``max_batch_size: 0`` since bags' values have another first dimension than rows."""
    inputs = ",\n".join(_tensor(tensor, kind) for feature in features for tensor, kind in _inputs(feature))
    return (
        f"name: {_quoted(name)}\n"
        'backend: "onnxruntime"\n'
        "max_batch_size: 0\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{_tensor(OUTPUT, 'TYPE_FP32')}\n]\n"
    )


def _inputs(feature: Feature) -> list[tuple[str, str]]:
    kind = "TYPE_FP64" if feature.kind is Kind.NUMERIC else "TYPE_STRING" if feature.dtype == "string" else "TYPE_INT64"
    kinds = [kind, "TYPE_INT64"] if feature.multi_valued else [kind]
    return list(zip(input_names(feature), kinds, strict=True))


def _tensor(name: str, kind: str) -> str:
    return f"  {{ name: {_quoted(name)}, data_type: {kind}, dims: [ -1 ] }}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
