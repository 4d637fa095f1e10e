"""Whether two merged checkpoints in bfloat16 are the same merge, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass
class Agreement:
    """Counts of elements; `cancelled` and `at_threshold` are those more than one unit in the last place apart.

    `cancelled`: the merged value is so much smaller than what it is the sum of that float32 rounding shows.
    `at_threshold`: a residual that is as large as the threshold of TIES, where the number to keep cuts through equal
    magnitudes.
    """

    elements: int = 0
    different: int = 0
    cancelled: int = 0
    at_threshold: int = 0

    def __str__(self) -> str:
        parts = [f"{self.different / self.elements:.2g} of {self.elements:,} elements differ"]
        parts += [f"{self.cancelled / self.elements:.2g} by cancellation"] if self.cancelled else []
        parts += [f"{self.at_threshold / self.elements:.2g} at a threshold"] if self.at_threshold else []
        within = self.different - self.cancelled - self.at_threshold
        return ", ".join([*parts, f"{within / self.elements:.2g} by one unit in the last place of bfloat16"])


def assert_agreement(
    ours: Path, theirs: Path, sft: Path, policies: Sequence[Path], *, density: float | None = None
) -> Agreement:
    """Compare two merges of the same policies; folders with one file of weights each.

    Equal means: at most one unit in the last place of bfloat16 apart, or no further than two float32 computations of
    theta_SFT + sum_k c_k tau_k, |c_k| <= 1.5, can be.

    Args:
        ours: one merged checkpoint.
        theirs: the other.
        sft: the SFT model.
        policies: the checkpoints that were merged.
        density: for TIES per tensor, the share of each residual that is kept; where |tau_k| is the last magnitude to be
            kept or the first to be dropped, elements may differ by any amount. None: they may not.

    Raises:
        AssertionError: names, shapes or dtypes differ, or an element does; names the first tensor.
    """
    found = Agreement()
    folders = (ours, theirs, sft, *policies)
    files = [safe_open(folder / "model.safetensors", "pt") for folder in folders]
    names = files[0].keys()
    assert set(names) == set(files[1].keys()), f"{ours} and {theirs} hold other parameters"
    for name in names:
        a, b, base, *tuned = (file.get_tensor(name) for file in files)
        assert a.dtype == b.dtype == torch.bfloat16, f"{name} is {a.dtype} in {ours}, {b.dtype} in {theirs}"
        assert a.shape == b.shape == base.shape, f"{name} has shape {a.shape} in {ours}, {b.shape} in {theirs}"
        found.elements += a.numel()
        different = (a.view(torch.int16) != b.view(torch.int16)).flatten().nonzero().squeeze(1)
        found.different += len(different)
        at = different[_units_apart(a.flatten()[different], b.flatten()[different]) > 1]
        if not len(at):
            continue
        origin = base.flatten()[at].double()
        summands = origin.abs() + sum((t.flatten()[at].double() - origin).abs() for t in tuned)
        # Each computation rounds K + 2 = 4 times, by at most 2^-24 of 1.5 summands: 2^-20 for both, rounded up.
        cancelled = (a.flatten()[at].double() - b.flatten()[at].double()).abs() <= summands * 2.0**-20
        found.cancelled += int(cancelled.sum())
        at = at[~cancelled]
        if density is not None and len(at):
            thresholds = torch.zeros(len(at), dtype=torch.bool)
            for policy in tuned:
                thresholds |= _at_threshold(policy.flatten().float() - base.flatten().float(), at, density)
            found.at_threshold += int(thresholds.sum())
            at = at[~thresholds]
        assert not len(at), (
            f"{name}: {len(at)} elements of {a.numel()} differ, the first ({int(at[0])}) is "
            f"{a.flatten()[at[0]]:.9g} in {ours} and {b.flatten()[at[0]]:.9g} in {theirs}"
        )
    return found


def _units_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many bfloat16 numbers lie between two, the second included."""
    return (_rank(a) - _rank(b)).abs()


def _rank(values: Tensor) -> Tensor:
    """The place of bfloat16 values among all of them: sign and magnitude as one integer."""
    bits = values.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _at_threshold(residual: Tensor, at: Tensor, density: float) -> Tensor:
    """Whether |residual| at some places is the last magnitude that is kept or the first that is dropped."""
    magnitude = residual.abs()
    kept = max(1, int(density * len(magnitude)))
    last = torch.kthvalue(magnitude, len(magnitude) - kept + 1).values
    first = torch.kthvalue(magnitude, max(len(magnitude) - kept, 1)).values
    return (magnitude[at] == last) | (magnitude[at] == first)
