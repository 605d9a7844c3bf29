"""Open Inference Protocol v2: tensors under the graph's own names, in JSON or as bytes behind it, and what models are made of.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor extension (protocol/extension_binary_data.md there):
the header ``Inference-Header-Content-Length`` says where the JSON ends. BYTES are UTF-8, each text after its length in four bytes.
"""

import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from ctrkit.bundle import Bundle, output_names
from ctrkit.errors import nearest
from ctrkit.feeds import RowError, input_names
from ctrkit.schema import Feature, Kind
from serving.problems import InvalidBody
from serving.wire.ask import Answer, Ask, Limits, check_rows
from serving.wire.json_text import parse

HEADER_LENGTH = "Inference-Header-Content-Length"
HEADER_LENGTH_KEY = HEADER_LENGTH.lower().encode()
_SIZES = {"INT64": 8, "FP64": 8, "FP32": 4}
_DTYPES = {"INT64": np.dtype("<i8"), "FP64": np.dtype("<f8"), "FP32": np.dtype("<f4")}
TRITON_TYPES = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64", "FP64": "TYPE_FP64", "FP32": "TYPE_FP32"}


def header_length(text: str) -> int | None:
    """Bytes of the JSON before the tensors; None: all of the body.

    Raises:
        InvalidBody: no number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise InvalidBody((), f"the header {HEADER_LENGTH} is no number of bytes: {text[:40]!r}")
    return int(text)


def inputs(features: Sequence[Feature]) -> dict[str, str]:
    """The graph's inputs and their data types, as the protocol names them."""
    found = {}
    for feature in features:
        value = "FP64" if feature.kind is Kind.NUMERIC else "BYTES" if feature.dtype == "string" else "INT64"
        found.update(zip(input_names(feature), (value, "INT64"), strict=False))
    return found


def read_infer(bundle: Bundle, body: bytes, limits: Limits, header: int | None) -> Ask:
    """An inference request -> every input of the graph, one-dimensional.

    Args:
        header: bytes of the JSON, when tensors follow it.

    Raises:
        InvalidBody: no such request; an input that is missing, unknown, of another type or shape; lengths that do not fit values.
        TooLarge: too many rows.
    """
    if header is not None and header > len(body):
        raise InvalidBody((), f"the header {HEADER_LENGTH} says {header} bytes, the body has {len(body)}")
    text, tail = (body, memoryview(b"")) if header is None else (body[:header], memoryview(body)[header:])
    content = parse(text, limits.depth, required=["inputs"], optional=None)
    if not isinstance(content["inputs"], list):
        raise InvalidBody(("inputs",), "inputs: expected a list of tensors")
    wanted = inputs(bundle.features)
    feed: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(content["inputs"]):
        name, size = _described(tensor, index, wanted, feed)
        shape = _length(tensor, name)
        if shape > limits.bytes:
            raise InvalidBody(("inputs", index), f"input '{name}': its shape has more elements than a body may have bytes")
        if size is None:
            feed[name] = _from_list(tensor.get("data"), name, wanted[name], shape)
        else:
            if size > len(tail):
                raise InvalidBody(("inputs", index), f"input '{name}': binary_data_size is {size}, {len(tail)} bytes are left of the body")
            feed[name] = _from_bytes(tail[:size], name, wanted[name], shape)
            tail = tail[size:]
    if len(tail):
        raise InvalidBody((), f"{len(tail)} bytes after the last tensor belong to none")
    missing = [name for name in wanted if name not in feed]
    if missing:
        raise InvalidBody(("inputs",), f"the inputs lack {', '.join(repr(name) for name in missing)}")
    rows = _rows(feed, bundle.features)
    check_rows(rows, "rows", limits)
    return Ask(feed, rows, partial(inferred, bundle, _id(content), _outputs(content, bundle)), _misfit)


def inferred(bundle: Bundle, request_id: str | None, outputs: dict[str, bool], probabilities: np.ndarray) -> Answer:
    """The response: each output as bytes behind the JSON, or in it."""
    names = output_names(bundle.tasks)
    columns = dict(zip(names, probabilities.reshape(-1, len(names)).T, strict=True))
    tensors, tail = [], []
    for name, binary in outputs.items():
        column = np.ascontiguousarray(columns[name], "<f4")
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": [len(column)]}
        if binary:
            tail.append(column.tobytes())
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = column.tolist()
        tensors.append(tensor)
    about = {"model_name": bundle.manifest.name, "model_version": str(bundle.manifest.version)}
    text = orjson.dumps({**({} if request_id is None else {"id": request_id}), **about, "outputs": tensors})
    if not tail:
        return Answer(text)
    return Answer(text + b"".join(tail), "application/octet-stream", ((HEADER_LENGTH, str(len(text))),))


