"""Crosses of a batch in training, and by ONNX nodes."""

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torchrec import KeyedJaggedTensor

from ctrkit.embeddings.crosses import Crosses
from ctrkit.export.cross import write_crosses
from ctrkit.schema import IdField, Inputs
from ctrkit.transforms.onnx_part import assemble


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_both_give_the_same_ids(data: st.DataObject) -> None:
    sizes = [data.draw(st.one_of(st.integers(2, 40), st.just(2**30))) for _ in range(3)]
    rows = data.draw(st.lists(st.tuples(*(st.integers(1, size - 1) for size in sizes)), min_size=1, max_size=30))
    names = ["a", "b c", "d"]
    pairs = data.draw(st.lists(st.sampled_from([(0, 1), (0, 2), (1, 2)]), min_size=1, max_size=3, unique=True))
    frequent = {}
    for i, j in pairs:
        known = {row[i] * sizes[j] + row[j] for row in rows[::2]} if data.draw(st.booleans()) else set()
        frequent[names[i], names[j]] = torch.tensor(sorted(known), dtype=torch.int64)
    inputs = Inputs(id_fields=tuple(IdField(name=n, rows=size) for n, size in zip(names, sizes, strict=True)), numeric_fields=())
    crosses = Crosses(inputs, frequent, data.draw(st.integers(1, 1000)))
    columns = torch.tensor(rows).T
    lengths = torch.ones(columns.numel(), dtype=torch.int32)
    trained = crosses.ids(KeyedJaggedTensor(keys=names, values=columns.flatten(), lengths=lengths, stride=len(rows))).T.numpy()

    model = assemble([write_crosses(crosses)])
    used = {n: columns[k].numpy() for k, n in enumerate(names) if any(k in pair for pair in pairs)}
    model.graph.input.extend(helper.make_tensor_value_info(f"{n}@id", TensorProto.INT64, ["rows"]) for n in used)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (exported,) = session.run(None, {f"{n}@id": ids for n, ids in used.items()})
    np.testing.assert_array_equal(exported, trained)
    assert trained.min() >= 1 and (trained < [field.rows for field in crosses.inputs.id_fields[3:]]).all()
