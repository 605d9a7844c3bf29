"""Crosses for the exported graph: ONNX nodes upon the ids of fields, all crosses at once.

The ids are those that ``ctrkit.embeddings.crosses`` gives a batch in training, which has the formula.
"""

import numpy as np
from onnx import TensorProto, helper

from ctrkit.embeddings.crosses import Crosses
from ctrkit.embeddings.unified import PRIME
from ctrkit.transforms.onnx_part import OnnxPart, OnnxWriter

CROSSED = "@crosses"
"""The twin's input: '@' starts no feature's name."""
_NOT_FOUND = 0


def write_crosses(crosses: Crosses) -> OnnxPart:
    """``<field>@id`` of the fields in pairs -> ``@crosses``, INT64 ``[rows, pairs]``."""
    writer = OnnxWriter(CROSSED)
    keys, salts = crosses.keys, crosses.salts.squeeze(2)

    def numbers(values: object) -> str:
        return writer.constant(values, np.int64)

    columns = [writer.op("Unsqueeze", f"{name}@id", numbers([1])) for name in keys.fields]
    ids = writer.op("Concat", *columns, axis=1)
    first, second = (writer.op("Gather", ids, numbers(side.numpy()), axis=1) for side in (keys.first, keys.second))
    key = writer.op("Add", writer.op("Mul", first, numbers(keys.factors.numpy())), second)
    prime = numbers(PRIME)
    x, hashed = writer.op("Mod", key, prime), numbers(salts[0].numpy())
    for c in salts[1:]:
        hashed = writer.op("Mod", writer.op("Add", writer.op("Mul", hashed, x), numbers(c.numpy())), prime)
    crossed = writer.op("Add", writer.op("Mod", hashed, numbers(crosses.buckets)), numbers(1))
    if len(crosses.known):
        own_key = writer.op("Add", key, numbers(keys.starts.numpy()))
        rows = crosses.known_rows().tolist()
        known = {"keys_int64s": crosses.known.tolist(), "values_int64s": rows, "default_int64": _NOT_FOUND}
        row = writer.op("LabelEncoder", own_key, domain="ai.onnx.ml", **known)
        crossed = writer.op("Where", writer.op("Equal", row, numbers(_NOT_FOUND)), crossed, row)
    writer.nodes.append(helper.make_node("Identity", [crossed], [CROSSED], name=f"{CROSSED}@output"))
    return writer.part([], [helper.make_tensor_value_info(CROSSED, TensorProto.INT64, ["rows", len(crosses.pairs)])])