def _described(tensor: Any, index: int, wanted: dict[str, str], feed: dict[str, np.ndarray]) -> tuple[str, int | None]:
    """A tensor's name and its size in bytes if it lies behind the JSON."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise InvalidBody(("inputs", index), f"input {index}: expected an object with a 'name'")
    name = tensor["name"]
    if name not in wanted:
        raise InvalidBody(("inputs", index), f"input '{name[:100]}': the model has no such input. {nearest(name[:100], list(wanted))}")
    if name in feed:
        raise InvalidBody(("inputs", index), f"input '{name}' is there twice")
    if tensor.get("datatype") != wanted[name]:
        raise InvalidBody(("inputs", index), f"input '{name}': expected datatype {wanted[name]}, got {tensor.get('datatype')!r:.60}")
    parameters = tensor.get("parameters")
    if parameters is None:
        return name, None
    if not isinstance(parameters, dict) or parameters.keys() & {"shared_memory_region", "shared_memory_byte_size"}:
        raise InvalidBody(("inputs", index), f"input '{name}': shared memory is not taken here: send the data")
    size = parameters.get("binary_data_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise InvalidBody(("inputs", index), f"input '{name}': binary_data_size is no number of bytes")
    return name, size


def _length(tensor: dict[str, Any], name: str) -> int:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int) or isinstance(shape[0], bool) or shape[0] < 0:
        raise InvalidBody(("inputs", name), f"input '{name}': expected a shape of one dimension, got {shape!r:.60}")
    return shape[0]


def _from_list(data: Any, name: str, datatype: str, length: int) -> np.ndarray:
    if not isinstance(data, list) or len(data) != length:
        got = f"{len(data)} elements" if isinstance(data, list) else "no list"
        raise InvalidBody(("inputs", name), f"input '{name}': its shape has {length} elements, its data {got}")
    kinds: tuple[type, ...] = {"BYTES": (str,), "INT64": (int,), "FP64": (int, float)}[datatype]
    for place, value in enumerate(data):
        if type(value) not in kinds:
            raise InvalidBody(("inputs", name, place), f"input '{name}', element {place}: expected {datatype}, got {type(value).__name__}")
    try:
        return np.array(data, object if datatype == "BYTES" else _DTYPES[datatype])
    except OverflowError:
        raise InvalidBody(("inputs", name), f"input '{name}': an integer has more than 64 bits") from None


def _from_bytes(data: memoryview, name: str, datatype: str, length: int) -> np.ndarray:
    if datatype == "BYTES":
        return _texts(data, name, length)
    if len(data) != length * _SIZES[datatype]:
        raise InvalidBody(("inputs", name), f"input '{name}': {length} elements of {datatype} have {length * _SIZES[datatype]} bytes, "
                          f"binary_data_size is {len(data)}")  # fmt: skip
    return np.frombuffer(data, _DTYPES[datatype]).copy()  # aligned, wherever the body put it


def _texts(data: memoryview, name: str, length: int) -> np.ndarray:
    texts: list[str] = []
    place, end = 0, len(data)
    try:
        while place < end:
            (size,) = struct.unpack_from("<I", data, place)
            place += 4 + size
            if place > end:
                raise InvalidBody(("inputs", name), f"input '{name}': the text of element {len(texts)} ends behind the tensor")
            texts.append(str(data[place - size : place], "utf8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidBody(("inputs", name), f"input '{name}', element {len(texts)}: {error}") from None
    if len(texts) != length:
        raise InvalidBody(("inputs", name), f"input '{name}': its shape has {length} elements, its data {len(texts)}")
    array = np.empty(length, object)
    array[:] = texts
    return array


def _rows(feed: dict[str, np.ndarray], features: Sequence[Feature]) -> int:
    """How many rows the tensors hold, when they agree."""
    rows: int | None = None
    first = ""
    for feature in features:
        name = input_names(feature)[-1]
        if rows is None:
            rows, first = len(feed[name]), name
        elif len(feed[name]) != rows:
            raise InvalidBody(("inputs", name), f"input '{name}' has {len(feed[name])} rows where '{first}' has {rows}")
        if feature.multi_valued:
            values, lengths = (feed[key] for key in input_names(feature))
            if (lengths < 0).any() or (lengths > len(values)).any() or int(lengths.sum()) != len(values):
                raise InvalidBody(("inputs", name), f"input '{name}': its lengths do not add up to the {len(values)} values")
    return rows or 0


def _misfit(error: RowError) -> InvalidBody:
    if error.field is None:
        return InvalidBody(("inputs",), str(error))
    return InvalidBody(("inputs", error.field, error.row or 0), f"input '{error.field}', element {error.row}: {error.reason}")


def _id(content: dict[str, Any]) -> str | None:
    request_id = content.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidBody(("id",), "id: expected a string")
    return request_id


def _outputs(content: dict[str, Any], bundle: Bundle) -> dict[str, bool]:
    """The outputs that are asked for, and whether as bytes."""
    known = output_names(bundle.tasks)
    parameters = _parameters(content, "the request")
    asked = content.get("outputs")
    default = parameters.get("binary_data_output", False) is True
    if not asked:
        return dict.fromkeys(known, default)
    if not isinstance(asked, list):
        raise InvalidBody(("outputs",), "outputs: expected a list")
    found = {}
    for index, output in enumerate(asked):
        if not isinstance(output, dict) or output.get("name") not in known:
            name = output.get("name") if isinstance(output, dict) else output
            raise InvalidBody(("outputs", index), f"output {name!r:.60}: the model has no such output. Known: {', '.join(known)}")
        parameters = _parameters(output, f"output '{output['name']}'")
        if parameters.keys() & {"classification", "shared_memory_region"}:
            raise InvalidBody(("outputs", index), f"output '{output['name']}': neither classification nor shared memory is done here")
        found[output["name"]] = parameters.get("binary_data", default) is True
    return found


def _parameters(holder: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = holder.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidBody(("parameters",), f"the parameters of {whose} are no object")
    return parameters


def metadata(bundle: Bundle, versions: Sequence[int]) -> dict[str, Any]:
    """``GET /v2/models/<name>``."""
    return {
        "name": bundle.manifest.name,
        "versions": [str(version) for version in versions],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in inputs(bundle.features).items()],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in output_names(bundle.tasks)],
    }


def config(bundle: Bundle) -> dict[str, Any]:
    """``GET /v2/models/<name>/config``: Triton's model configuration, as ``config.pbtxt`` has it."""
    return {
        "name": bundle.manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [{"name": name, "data_type": TRITON_TYPES[kind], "dims": [-1]} for name, kind in inputs(bundle.features).items()],
        "output": [{"name": name, "data_type": "TYPE_FP32", "dims": [-1]} for name in output_names(bundle.tasks)],
    }
