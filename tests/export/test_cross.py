"""One cross, three ways: of a batch in training, by Polars and by ONNX nodes."""

import numpy as np
import onnx
import onnxruntime
import polars as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torchrec import KeyedJaggedTensor

from ctrkit.embeddings.crosses import Crosses
from ctrkit.export.cross import cross_transforms
from ctrkit.schema import IdField, Inputs
from ctrkit.transforms.onnx_part import assemble


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_all_three_give_the_same_ids(data: st.DataObject) -> None:
    sizes = st.one_of(st.integers(2, 40), st.just(2**31 - 1))
    first, second = data.draw(sizes), data.draw(sizes)
    ids = data.draw(st.lists(st.tuples(st.integers(1, first - 1), st.integers(1, second - 1)), min_size=1, max_size=30))
    frequent = sorted({a * second + b for a, b in ids[::2]} if data.draw(st.booleans()) else set())
    buckets = data.draw(st.integers(1, 1000))
    inputs = Inputs(id_fields=(IdField(name="a", rows=first), IdField(name="b c", rows=second)), numeric_fields=())
    crosses = Crosses(inputs, {("a", "b c"): torch.tensor(frequent, dtype=torch.int64)}, buckets)
    a, b = (torch.tensor(column) for column in zip(*ids, strict=True))
    sparse = KeyedJaggedTensor(
        keys=["a", "b c"], values=torch.cat([a, b]), lengths=torch.ones(2 * len(ids), dtype=torch.int32), stride=len(ids)
    )
    trained = crosses(sparse)["a@b c"].values().numpy()

    (transform,) = cross_transforms(crosses)
    frame = pl.DataFrame({"a": a.numpy(), "b c": b.numpy()}).with_columns(transform.to_polars())
    np.testing.assert_array_equal(frame["a@b c"].to_numpy(), trained)

    model = assemble([transform.to_onnx()])
    model.graph.input.extend(helper.make_tensor_value_info(f"{name}@id", TensorProto.INT64, ["rows"]) for name in ("a", "b c"))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (exported,) = session.run(None, {"a@id": a.numpy(), "b c@id": b.numpy()})
    np.testing.assert_array_equal(exported, trained)
    assert trained.min() >= 1 and trained.max() < crosses.inputs.id_fields[-1].rows
