"""Every model of the registry, over small fields: what each must do, whatever its equation."""

import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ctrkit.config import AutoDis, Numeric, Scale
from ctrkit.errors import CtrkitError
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import build, models
from ctrkit.schema import IdField, Inputs
from tests.zoo import info_of, small_settings

DIM = 4
ID_FIELDS = 5
INPUTS = Inputs(id_fields=tuple(IdField(name=f"c{k}", rows=10) for k in range(ID_FIELDS)), numeric_fields=("n0", "n1"))
TASKS = ("click", "buy")
"""Of the multi-task models."""


@dataclass(frozen=True)
class Case:
    """A model with some of its settings; the rest are small."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    numeric: Numeric = field(default_factory=Scale)

    def __str__(self) -> str:
        numeric = [] if self.numeric.kind == "scale" else [self.numeric.kind]
        return " ".join([self.model, *(f"{key}={value}" for key, value in self.settings.items()), *numeric])

    def build(self, inputs: Inputs = INPUTS, dim: int = DIM, seed: int = 0) -> RankingModel:
        torch.manual_seed(seed)
        if info_of(self.model).kind == "multi-task":
            inputs = inputs.model_copy(update={"tasks": TASKS})
        return build(self.model, inputs, dim, small_settings(self.model) | self.settings, self.numeric)


ZOO = [m.name for m in models() if m.kind != "sequence"]
"""Models that attend to sequences have tests of their own, see test_sequences.py."""

EXPORTED = [Case(name) for name in ZOO] + [
    Case("dcnv2", {"low_rank": 2, "experts": 3}),
    Case("dlrm", numeric=AutoDis()),
    Case("fgcnn", {"classifier": "deepfm", "classifier_settings": {"hidden": (8,)}}),
    Case("fibinet", {"bilinear": "each"}),
    Case("finalmlp", {"context1": ("c0",), "context2": ("n1", "c3")}),
    Case("masknet", {"structure": "parallel", "block_units": 5}),
    Case("optfs", {"base": "dlrm", "base_settings": {"hidden": (8,), "bottom_hidden": (8,)}}),
    Case("ple", {"layers": 1, "shared_experts": 0}),
    Case("widedeep", {"batch_norm": True}),
]
"""Exporting takes about a second each; the other cases are made of the same operations."""

CASES = EXPORTED + [
    *(Case(name, numeric=AutoDis(meta_embeddings=3)) for name in ZOO),
    Case("autoint", {"hidden": (8,), "wide": True, "use_scale": True}),
    Case("dcn", {"hidden": ()}),
    Case("dcnv2", {"structure": "stacked"}),
    Case("dcnv2", {"low_rank": 2}),
    Case("fgcnn", {"classifier": "autoint", "classifier_settings": {"layers": 1}}),
    Case("fibinet", {"bilinear": "all"}),
    Case("finalmlp", {"gating": False, "heads": 2}),
    Case("fwfm", {"first_order": "id"}),
    Case("gdcn", {"structure": "stacked"}),
    Case("ple", {"layers": 3, "task_experts": 1}),
]


def feed(model: RankingModel, rows: int, inputs: Inputs = INPUTS, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Random embeddings of every group the model reads, and numbers of which about a third are missing."""
    draw = torch.Generator().manual_seed(seed)
    embeddings = {g.name: torch.randn(rows, len(inputs.id_fields), g.dim, generator=draw) for g in model.groups(model.dim)}
    dense = torch.randn(rows, len(inputs.numeric_fields), generator=draw)
    return embeddings, dense.masked_fill(torch.rand(dense.shape, generator=draw) < 0.3, torch.nan)


each_case = pytest.mark.parametrize("case", CASES, ids=str)


@each_case
def test_a_row_gives_a_finite_logit_with_numbers_missing(case: Case) -> None:
    model = case.build()
    embeddings, dense = feed(model, 6)
    dense[0] = torch.nan
    logits = model(embeddings, dense)
    assert logits.shape == (6, *([len(model.inputs.tasks)] if model.inputs.tasks else []))
    assert logits.isfinite().all()


