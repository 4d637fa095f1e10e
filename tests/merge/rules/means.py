"""Three residuals for rules that are weighted means, and their plain mean, in float64."""

from __future__ import annotations

import torch

from tests.merge.rules.one_layer import DOWN, EMBEDDING, NORM, UP, Q, randn


SHAPES = {EMBEDDING: (7, 4), Q: (4, 4), UP: (6, 4), DOWN: (4, 6), NORM: (4,)}
LINEAR = (Q, UP, DOWN)
RESIDUALS = [randn(k, shapes=SHAPES) for k in range(3)]


def mean(residuals, weights) -> dict[str, torch.Tensor]:
    total = sum(weights)
    return {
        name: sum(w / total * residual[name] for w, residual in zip(weights, residuals, strict=True))
        for name in residuals[0]
    }
