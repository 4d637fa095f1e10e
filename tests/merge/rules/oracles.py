"""Random residuals for oracles in numpy: float64, whole vectors, loops where they are clearer."""

from __future__ import annotations

import math

import numpy as np
import torch

from rlhf_lines.merge.tensors.spans import ELEMENTS


# One parameter is longer than a chunk, one has no dimensions, one no elements.
SHAPES = {"w": (1030, 257), "a.b": (41, 13), "v": (29,), "c": (3, 4, 5), "s": (), "e": (0, 7)}
assert math.prod(SHAPES["w"]) > ELEMENTS


def random_tensors(count: int, dtype=torch.float32, seed: int = 0, *, shared: float = 0.5) -> list[dict]:
    """`count` heavy-tailed residuals that have a part in common; the first lacks one parameter."""
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn((count + 1, *shape), generator=generator) ** 3 for name, shape in SHAPES.items()}
    residuals = [{name: (x[k] + shared * x[count]).to(dtype) for name, x in draw.items()} for k in range(count)]
    del residuals[0]["c"]
    return residuals


def sft_tensors(dtype=torch.float32) -> dict[str, torch.Tensor]:
    return random_tensors(2, dtype, seed=99)[1]


def assert_same_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def flat(residuals: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """``[K, d]``, parameters in alphabetical order."""
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return np.stack(
        [np.concatenate([{**zeros, **r}[name].double().numpy().ravel() for name in sorted(SHAPES)]) for r in residuals]
    )


def by_parameter(vectors: np.ndarray, oracle) -> np.ndarray:
    """`oracle` of the columns of each parameter alone."""
    ends = np.cumsum([math.prod(SHAPES[name]) for name in sorted(SHAPES)])
    return np.concatenate([oracle(part) for part in np.split(vectors, ends[:-1], axis=1)])


def assert_is(got: dict[str, torch.Tensor], expected: np.ndarray) -> None:
    np.testing.assert_allclose(flat([got])[0], expected, rtol=1e-11, atol=1e-13)


def ties_oracle(vectors: np.ndarray, density: float, reduction: str, kept: int, positive: bool) -> np.ndarray:
    trimmed = []
    for vector in vectors:
        if len(vector) == 0:
            return vector
        smallest = np.sort(np.abs(vector))[::-1][min(kept, len(vector)) - 1]
        trimmed.append(np.where(np.abs(vector) >= smallest, vector, 0))
    totals = np.sum(trimmed, axis=0)
    signs = np.sign(totals)
    signs[signs == 0] = 1 if positive or np.sign(signs.sum()) > 0 else -1
    agreeing = [np.where(t * signs > 0, t, 0) for t in trimmed]
    if reduction == "max":
        return np.max(np.abs(agreeing), axis=0) * signs
    total = np.sum(agreeing, axis=0)
    return total / np.maximum(np.count_nonzero(agreeing, axis=0), 1) if reduction == "mean" else total
