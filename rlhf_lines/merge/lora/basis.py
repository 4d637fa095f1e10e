"""Many adapters of one SFT model kept in one basis, from which each of them, or any mix, is rebuilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Adapter, Factors
from rlhf_lines.merge.lora.low_rank import difference


@dataclass(frozen=True)
class Half:
    """One factor of one module, of N policies: at each of n positions N vectors of R numbers, in p directions.

        x_k = mean + U c_k

    Attributes:
        mean: `[n, R]`.
        directions: U, `[n, R, p]`, orthonormal.
        coefficients: c, `[n, p, N]`.
    """

    mean: Tensor
    directions: Tensor
    coefficients: Tensor

    def vectors(self, policy: int) -> Tensor:
        """The vectors of a policy at all positions, `[n, R]`."""
        coefficients = self.coefficients[:, :, policy].to(torch.float64).unsqueeze(2)
        return self.mean.to(torch.float64) + (self.directions.to(torch.float64) @ coefficients).squeeze(2)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {"mean": self.mean, "directions": self.directions, "coefficients": self.coefficients}


@dataclass(frozen=True)
class Basis:
    """N policies as one basis.

    Attributes:
        modules: module name to its halves of A (positions are inputs) and of B (positions are outputs, scale included).
        policies: N.
    """

    modules: dict[str, tuple[Half, Half]]
    policies: int

    def factors(self, policy: int, dtype: torch.dtype = torch.float32) -> dict[str, Factors]:
        """A policy as it comes out of the basis: scale 1, one rank R."""
        return {
            module: Factors(of_A.vectors(policy).T.to(dtype).contiguous(), of_B.vectors(policy).to(dtype), 1.0)
            for module, (of_A, of_B) in self.modules.items()
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """All that is stored, by name."""
        return {
            f"{module}.{factor}.{name}": tensor.contiguous()
            for module, halves in self.modules.items()
            for factor, half in zip("AB", halves, strict=True)
            for name, tensor in half.tensors.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Basis:
        """The basis that `to_tensors` wrote.

        Raises:
            ValueError: names or shapes of something else.
        """
        try:
            modules = sorted({name.rsplit(".", 2)[0] for name in tensors})
            halves = {
                module: tuple(
                    Half(*(tensors[f"{module}.{factor}.{part}"] for part in ("mean", "directions", "coefficients")))
                    for factor in "AB"
                )
                for module in modules
            }
            (policies,) = {half.coefficients.shape[2] for pair in halves.values() for half in pair}
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("the file holds no basis as `rlhf-lines basis` writes it; make it again") from error
        return cls(halves, policies)


def most_components(policies: int, rank: int, numbers: int, positions: int) -> int:
    """The largest p that takes fewer numbers than the policies themselves: p (R + N) + R at every position.

    >>> most_components(8, rank=16, numbers=8 * 16, positions=1), most_components(2, rank=16, numbers=32, positions=1)
    (4, 0)

    Args:
        policies: N.
        rank: R, the largest of any module of theirs.
        numbers: of all their factors.
        positions: rows of B and columns of A of every module that any of them adapts.
    """
    return max(((numbers - 1) // positions - rank) // (rank + policies), 0)


def fit_basis(adapters: Sequence[Adapter], components: int, *, dtype: torch.dtype = torch.float32) -> Basis:
    """The basis of p components whose factors are nearest to those of the adapters.

        at every row of B, and every column of A:   X = [x_1 .. x_N], `[R, N]`,  X - mean = U S V^T
        kept: the mean, the first p columns of U, and c = U_p^T (X - mean)

    which minimises sum_k |x_k - mean - U c_k|^2 over all bases of p directions (principal components). The residual
    s B A is bilinear in what is fitted, so its error is another one: see `lost_by`. N - 1 components lose nothing, but
    take more numbers than the adapters. Factors have a gauge (B M, M^-1 A is the same residual), which the fit sees:
    policies that began from the same random A share it.

    Where a policy has a smaller rank, or does not adapt a module, its vectors end in zeros, or are zero. In float64,
    cast once. Source: arXiv 2510.14163, section 4 (there A and B are exchanged); no public code.

    Args:
        adapters: N policies of one SFT model.
        components: p, at least 1 and less than N.
        dtype: of what is kept.

    Raises:
        ValueError: a number of components that no N policies have.
    """
    if not 1 <= components < len(adapters):
        raise ValueError(
            f"components is {components}, expected a whole number from 1 to {len(adapters) - 1}, one less than there "
            "are policies"
        )
    rank = largest_rank(adapters)
    shapes = _shapes(adapters)
    modules = {}
    for module, (out, into) in sorted(shapes.items()):
        of_A = torch.zeros(len(adapters), into, rank, dtype=torch.float64)
        of_B = torch.zeros(len(adapters), out, rank, dtype=torch.float64)
        for k, adapter in enumerate(adapters):
            if module in adapter.modules:
                factors = adapter.modules[module]
                of_A[k, :, : factors.A.shape[0]] = factors.A.T
                of_B[k, :, : factors.B.shape[1]] = factors.B.to(torch.float64) * factors.scale
        modules[module] = _fit(of_A, components, dtype), _fit(of_B, components, dtype)
    return Basis(modules, len(adapters))


def largest_rank(adapters: Sequence[Adapter]) -> int:
    """R: the largest rank of any module."""
    return max(factors.A.shape[0] for adapter in adapters for factors in adapter.modules.values())


def numbers_of(adapter: Adapter) -> int:
    """How many numbers the factors of an adapter hold."""
    return sum(factors.A.numel() + factors.B.numel() for factors in adapter.modules.values())


def positions_of(adapters: Sequence[Adapter]) -> int:
    """The rows of B and columns of A of every module that any of the adapters has."""
    return sum(map(sum, _shapes(adapters).values()))


def lost_by(basis: Basis, adapters: Sequence[Adapter]) -> list[float]:
    """For each policy the relative Frobenius norm of what its residual lost: ||s B A - B' A'|| / ||s B A||."""
    shapes = _shapes(adapters)
    lost = []
    for k, adapter in enumerate(adapters):
        nothing = {
            module: Factors(torch.zeros(1, into), torch.zeros(out, 1), 1.0) for module, (out, into) in shapes.items()
        }
        lost.append(difference(nothing | adapter.modules, basis.factors(k, torch.float64)))
    return lost


def _fit(vectors: Tensor, components: int, dtype: torch.dtype) -> Half:
    """Principal components of `[N, n, R]` at each of n positions."""
    mean = vectors.mean(0)
    centred = (vectors - mean).permute(1, 2, 0)  # [n, R, N]
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    directions = left[:, :, :components]
    coefficients = directions.transpose(1, 2) @ centred
    return Half(mean.to(dtype), directions.to(dtype), coefficients.to(dtype))


def _shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """Module name to (out, in), of all modules that any policy adapts."""
    return {
        module: (factors.B.shape[0], factors.A.shape[1])
        for adapter in adapters
        for module, factors in adapter.modules.items()
    }