@each_case
def test_gradients_reach_every_parameter_and_every_group(case: Case) -> None:
    model = case.build()
    embeddings, dense = feed(model, 64)
    for tensor in embeddings.values():
        tensor.requires_grad_()
    logits = model(embeddings, dense)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not untouched
    for name, tensor in embeddings.items():
        per_field = tensor.grad.abs().sum((0, 2)) if tensor.grad is not None else torch.zeros(ID_FIELDS)
        assert (per_field > 0).all(), name


@each_case
def test_a_row_is_scored_alike_in_any_batch(case: Case) -> None:
    model = case.build().eval()
    embeddings, dense = feed(model, 7)
    together = model(embeddings, dense)
    for row in (0, 6):
        alone = model({name: e[row : row + 1] for name, e in embeddings.items()}, dense[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-6)


@each_case
def test_a_batch_of_one_row_trains_and_bf16_stays_finite(case: Case) -> None:
    model = case.build()
    for rows in (1, 9):
        embeddings, dense = feed(model, rows)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(embeddings, dense).float().square().sum()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each_case
def test_a_seed_gives_the_same_model_and_another_seed_another(case: Case) -> None:
    embeddings, dense = feed(case.build(), 5)
    first, again = case.build(seed=3).eval(), case.build(seed=3).eval()
    torch.testing.assert_close(first(embeddings, dense), again(embeddings, dense), rtol=0, atol=0)
    saved = case.build(seed=4).eval()
    saved.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(embeddings, dense), saved(embeddings, dense), rtol=0, atol=0)


@each_case
@pytest.mark.parametrize("ids,numbers", [(3, 0), (0, 3), (1, 1), (2, 1)])
def test_fields_may_be_of_one_kind(case: Case, ids: int, numbers: int) -> None:
    if "context1" in case.settings:
        pytest.skip("names fields that are not there")
    inputs = Inputs(
        id_fields=tuple(IdField(name=f"c{k}", rows=5) for k in range(ids)), numeric_fields=tuple(f"n{k}" for k in range(numbers))
    )
    model = case.build(inputs)
    assert model(*feed(model, 4, inputs)).isfinite().all()


@each_case
@pytest.mark.parametrize(
    "inputs", [Inputs(id_fields=(IdField(name="c", rows=5),), numeric_fields=()), Inputs(id_fields=(), numeric_fields=("n",))]
)
def test_a_single_field_works_or_is_refused(case: Case, inputs: Inputs) -> None:
    try:
        model = case.build(inputs)
    except CtrkitError as error:
        assert "field" in error.problem and error.remedy
    else:
        embeddings, dense = feed(model, 4, inputs)
        assert model(embeddings, dense).isfinite().all()


@each_case
def test_no_fields_are_refused(case: Case) -> None:
    with pytest.raises(CtrkitError, match="no fields"):
        case.build(Inputs(id_fields=(), numeric_fields=()))


class Flat(nn.Module):
    """A model whose inputs are a list of tensors: dense, then the groups' embeddings."""

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model = model
        self.groups = [group.name for group in model.groups(model.dim)]

    def forward(self, dense: Tensor, *embeddings: Tensor) -> Tensor:
        return self.model(dict(zip(self.groups, embeddings, strict=True)), dense)


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_onnx_agrees_at_any_batch_size(case: Case) -> None:
    model = case.build().eval()
    flat = Flat(model)
    embeddings, dense = feed(model, 3)
    names = ["dense", *(f"{name} embeddings" for name in embeddings)]
    rows = torch.export.Dim("rows")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = ({0: rows}, tuple({0: rows} for _ in embeddings))
            program = torch.export.export(flat, (dense, *embeddings.values()), dynamic_shapes=shapes)
            exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names)
    finally:
        logging.disable(disabled)
    assert exported is not None
    proto = exported.model_proto
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"Loop", "Scan", "If"})
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        embeddings, dense = feed(model, count, seed=count)
        expected = model(embeddings, dense).detach().numpy()
        (given,) = session.run(None, {name: t.numpy() for name, t in zip(names, (dense, *embeddings.values()), strict=True)})
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=1e-5)


