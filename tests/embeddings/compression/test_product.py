"""``dpq`` and ``mgqe``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.dpq import DPQ, DPQCodec
from ctrkit.embeddings.compression.mgqe import MGQE, MGQECodec
from ctrkit.embeddings.compression.product import ProductCodec
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import looked_up, made, method_of, space_of

NAMES = ["dpq", "mgqe"]
EVERYTHING = torch.arange(600)


def made_of(name: str, budget: float, dim: int = 8) -> tuple[ProductCodec, dict[str, torch.Tensor]]:
    codec, tables = made(method_of(name, budget, dim))
    assert isinstance(codec, ProductCodec)
    return codec, tables


def trained(name: str, budget: float, dim: int, wanted: torch.Tensor, steps: int = 300) -> torch.Tensor:
    """The stored vectors after a training towards wanted ones."""
    codec, tables = made_of(name, budget, dim)
    queries = tables["queries"].requires_grad_()
    optimizer = torch.optim.Adam([queries], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (looked_up(codec.train(), tables, EVERYTHING) - wanted).square().sum(1).mean().backward()
        optimizer.step()
        codec.after_step({}, lambda tensor: tensor)
    return codec.eval().stored({"queries": queries.detach()})(EVERYTHING)


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.1, 0.2, 0.5, 1.0])
def test_codes_and_codewords_are_what_is_stored(budget: float, dim: int) -> None:
    method = method_of("dpq", budget, dim)
    assert isinstance(method, DPQ)
    codec, tables = made(method)
    code = -(-method.subspaces * method.bits // 8)
    assert stored_bytes(codec.stored(tables)) == 600 * code + 2**method.bits * dim * 4 <= method.allowed_bytes


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.1, 0.2, 0.5, 1.0])
def test_codes_of_both_kinds_codewords_and_a_list_are_what_is_stored(budget: float, dim: int) -> None:
    method = method_of("mgqe", budget, dim)
    assert isinstance(method, MGQE)
    codec, tables = made(method)
    own, others = (-(-method.subspaces * bits // 8) for bits in (method.bits, method.bits - 2))
    size = stored_bytes(codec.stored(tables))
    assert size == 60 * (own + 4) + 540 * others + 2**method.bits * dim * 4 <= method.allowed_bytes


@pytest.mark.parametrize(
    ("name", "budget", "total", "sizes"),
    [
        ("dpq", 1.0, 100_000, (16, 8)),
        ("dpq", 0.1, 100_000, (6, 8)),  # 6 bytes of 6.4; a seventh code would not fit, nor would 16 of 3 bits and more codewords
        ("dpq", 0.1, 5_000, (12, 4)),  # 256 codewords would take half of the budget
        ("mgqe", 1.0, 100_000, (16, 8)),
    ],
)
def test_the_most_bits_of_code_are_taken_and_of_equal_ones_the_most_codewords(
    name: str, budget: float, total: int, sizes: tuple[int, int]
) -> None:
    method = method_of(name, budget, 16, space_of({"only": total}))
    assert isinstance(method, DPQ | MGQE)
    assert (method.subspaces, method.bits) == sizes


def test_by_hand_two_subspaces_of_uneven_width() -> None:
    codec = DPQCodec(space_of({"a": 2}), 3, 2, 1)
    codec.codebook.words.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    stored = codec.stored({"queries": torch.tensor([[1.1, 2.0, 9.0], [4.0, 4.0, 2.0]])})
    assert stored(torch.tensor([0, 1])).tolist() == [[1, 2, 6], [4, 5, 3]]


def test_by_hand_a_frequent_id_between_others() -> None:
    codec = MGQECodec(space_of({"a": 4}), 1, 1, 3, torch.tensor([2], dtype=torch.int32))
    codec.codebook.words.copy_(torch.arange(8.0).unsqueeze(1))
    stored = codec.stored({"queries": torch.tensor([[0.2], [7.0], [7.0], [0.7]])})
    assert stored(torch.arange(4)).flatten().tolist() == [0, 1, 7, 1]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_what_an_evaluation_in_training_gives(name: str) -> None:
    codec, tables = made_of(name, 0.5)
    looked_up(codec.train(), tables, EVERYTHING)
    codec.after_step({}, lambda tensor: tensor)
    assert torch.equal(codec.eval().stored(tables)(EVERYTHING), looked_up(codec, tables, EVERYTHING))


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_s_gradient_is_its_query_s(name: str) -> None:
    codec, tables = made_of(name, 0.5)
    queries = tables["queries"].requires_grad_()
    weights = torch.randn(600, 8)
    (looked_up(codec.train(), tables, EVERYTHING) * weights).sum().backward()
    assert queries.grad is not None
    assert torch.equal(queries.grad, weights)


@pytest.mark.parametrize(("name", "budget", "dim", "within"), [("dpq", 0.5, 8, 0.01), ("dpq", 0.2, 16, 0.05), ("mgqe", 0.5, 8, 0.02)])
def test_training_brings_vectors_near_what_is_wanted(name: str, budget: float, dim: int, within: float) -> None:
    wanted = torch.randn(600, dim, generator=torch.Generator().manual_seed(3)) * 0.1
    assert (trained(name, budget, dim, wanted) - wanted).square().mean() < within * wanted.square().mean()


def test_frequent_ids_come_nearer_than_others() -> None:
    wanted = torch.randn(600, 8, generator=torch.Generator().manual_seed(3)) * 0.1
    method = method_of("mgqe", 0.3)
    codec, _ = made(method)
    assert isinstance(codec, MGQECodec)
    error = (trained("mgqe", 0.3, 8, wanted) - wanted).square().mean(1)
    frequent = torch.zeros(600, dtype=torch.bool).index_fill(0, codec.frequent.to(torch.int64), True)
    assert error[frequent].mean() < 0.5 * error[~frequent].mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_export_has_the_same_vectors(name: str, tmp_path: Path) -> None:
    codec, tables = made_of(name, 0.5, 7)
    stored = codec.stored(tables)
    np.testing.assert_array_equal(in_onnx(stored, EVERYTHING, tmp_path), stored(EVERYTHING).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_less_than_a_byte_an_id_is_refused(name: str) -> None:
    with pytest.raises(CtrkitError, match="needs .* bytes at the least.*a byte of codes"):
        method_of(name, 0.01, 16)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_frequent_ids_and_frequent_ids_alone_are_refused(share: float) -> None:
    with pytest.raises(CtrkitError, match="frequent"):
        method_of("mgqe", 0.5, frequent=share)
