"""M2N2: an archive of merges that compete for prompts, and children of parents that are good at different ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


Matrix = NDArray[np.float64]


def evolve_niches(
    evaluate: Callable[[list[Matrix]], list[Matrix]],
    first: Sequence[Matrix],
    *,
    count: int,
    size: int,
    children: int,
    seed: int = 0,
    alpha: float = 1.0,
) -> None:
    """Let `evaluate` measure `count` vectors: the first ones, then children, so many at a time.

    A child of parents a and b is their `crossover` with a ratio and a split point that are drawn uniformly. The first
    parent is drawn by fitness, the second by `attraction` to the first. It enters the archive where it is fitter than
    the least fit.

    Source: arXiv 2508.16204 (M2N2); there weights are crossed over, here vectors of factors.

    Args:
        evaluate: from vectors to what each is worth on every prompt, `[P]`, not below zero.
        first: the first archive.
        count: vectors in all.
        size: of the archive at most.
        children: how many are made of one archive.
        seed: of the draws.
        alpha: how strongly they compete; see `fitness`.
    """
    draws = np.random.Generator(np.random.PCG64(seed))
    archive, scores = list(first), np.stack(evaluate(list(first)))
    left = count - len(archive)
    while left > 0:
        made = [_child(archive, scores, draws, alpha) for _ in range(min(children, left))]
        for child, score in zip(made, evaluate(made), strict=True):
            if len(archive) < size:
                archive, scores = [*archive, child], np.vstack([scores, score])
            else:
                archive, scores = updated(archive, scores, child, score, alpha)
        left -= len(made)


def fitness(scores: Matrix, alpha: float = 1.0) -> Matrix:
    """What each of n individuals gets of the prompts' resources, `[n]`.

        f_i = sum_j s_ij / z_j^alpha,   z_j = sum_i s_ij

    A prompt that few do well on counts more. One on which all score 0 counts nothing.

    Args:
        scores: `[n, P]`, not below zero.
        alpha: 0 is the plain sum.
    """
    total = scores.sum(axis=0)
    return (scores / np.where(total > 0, total, 1.0) ** alpha).sum(axis=1)


def updated(
    archive: Sequence[Matrix], scores: Matrix, child: Matrix, score: Matrix, alpha: float = 1.0
) -> tuple[list[Matrix], Matrix]:
    """The archive and its scores with the child in the place of the least fit, where it is fitter than that one."""
    fit = fitness(np.vstack([scores, score]), alpha)
    worst = int(fit[:-1].argmin())
    if not fit[-1] > fit[worst]:
        return list(archive), scores
    archive, scores = list(archive), scores.copy()
    archive[worst], scores[worst] = child, score
    return archive, scores


def attraction(scores: Matrix, parent: int, alpha: float = 1.0) -> Matrix:
    """How much each individual offers that a parent p lacks, `[n]`.

    a_i = sum_j max(0, f_ij - f_pj),   f_ij = s_ij / z_j^alpha
    """
    total = scores.sum(axis=0)
    shares = scores / np.where(total > 0, total, 1.0) ** alpha
    return np.maximum(shares - shares[parent], 0.0).sum(axis=1)


def crossover(first: Matrix, second: Matrix, ratio: float, split: int) -> Matrix:
    """A vector on the arc between two, at the ratio before the split point and at 1 - ratio after it.

        sin((1 - t) omega) / sin omega a + sin(t omega) / sin omega b,   omega the angle of the whole vectors

    where t is the ratio before the split and 1 - ratio after it. Vectors in one direction are mixed along the line.
    """
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = np.clip(first @ second / lengths, -1.0, 1.0) if lengths else 1.0
    share = np.where(np.arange(len(first)) < split, ratio, 1 - ratio)
    omega = np.arccos(cosine)
    if np.sin(omega) < 1e-6:
        return (1 - share) * first + share * second
    return (np.sin((1 - share) * omega) * first + np.sin(share * omega) * second) / np.sin(omega)


def _child(archive: Sequence[Matrix], scores: Matrix, draws: np.random.Generator, alpha: float) -> Matrix:
    first = _drawn(fitness(scores, alpha), draws)
    second = _drawn(attraction(scores, first, alpha), draws)
    return crossover(archive[first], archive[second], draws.random(), int(draws.integers(len(archive[0]) + 1)))


def _drawn(chances: Matrix, draws: np.random.Generator) -> int:
    """An index by its chance; where all are 0, any."""
    total = chances.sum()
    return int(draws.choice(len(chances), p=chances / total if total > 0 else None))
