"""Random residuals of a model of one layer, in float64."""

from __future__ import annotations

import torch


Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
SHAPES = {EMBEDDING: (9, 5), Q: (5, 5), UP: (8, 5), DOWN: (5, 8), NORM: (5,), HEAD: (9, 5)}
LINEAR = (Q, UP, DOWN, HEAD)
WEIGHTS = [0.5, 0.3, 0.2]


def randn(seed: int, scale: float = 1.0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def flat(residual: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([residual[name].flatten() for name in SHAPES])


def assert_equal(got, expected, rtol=1e-10, atol=1e-13) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
