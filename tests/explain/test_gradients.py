"""Integrated gradients: complete for every model, and what a closed form says where there is one."""

import pytest
import torch

from ctrkit.config import AutoDis, Numeric, Scale
from ctrkit.explain.gradients import average_row, contributions
from ctrkit.explain.lookups import Lookups
from ctrkit.explain.subject import Subject
from ctrkit.models.registry import build, models
from ctrkit.schema import IdField, Inputs

IDS, NUMBERS, ROWS, LENGTH = 4, 3, 8, 5
MODELS = {info.name: info.kind for info in models()}


def make(name: str, ids: int = IDS, numbers: int = NUMBERS, numeric: Numeric | None = None) -> tuple[Subject, Lookups]:
    """A model whose weights are all off zero, and rows of which a third of the numbers are missing; row k of a history of k values."""
    torch.manual_seed(0)
    fields = tuple(IdField(name=f"c{k}", rows=9) for k in range(ids))
    tasks = ("click", "buy") if MODELS[name] == "multi-task" else ()
    if MODELS[name] == "sequence":
        fields = (fields[0], IdField(name="past", rows=9, multi_valued=True, of="c1", length=LENGTH), *fields[1:])
    inputs = Inputs(id_fields=fields, numeric_fields=tuple(f"n{k}" for k in range(numbers)), tasks=tasks)
    model = build(name, inputs, 4, {}, numeric or Scale()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    embeddings = {group.name: torch.randn(ROWS, ids, group.dim) for group in model.groups(4)}
    if MODELS[name] == "sequence":
        mask = torch.arange(LENGTH) >= LENGTH - torch.arange(ROWS).unsqueeze(1)
        embeddings |= {"embedding/past": torch.randn(ROWS, LENGTH, 4) * mask.unsqueeze(2), "mask/past": mask}
    dense = torch.randn(ROWS, numbers).masked_fill(torch.rand(ROWS, numbers) < 0.3, torch.nan)
    return Subject(model, len(tasks) - 1 if tasks else None), Lookups(embeddings, dense, torch.zeros(ROWS))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("numeric", [Scale(), AutoDis(meta_embeddings=3)], ids=lambda numeric: numeric.kind)
def test_contributions_add_up_to_the_logit(name: str, numeric: Numeric) -> None:
    subject, rows = make(name, numeric=numeric)
    baseline = average_row(subject, rows)
    found = contributions(subject, rows, baseline, steps=512)
    assert found.values.shape == (ROWS, len(subject.fields))
    torch.testing.assert_close(found.logits, subject(rows.embeddings, rows.dense))
    moved = (found.logits - baseline.logit).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(baseline.logit + found.values.sum(1), found.logits, atol=float(0.02 * moved), rtol=0)
    torch.testing.assert_close(found.gap, (found.logits - baseline.logit - found.values.sum(1)).abs())


@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if kind == "sequence"])
def test_all_that_a_history_brings_is_its_own_contribution(name: str) -> None:
    """Rows that are the average row but for their history, whose contribution then is all that differs; an empty one's too."""
    subject, rows = make(name)
    own = {"embedding/past", "mask/past"}
    average = average_row(subject, rows)
    same = {key: e if key in own else average.embeddings[key].expand_as(e).clone() for key, e in rows.embeddings.items()}
    rows = Lookups(same, rows.dense[:1].nan_to_num().expand(ROWS, -1).clone(), rows.labels)
    baseline = average_row(subject, rows)
    found = contributions(subject, rows, baseline, steps=512)
    past = subject.fields.index("past")
    assert found.values[:, [i for i in range(len(subject.fields)) if i != past]].abs().max() < 1e-5
    moved = found.logits - baseline.logit
    assert moved[0].abs() > 1e-4, "row 0 has no history"
    torch.testing.assert_close(found.values[:, past], moved, atol=0.02 * float(moved.abs().max()), rtol=0)


def test_another_task_has_contributions_of_its_own() -> None:
    subject, rows = make("mmoe")
    other = Subject(subject.arch, 0)
    ours, theirs = (contributions(one, rows, average_row(one, rows), steps=64) for one in (subject, other))
    logits = subject.arch(rows.embeddings, rows.dense)
    torch.testing.assert_close(ours.logits, logits[:, 1])
    torch.testing.assert_close(theirs.logits, logits[:, 0])
    assert (ours.values - theirs.values).abs().max() > 1e-3


@pytest.mark.parametrize("ids,numbers", [(3, 0), (0, 3)])
@pytest.mark.parametrize("name", ["lr", "autoint", "dnn"])
def test_fields_may_be_of_one_kind(name: str, ids: int, numbers: int) -> None:
    model, rows = make(name, ids, numbers)
    baseline = average_row(model, rows)
    found = contributions(model, rows, baseline, steps=128)
    assert found.values.shape == (ROWS, ids + numbers)
    assert found.gap.max() < 0.02 * (found.logits - baseline.logit).abs().max()


def test_a_linear_model_is_explained_exactly() -> None:
    """A weight less its mean over the rows; and numbers, missing ones too, likewise."""
    model, rows = make("lr")
    found = contributions(model, rows, average_row(model, rows), steps=3)
    weights = rows.embeddings["linear"][:, :, 0]
    torch.testing.assert_close(found.values[:, :IDS], weights - weights.mean(0))
    number = model.arch.first_order.vectors.numeric
    shares = number(rows.dense)[:, :, 0]
    torch.testing.assert_close(found.values[:, IDS:], shares - shares.mean(0), atol=1e-5, rtol=1e-5)
    assert rows.dense.isnan().any(0).all()


def test_a_row_that_is_the_average_row_has_no_contributions() -> None:
    model, rows = make("deepfm", numbers=0)
    same = Lookups({name: e[:1].expand_as(e).clone() for name, e in rows.embeddings.items()}, rows.dense, rows.labels)
    assert contributions(model, same, average_row(model, same), steps=8).values.abs().max() < 1e-6


def test_a_cross_is_half_of_each_of_its_fields() -> None:
    inputs = Inputs(id_fields=tuple(IdField(name=name, rows=4) for name in "abc"), numeric_fields=("n",))
    methods = torch.tensor([1, 2, 0, 0, 0, 0], dtype=torch.int8)  # a and b factorised, a and c memorised
    model = build("optinter", inputs, 4, {"hidden": (8,)}, decision={"methods": methods, "a@c": torch.tensor([5, 6])}).eval()
    subject = Subject(model)
    assert {name: owners.tolist() for name, owners in subject.owners.items()} == {
        "embedding": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
        "factor": [[1, 0, 0, 0], [0, 1, 0, 0]],
        "cross": [[0.5, 0, 0.5, 0]],
    }
    rows = Lookups(
        {g.name: torch.randn(ROWS, len(subject.owners[g.name]), g.dim) for g in model.groups(4)}, torch.randn(ROWS, 1), torch.zeros(ROWS)
    )
    found = contributions(subject, rows, average_row(subject, rows), steps=512)
    assert found.values.shape == (ROWS, 4) and found.gap.max() < 0.02 * (found.logits.max() - found.logits.min())


def test_a_field_that_no_weight_reads_gets_nothing() -> None:
    model, rows = make("dnn")
    first = next(layer for layer in model.arch.tower.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        first.weight[:, 4:8] = 0  # of the second field
    found = contributions(model, rows, average_row(model, rows), steps=16).values.abs().mean(0)
    assert found[1] == 0
    assert (found[[0, 2, 3, 4, 5, 6]] > 1e-4).all()
