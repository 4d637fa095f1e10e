"""CMA-ES: candidates are drawn from a normal distribution that moves towards those that were worth most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


Evaluate = Callable[[list[tuple[float, ...]]], list[float]]


def evolve(
    evaluate: Evaluate,
    start: Sequence[float],
    *,
    step: float,
    count: int,
    population: int | None = None,
    seed: int = 0,
) -> None:
    """Let `evaluate` measure at most `count` vectors, generation by generation, the last of them the mean.

    The same numbers give the same vectors: a run that is repeated asks for what it has asked for.

    Source: Hansen and Ostermeier, Evolutionary Computation 9 (2001), 159-195; package `cma`. On merges: arXiv
    2403.13187, and mergekit-evolve.

    Args:
        evaluate: from the vectors of a generation to what each is worth, higher is better.
        start: the mean of the first generation.
        step: its standard deviation in every direction.
        count: vectors in all.
        population: of a generation; None is 4 + 3 ln n for n numbers.
        seed: of the draws.

    Raises:
        ValueError: as `check_generations`.
    """
    import cma

    population = population or default_population(len(start))
    check_generations(count, population)
    draws = np.random.Generator(np.random.PCG64(seed))
    options = {
        "popsize": population,
        "randn": lambda *shape: draws.standard_normal(shape),
        "seed": math.nan,  # leaves numpy's global generator alone
        "verbose": -9,
        "verb_log": 0,
    }
    state = cma.CMAEvolutionStrategy(list(start), step, options)
    for _ in range((count - 1) // population):
        vectors = state.ask()
        values = evaluate([tuple(map(float, vector)) for vector in vectors])
        state.tell(vectors, [-value for value in values])
    evaluate([tuple(map(float, state.mean))])


def check_generations(count: int, population: int) -> None:
    """Stop where the candidates are fewer than one generation and the mean.

    Raises:
        ValueError: they are.
    """
    if count <= population:
        raise ValueError(
            f"num_candidates is {count}, expected at least {population + 1}: a generation of {population}, and its mean"
        )


def default_population(numbers: int) -> int:
    """How many candidates a generation has for so many numbers: 4 + 3 ln n, rounded down.

    >>> default_population(6)
    9
    """
    return 4 + int(3 * math.log(numbers))
