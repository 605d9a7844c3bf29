from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from ctrkit.layers.normalisation import BatchNorm


def pair(channels: int) -> tuple[BatchNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    ours, torchs = BatchNorm(channels), nn.BatchNorm1d(channels, momentum=None)
    with torch.no_grad():
        for mine, theirs in ((ours.scale, torchs.weight), (ours.shift, torchs.bias)):
            theirs.copy_(mine.normal_())
    return ours, torchs


def test_in_one_process_it_is_torchs() -> None:
    ours, torchs = pair(3)
    for _ in range(3):
        x = 2 + 3 * torch.randn(8, 3, 5)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(ours(mine), torchs(theirs))
        weights = torch.randn(8, 3, 5)
        (ours(mine) * weights).sum().backward()
        (torchs(theirs) * weights).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.scale.grad, torchs.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mean, torchs.running_mean)
    torch.testing.assert_close(ours.variance, torchs.running_var)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_statistics_forget_once_there_are_enough_batches() -> None:
    norm = BatchNorm(1, momentum=0.25)
    for value in range(1, 7):
        norm(torch.tensor([[value - 1.0], [value + 1.0]]))
    assert norm.mean.item() == pytest.approx(0.75 * (0.75 * (1 + 2 + 3 + 4) / 4 + 0.25 * 5) + 0.25 * 6)
    assert norm.variance.item() == pytest.approx(2)


def test_a_batch_of_one_row_is_its_own_mean() -> None:
    norm = BatchNorm(2)
    result = norm(torch.tensor([[5.0, -7.0]]))
    torch.testing.assert_close(result, torch.zeros(1, 2))
    assert norm.variance.tolist() == [1, 1] and norm.mean.tolist() == [0, 0], "one row tells no variance"


def test_a_compiled_layer_is_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounter

    norm, counter = BatchNorm(3), CompileCounter()
    compiled = torch.compile(norm, backend=counter)
    plain, _ = pair(3)
    plain.load_state_dict(norm.state_dict())
    for _ in range(5):
        x = torch.randn(8, 3)
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(norm.variance, plain.variance)
    assert counter.frame_count == 1


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    result = BatchNorm(1)(10_000 + torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)))
    assert abs(result.std().item() - 1) < 0.01


ROWS = (7, 3)
"""Of the two processes: unequal shares of a batch of ten."""


def one_of_two(rank: int, folder: str) -> None:
    """Normalises this process' rows and leaves what came of it in a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm, _ = pair(3)
    x, weights = (part.split(ROWS)[rank].clone() for part in batch())
    x.requires_grad_()
    result = norm(x)
    (result * weights).sum().backward()
    torch.save([result, x.grad, norm.scale.grad, norm.shift.grad, norm.mean, norm.variance], f"{folder}/{rank}")
    dist.destroy_process_group()


def batch() -> torch.Tensor:
    """Rows and the weights of a loss, ``[2, rows, channels, 5]``, of unlike means."""
    draw = torch.randn(2, sum(ROWS), 3, 5, generator=torch.Generator().manual_seed(1))
    return draw + torch.arange(sum(ROWS)).view(1, -1, 1, 1)


def test_two_processes_normalise_as_one_does(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    norm, _ = pair(3)
    x, weights = batch().unbind()
    x = x.clone().requires_grad_()
    result = norm(x)
    (result * weights).sum().backward()
    assert x.grad is not None and norm.scale.grad is not None and norm.shift.grad is not None
    torch.testing.assert_close(torch.cat([first[0], second[0]]), result)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[2] + second[2], norm.scale.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[3] + second[3], norm.shift.grad)
    for statistics in (first[4:], second[4:]):
        torch.testing.assert_close(statistics, [norm.mean, norm.variance])


def test_a_row_that_stands_for_several_counts_as_often() -> None:
    rows, times = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4, 2, 1, 7])
    weighed, spelled_out = BatchNorm(3), BatchNorm(3)
    expected = spelled_out(rows.repeat_interleave(times, dim=0))
    torch.testing.assert_close(weighed(rows, times).repeat_interleave(times, dim=0), expected)
    torch.testing.assert_close(weighed.mean, spelled_out.mean)
    torch.testing.assert_close(weighed.variance, spelled_out.variance)