BAD = [
    ("afm", {"attention_dim": 0}, "attention_dim"),
    ("autoint", {"heads": 3}, "must divide attention_dim"),
    ("dcn", {"layers": 0}, "layers"),
    ("dcn", {"hiden": [8]}, "Did you mean 'hidden'"),
    ("dcnv2", {"experts": 4}, "need low_rank"),
    ("dcnv2", {"structure": "serial"}, "'parallel' or 'stacked'"),
    ("dcnv2", {"low_rank": 0}, "low_rank"),
    ("fgcnn", {"kernel": 4}, "must be odd"),
    ("fgcnn", {"channels": ()}, "channels"),
    ("fgcnn", {"gain": 0}, "gain"),
    ("fgcnn", {"classifier": "autoin"}, "Did you mean 'autoint'"),
    ("fgcnn", {"classifier": "autoint", "classifier_settings": {"heads": 3}}, "must divide attention_dim"),
    ("fgcnn", {"classifier": "ipnn", "classifier_settings": {"heads": 2}}, "unknown key 'heads'"),
    ("fgcnn", {"classifier": "ffm"}, "cannot take 'ffm'"),
    ("fgcnn", {"classifier": "fgcnn"}, "cannot take 'fgcnn'"),
    ("fgcnn", {"classifier": "lr"}, "cannot take 'lr'"),
    ("fibinet", {"bilinear": "some"}, "'all', 'each' or 'interaction'"),
    ("finalmlp", {"heads": 7}, "must divide"),
    ("finalmlp", {"context1": ["c00"]}, "Did you mean 'c0'"),
    ("finalmlp", {"gating": False, "context1": ["c0"]}, "gating is false"),
    ("fwfm", {"first_order": "both"}, "'field' or 'id'"),
    ("gdcn", {"dropout": 1.0}, "dropout"),
    ("ipnn", {"hidden": [0]}, "hidden"),
    ("masknet", {"hidden": []}, "needs hidden"),
    ("masknet", {"blocks": 2}, "structure: parallel"),
    ("masknet", {"reduction": 0}, "reduction"),
    ("mmoe", {"experts": 0}, "experts"),
    ("mmoe", {"expert_hidden": []}, "expert_hidden"),
    ("ple", {"layers": 0}, "layers"),
    ("ple", {"task_experts": 0}, "task_experts"),
    ("ple", {"expert": 2}, "unknown key 'expert'"),
    ("optfs", {"base": "deepfn"}, "Did you mean 'deepfm'"),
    ("optfs", {"base": "optfs"}, "search of its own"),
    ("optfs", {"base": "autoint", "base_settings": {"heads": 3}}, "must divide attention_dim"),
    ("optfs", {"search_epochs": 5, "rewind_epoch": 5}, "must be below search_epochs"),
    ("optfs", {"temperature": 1}, "temperature"),
    ("widedeep", {"batch_norm": "perhaps"}, "batch_norm"),
    ("xdeepfm", {"maps": []}, "maps"),
]


@pytest.mark.parametrize("name,settings,message", BAD, ids=[f"{name} {settings}" for name, settings, _ in BAD])
def test_bad_settings_are_refused_before_training(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CtrkitError) as refusal:
        build(name, INPUTS, DIM, settings)
    assert name in str(refusal.value)
    assert message in str(refusal.value)


def test_every_model_names_its_paper_and_says_what_its_settings_do() -> None:
    for info in models():
        assert info.paper[-4:].isdigit(), info.name
        assert all(setting.description for setting in info.settings), info.name


@pytest.mark.parametrize("name", ZOO)
def test_autodis_bends_the_logit_over_a_number(name: str) -> None:
    """Scaling a number leaves LR and FM a straight line; soft buckets do not. What is missing is not what is zero."""
    model = Case(name, numeric=AutoDis()).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    embeddings, _ = feed(model, 1)
    numbers = torch.tensor([-1.0, 0.0, 1.0, torch.nan])
    dense = torch.stack([numbers, torch.zeros(4)], dim=1)
    logits = model({name: e.expand(4, -1, -1) for name, e in embeddings.items()}, dense)
    low, middle, high, missing = logits if logits.ndim == 1 else logits[:, -1]
    assert abs(low + high - 2 * middle) > 1e-4
    assert abs(missing - middle) > 1e-4
