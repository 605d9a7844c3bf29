"""Evolutionary search: it climbs, judges nobody twice, and keeps the best that it has seen."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ctrkit.embeddings.compression.evolution import Candidate, evolve

TARGET = (3, 8, 1, 5, 5, 2)


def nearness(candidate: Candidate) -> float:
    return -sum(abs(mine - own) for mine, own in zip(candidate, TARGET, strict=True))


def test_it_climbs_to_the_top() -> None:
    assert evolve(nearness, [(8,) * 6], 8, generations=60, population=20, mutation=0.2, draw=Random(0)) == TARGET


@given(generations=st.integers(1, 5), population=st.integers(1, 9), mutation=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_the_best_of_all_that_were_judged_once(generations: int, population: int, mutation: float, seed: int) -> None:
    judged: Counter[Candidate] = Counter()

    def fitness(candidate: Candidate) -> float:
        judged[candidate] += 1
        assert len(candidate) == 6 and all(1 <= number <= 8 for number in candidate)
        return nearness(candidate)

    best = evolve(fitness, [(8,) * 6], 8, generations, population, mutation, Random(seed))
    assert next(iter(judged)) == (8,) * 6 and set(judged.values()) == {1}
    assert len(judged) <= generations * population
    assert nearness(best) == max(nearness(candidate) for candidate in judged)


def test_without_mutation_two_candidates_are_crossed_at_one_place() -> None:
    judged: list[Candidate] = []

    def fitness(candidate: Candidate) -> float:
        judged.append(candidate)
        return sum(candidate)

    assert evolve(fitness, [(1, 1, 8, 8), (8, 8, 1, 1)], 8, 40, 2, mutation=0.0, draw=Random(1)) == (8, 8, 8, 8)
    assert all(number in (1, 8) for candidate in judged for number in candidate)
