"""Learning-rate factors in closed form."""

import pytest

from ctrkit.config import Training
from ctrkit.training.schedule import factor


def factors(total: int = 10, plateaus: int = 0, **settings) -> list[float]:
    return [factor(Training(**settings), step, total, plateaus) for step in range(total)]


def test_warm_up_rises_to_one() -> None:
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_falls_to_zero_from_the_end_of_warm_up() -> None:
    assert factors(6, warmup_steps=2, decay="linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_down_at_half_time() -> None:
    values = factors(8, decay="cosine")
    assert values[0] == 1 and values[4] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True) and values[-1] > 0


def test_plateau_is_a_tenth_each_time() -> None:
    assert factors(2, decay="plateau", plateaus=2) == pytest.approx([0.01, 0.01])
    assert factors(2, decay="none", plateaus=2) == [1, 1]
