"""Evolutionary search (Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020): the children of the
best candidates so far are half mutations, of which each number is drawn anew with some chance, and half crossovers of two, cut at one place."""

from collections.abc import Callable, Sequence
from random import Random

PARENTS = 15
"""The best so far, of which the next generation comes."""

Candidate = tuple[int, ...]


def evolve(
    fitness: Callable[[Candidate], float],
    first: Sequence[Candidate],
    largest: int,
    generations: int,
    population: int,
    mutation: float,
    draw: Random,
) -> Candidate:
    """The fittest candidate found: numbers from 1 to ``largest``, equally many in each. None is judged twice.

    Args:
        fitness: higher is better.
        first: candidates of the first generation, at least one; the others are drawn.
        generations: at least one.
        population: candidates of a generation.
        mutation: the chance of a number to be drawn anew.
    """
    length = len(first[0])
    found: dict[Candidate, float] = {}
    candidates = [*first, *(tuple(draw.randint(1, largest) for _ in range(length)) for _ in range(population - len(first)))]
    for _ in range(generations):
        for candidate in candidates:
            if candidate not in found:
                found[candidate] = fitness(candidate)
        parents = sorted(found, key=lambda candidate: -found[candidate])[:PARENTS]
        mutated = [
            tuple(draw.randint(1, largest) if draw.random() < mutation else number for number in draw.choice(parents))
            for _ in range(population - population // 2)
        ]
        crossed = []
        for _ in range(population // 2):
            left, right = draw.choices(parents, k=2)
            cut = draw.randint(1, length)
            crossed.append(left[:cut] + right[cut:])
        candidates = mutated + crossed
    return max(found, key=lambda candidate: found[candidate])
