"""The twin and the transforms' parts -> one ONNX graph: raw values in, probability out, or one for each of several tasks."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self, cast

import onnx
import onnx_ir
import torch
from onnx import helper
from torch import Tensor, nn

import ctrkit
from ctrkit.bundle import MODEL_FILE, output_names
from ctrkit.errors import CtrkitError
from ctrkit.export.cross import CROSSED
from ctrkit.schema import Inputs
from ctrkit.transforms.onnx_part import IR_VERSION, OPSETS, OnnxPart

_PREFIX = "@model/"
"""Of the twin's tensors and nodes: '@' is in no feature's name, and a part's names start with the feature's."""

VECTOR = "vector"
"""The output of a tower's graph."""

_PROTOBUF_LIMIT = 2**31 - 1
_LARGEST_INLINE = 2**30
_SMALLEST_EXTERNAL = 1024


class Exportable(Protocol):
    """What a graph is made of, such as a ``ctrkit.export.twin.Twin``: a module that takes encoded features by name.

    Attributes:
        inputs: the fields, and the labels' names.
        input_names: keys of the call's argument, in their order.
        crossed: columns of ``@crosses``.
    """

    inputs: Inputs
    crossed: int

    @property
    def input_names(self) -> list[str]: ...

    def eval(self) -> Self: ...

    def __call__(self, encoded: dict[str, Tensor], /) -> Tensor: ...


def write_model(
    folder: Path,
    twin: Exportable,
    parts: Iterable[OnnxPart],
    *,
    name: str,
    version: int,
    external_bytes: float,
    file: str = MODEL_FILE,
    vector: int | None = None,
) -> None:
    """Writes ``model.onnx`` into a folder, and its weights beside it when they take more than ``external_bytes``.

    Weights go from memory to their file directly: no message larger than 2 GB is ever made.

    Args:
        name: the model's name in the repository, kept in the graph with its version.
        external_bytes: weights above it are external; always above 1 GiB.
        file: the graph's file; that of the weights has ``.data`` added.
        vector: width of the one output ``vector`` ``[rows, width]`` of a tower; None: probabilities, one for each task.

    Raises:
        CtrkitError: the graph would hold a Loop, or more than 2 GB of vocabularies.
    """
    outputs = [VECTOR] if vector is not None else list(output_names(twin.inputs.tasks))
    exported = _export(twin, outputs)
    tensors = [value.const_value for value in exported.graph.initializers.values() if value.const_value is not None]
    weights = sum(tensor.nbytes for tensor in tensors if tensor.nbytes >= _SMALLEST_EXTERNAL)
    if weights > min(external_bytes, _LARGEST_INLINE):
        onnx_ir.external_data.unload_from_model(exported, folder, f"{file}.data", size_threshold_bytes=_SMALLEST_EXTERNAL, alignment=4096)
    shape = ["rows"] if vector is None else ["rows", vector]
    model = _stitch(onnx_ir.to_proto(exported), list(parts), twin.input_names, outputs, shape)
    model.graph.name = name
    model.model_version = version
    helper.set_model_props(model, {"ctrkit.name": name, "ctrkit.version": str(version), "ctrkit.release": ctrkit.__version__})
    refuse_loops(model.graph)
    size = model.ByteSize()
    if size > _PROTOBUF_LIMIT:
        raise CtrkitError(
            f"the graph takes {size / 2**30:.1f} GB without its weights, ONNX allows 2",
            "Its vocabularies are too large: give the largest a max_size or a min_count, or hash them",
        )
    path = folder / file
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path)


def refuse_loops(graph: onnx.GraphProto) -> None:
    """Raises CtrkitError if the graph, or a graph inside it, holds a Loop: one bag at a time is a hundred times slower."""
    for node in graph.node:
        if node.op_type in ("Loop", "Scan"):
            raise CtrkitError(
                f"the exported graph holds a {node.op_type} node ('{node.name}')", "Write that part of the model without a loop over rows"
            )
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                refuse_loops(inner)


class _OutputsApart(nn.Module):
    """The twin with ``[rows]`` for each task in place of ``[rows, tasks]``."""

    def __init__(self, twin: Exportable) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, encoded: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return self.twin(encoded).unbind(1)


def _export(twin: Exportable, outputs: list[str]) -> onnx_ir.Model:
    """The twin alone, any number of rows. Its weights stay the twin's tensors, not copies."""
    rows = torch.export.Dim("rows")
    example, shapes = {}, {}
    for number, name in enumerate(twin.input_names):
        dtype = torch.float32 if name.endswith("@dense") else torch.int64
        example[name] = torch.ones(3, dtype=dtype) if not name.endswith("@ids") else torch.ones(4, dtype=dtype)
        if name == CROSSED:
            example[name] = torch.ones(3, twin.crossed, dtype=dtype)
        shapes[name] = {0: torch.export.Dim(f"values_{number}") if name.endswith("@ids") else rows}
        if name.endswith(".lengths"):
            example[name] = torch.tensor([1, 0, 3])
    with _quiet(), torch.no_grad():
        model = cast(nn.Module, _OutputsApart(twin) if twin.inputs.tasks else twin)
        program = torch.export.export(model.eval(), (example,), dynamic_shapes=(shapes,))
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=twin.input_names, output_names=outputs, opset_version=OPSETS[""]
        )
    assert exported is not None
    return exported.model


def _stitch(
    model: onnx.ModelProto, parts: list[OnnxPart], inputs: list[str], outputs: Sequence[str], shape: Sequence[str | int]
) -> onnx.ModelProto:
    """Feeds the parts' outputs to the twin's inputs, by name. Each output has the shape."""
    onnx.compose.add_prefix(model, _PREFIX, inplace=True)
    graph = model.graph
    bridges = [helper.make_node("Identity", [name], [_PREFIX + name], name=f"{_PREFIX}bridge/{name}") for name in inputs]
    last = [helper.make_node("Identity", [_PREFIX + name], [name], name=f"{_PREFIX}bridge/{name}") for name in outputs]
    nodes = [node for part in parts for node in part.nodes] + bridges + [_bare(node) for node in graph.node] + last
    for initializer in graph.initializer:
        del initializer.metadata_props[:]
    stitched = helper.make_graph(
        nodes,
        "ctrkit",
        [value for part in parts for value in part.inputs],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in outputs],
        initializer=[*graph.initializer, *(value for part in parts for value in part.initializers)],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(
        stitched, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ctrkit", producer_version=ctrkit.__version__
    )


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Without torch's notes, which hold stack traces."""
    node.doc_string = ""
    del node.metadata_props[:]
    return node


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and its warnings about torch's own internals from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
