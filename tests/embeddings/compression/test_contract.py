"""What every compression method of the registry must do, so that a new one is tested as soon as it is registered."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.overrides import TorchFunctionMode

from ctrkit.config import Compression
from ctrkit.embeddings.compression.codec import Codec, stored_bytes
from ctrkit.embeddings.compression.method import Method
from ctrkit.embeddings.compression.registry import check_compression, methods
from ctrkit.errors import CtrkitError
from ctrkit.transforms.onnx_part import OPSETS
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of, tables_of

NAMES = [info.name for info in methods()]
BUDGETS = [1.0, 0.5, 0.1, 0.01]
IDS = torch.tensor([0, 599, 3, 3, 401, 560, 593, 3, 250])


def reached(name: str, budget: float, dim: int = 8):
    """The method, or a skip where it says that it cannot do with so little."""
    try:
        return method_of(name, budget, dim)
    except CtrkitError as error:
        assert f"method '{name}' needs" in str(error)
        pytest.skip(str(error))


@pytest.mark.parametrize("dim", [8, 5])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_within_the_budget(name: str, budget: float, dim: int) -> None:
    method = reached(name, budget, dim)
    codec, tables = made(method)
    stored = codec.stored(tables)
    assert 0 < stored_bytes(stored) <= method.allowed_bytes
    assert not list(stored.parameters()), "all of it is in buffers, where it is counted"


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_table_is_a_budget_that_every_method_reaches(name: str) -> None:
    method_of(name, 0.5, 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_form_gives_an_id_one_vector_wherever_it_stands(name: str) -> None:
    codec, tables = made(reached(name, 0.5))
    stored = codec.eval().stored(tables).eval()
    vectors = stored(IDS)
    assert vectors.shape == (len(IDS), 8) and vectors.dtype == torch.float32 and vectors.isfinite().all()
    assert torch.equal(vectors[2], vectors[3]) and torch.equal(vectors[2], vectors[7])
    torch.testing.assert_close(stored(IDS.flip(0)), vectors.flip(0))
    torch.testing.assert_close(stored(IDS[:1]), vectors[:1])


@pytest.mark.parametrize("name", NAMES)
def test_storing_twice_gives_the_same_bytes(name: str) -> None:
    codec, tables = made(reached(name, 0.5))
    first, second = (dict(codec.eval().stored(tables).named_buffers()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_table_learns(name: str) -> None:
    codec, tables = made(reached(name, 0.5))
    tables = {key: table.requires_grad_() for key, table in tables.items()}
    ids = torch.arange(codec.space.total)
    codec.train().advance(0.0, 0)
    loss = (looked_up(codec, tables, ids) - 1).square().sum()
    if (penalty := codec.penalty()) is not None:
        loss = loss + penalty
    loss.backward()
    for key, tensor in [*codec.named_parameters(), *tables.items()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0, key


def trained_by(method: Method) -> list[Codec]:
    """What is trained: in the search, if there is one, and after it."""
    supernet = method.supernet(counts_of(method.space)) if method.search_epochs else None
    return [*([supernet] if supernet is not None else []), made(method)[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_adds_nothing_to_what_a_checkpoint_holds(name: str) -> None:
    """A new one takes the state of one that was trained."""
    for codec, new in zip(trained_by(reached(name, 0.5)), trained_by(reached(name, 0.5)), strict=True):
        codec.train().advance(0.0, 0)
        looked_up(codec, tables_of(codec.parts), IDS)
        codec.penalty()
        new.load_state_dict(codec.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_may_have_no_id_at_all(name: str) -> None:
    for codec in trained_by(reached(name, 0.5)):
        codec.train().advance(0.0, 0)
        tables = tables_of(codec.parts)
        assert looked_up(codec, tables, IDS[:0]).shape == (0, 8)
        penalty = codec.penalty()
        assert penalty is None or penalty.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_methods_without_rows_say_so(name: str) -> None:
    method = reached(name, 0.5)
    assert method.has_rows == any(codec.parts for codec in trained_by(method))


class EveryTensorOnADevice(TorchFunctionMode):
    """Refuses a tensor that is made where torch makes them by default: with a model on a GPU that is the wrong place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        makes = func in (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor)
        assert not makes or (kwargs or {}).get("device") is not None, f"torch.{func.__name__} without a device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_looked_up_is_made_on_the_device_of_the_ids(name: str) -> None:
    codec, tables = made(reached(name, 0.5))
    stored = codec.eval().stored(tables).eval()
    codec.advance(0.0, 0)
    with EveryTensorOnADevice():
        stored(IDS)
        for mode in (True, False):
            looked_up(codec.train(mode), tables, IDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_form_is_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    codec, tables = made(reached(name, 0.5))
    stored = codec.eval().stored(tables).eval()
    program = torch.export.export(stored, (IDS,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.onnx.export(program, dynamo=True, verbose=False, input_names=["ids"], opset_version=OPSETS[""]).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    everything = torch.arange(codec.space.total)
    for ids in (everything, IDS[:1]):
        (exported,) = session.run(None, {"ids": ids.numpy()})
        np.testing.assert_allclose(exported, stored(ids).numpy(), atol=1e-6)
    graph = onnx.load(tmp_path / "m.onnx").graph
    numbers = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)]
    kept = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in numbers)
    assert kept < stored_bytes(stored) + 5_000, "the table, 19,200 bytes, is not expanded: the rest are constants of the nodes"


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_there_is_not_and_a_budget_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(CtrkitError, match=f"method '{name}': unknown key 'colour'"):
        check_compression(Compression.model_validate({"method": name, "colour": "red"}))
    with pytest.raises(CtrkitError, match="needs .* bytes at the least"):
        method_of(name, 1e-6)


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(CtrkitError, match="unknown compression method 'hush'.*hash"):
        check_compression(Compression(method="hush"))


@pytest.mark.parametrize("name", NAMES)
def test_single_numbers_are_hashed_or_the_method_s(name: str) -> None:
    assert method_of(name, 0.1, dim=1).name == "hash"
    assert method_of(name, 1.0, dim=1).name == ("quantised" if name == "quantised" else "hash")


def test_the_ids_of_all_fields_are_one_range() -> None:
    space = space_of()
    assert space.total == 600 and space.start_of == {"user": 0, "item": 400, "city": 560, "sex": 593}
    assert space.table_of(torch.tensor([0, 399, 400, 559, 560, 592, 593, 599])).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
