"""The nearest residual of a given rank, as factors, with the share that is lost.

A merged residual has a larger rank than an adapter should have: the sum of the ranks where the rule is linear, all of
it where it is not. The nearest residual of rank R in the Frobenius norm keeps the R largest singular values
(Eckart and Young), and loses the rest: ||tau - tau_R||^2 = sum of s_i^2 over i > R.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Factors


@dataclass(frozen=True)
class Truncated:
    """One residual of rank R, and how much of the given one it is not.

    Attributes:
        factors: A `[R, in]`, B `[out, R]`, scale 1, in the dtype of the input. Each gets the square root of the
            singular values, so that neither leaves the range of half precision; zero beyond the rank that is there.
        dropped: ||tau - tau_R||_F^2.
        total: ||tau||_F^2.
    """

    factors: Factors
    dropped: float
    total: float

    @property
    def lost(self) -> float:
        """The relative Frobenius norm of what was dropped, 0 for a zero residual."""
        return _share(self.dropped, self.total)


@dataclass(frozen=True)
class Truncation:
    """What truncation to `rank` lost of a whole adapter, as relative Frobenius norms.

    Attributes:
        rank: R.
        lost: over all modules together.
        worst_module: the module that lost the largest share of its own residual.
        worst_lost: that share.
    """

    rank: int
    lost: float
    worst_module: str
    worst_lost: float


def truncate(factors: Factors, rank: int) -> Truncated:
    """The nearest residual of rank `rank` to s B A, which is not formed.

        B = Q_B R_B,  A^T = Q_A R_A,  s R_B R_A^T = U S V^T
        B' = Q_B U sqrt(S),  A' = sqrt(S) V^T Q_A^T     (the first R columns and rows)

    In float64: O((out + in) r^2 + r^3) for r given ranks.

    Raises:
        ValueError: `rank` is not a positive whole number, or a factor has values that are not finite.
    """
    check_rank(rank)
    A, B = _finite(factors.A).to(torch.float64), _finite(factors.B).to(torch.float64)
    of_B, core_B = torch.linalg.qr(B)
    of_A, core_A = torch.linalg.qr(A.T)
    left, singular, right = torch.linalg.svd(factors.scale * (core_B @ core_A.T), full_matrices=False)
    kept = singular[:rank]
    root = kept.sqrt()
    short_B = (of_B @ left[:, : len(kept)]) * root
    short_A = root[:, None] * (right[: len(kept)] @ of_A.T)
    squares = singular.square()
    return Truncated(
        _padded(short_A, short_B, rank, factors.A.dtype), squares[rank:].sum().item(), squares.sum().item()
    )


def factorise(residual: Tensor, rank: int) -> Truncated:
    """The nearest residual of rank `rank` to a dense one, `[out, in]`.

    With G = tau tau^T for out <= in (else G = tau^T tau) and U its first R eigenvectors, the projection U U^T tau is
    that residual: A' = U^T tau with rows of norm s_i. In float64, O(min(out, in)^2 max(out, in)), exact: no random
    sketch, no iterations to choose. G squares the singular values, so directions below about 1e-8 of the largest drown
    in its rounding; `dropped` is measured on the result and counts what that costs.

    Raises:
        ValueError: `rank` is not a positive whole number, or `residual` is not a matrix of finite values.
    """
    check_rank(rank)
    if residual.ndim != 2:
        raise ValueError(f"a residual of shape {tuple(residual.shape)} has no rank; factorise takes matrices only")
    dtype = torch.promote_types(residual.dtype, torch.float32)
    matrix = _finite(residual).to(torch.float64)
    if matrix.shape[0] > matrix.shape[1]:
        left, right, dropped, total = _project(matrix.T, rank)
        A, B = left.T, right.T
    else:
        B, A, dropped, total = _project(matrix, rank)
    return Truncated(_padded(A, B, rank, dtype), dropped, total)


def truncate_adapter(merged: Mapping[str, Factors], rank: int) -> tuple[dict[str, Factors], Truncation]:
    """Every module truncated to `rank`, and what that lost."""
    return _collect(((module, truncate(factors, rank)) for module, factors in merged.items()), rank)


def factorise_residuals(residuals: Iterable[tuple[str, Tensor]], rank: int) -> tuple[dict[str, Factors], Truncation]:
    """Dense merged residuals as an adapter of one rank, and what that lost.

    Takes one module at a time, so that of an iterator only the residual at hand and the one before are in memory.
    This is how a rule that is not linear in the residuals becomes an adapter.

    Args:
        residuals: module name and merged, LiNeS-scaled residual `[out, in]` (transposed where the checkpoint stores
            `[in, out]`), on any device.
        rank: R.

    Returns:
        Factors by module, on the CPU, and the truncation.
    """
    return _collect(((module, factorise(residual, rank)) for module, residual in residuals), rank)


def check_rank(rank: int) -> None:
    """Stop with a ValueError unless `rank` is a positive whole number."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}, expected a whole number of at least 1")


def _collect(items: Iterable[tuple[str, Truncated]], rank: int) -> tuple[dict[str, Factors], Truncation]:
    factors: dict[str, Factors] = {}
    dropped = total = 0.0
    worst_module, worst_lost = "", -1.0
    for module, truncated in items:
        factors[module] = truncated.factors
        dropped += truncated.dropped
        total += truncated.total
        if truncated.lost > worst_lost:
            worst_module, worst_lost = module, truncated.lost
    if not factors:
        raise ValueError("there is no residual to truncate; give at least one adapted module")
    return factors, Truncation(rank, _share(dropped, total), worst_module, worst_lost)


def _project(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Columns and rows of the best approximation of a wide float64 matrix, and the squared norms."""
    directions = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
    rows = directions.T @ matrix
    singular = torch.linalg.vector_norm(rows, dim=1)
    # Directions in which there is nothing but rounding would be divided by it.
    real = singular > singular.amax() * max(matrix.shape) * torch.finfo(torch.float64).eps
    directions, rows, root = directions[:, real], rows[real], singular[real].sqrt()
    dropped = (matrix - directions @ rows).square().sum().item()
    return directions * root, rows / root[:, None], dropped, matrix.square().sum().item()


def _finite(tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise ValueError("the merged residual has values that are not finite; check alpha, beta and weights")
    return tensor


def _padded(A: Tensor, B: Tensor, rank: int, dtype: torch.dtype) -> Factors:
    wide_A = torch.zeros(rank, A.shape[1], dtype=dtype)
    wide_B = torch.zeros(B.shape[0], rank, dtype=dtype)
    wide_A[: A.shape[0]] = A
    wide_B[:, : B.shape[1]] = B
    return Factors(wide_A, wide_B, 1.0)


def _share(dropped: float, total: float) -> float:
    return (dropped / total) ** 0.5 if total else 0.0
