"""What a finished sweep has to serve: the policies of one of its groups, and their merge at any weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.fingerprints import policy_fingerprint
from rlhf_lines.pareto import Front, pick, read_front
from rlhf_lines.serve.mixed import mixed_like, mixed_names, own_weights
from rlhf_lines.serve.names import read_mix
from rlhf_lines.sweep.store import open_finished
from rlhf_lines.sweep.swept import Swept, read_swept


@dataclass(frozen=True)
class Served:
    """The merges of a group's policies, at any weights that sum to 1.

    Attributes:
        front: of the sweep.
        group: its name there.
        swept: the SFT model and the policies of the group.
        names: of the policies, as mixes call them.
        places: of the policies among the weights of the front's specs.
        like: the spec of one of the group's points.
        scale: of the scores that a preference weighs, see `pick`.
    """

    front: Front
    group: str
    swept: Swept
    names: list[str]
    places: list[int]
    like: MergeSpec
    scale: str

    def spec(self, name: str) -> MergeSpec:
        """The merge that a name asks for, see `read_mix`; its weights are those of these policies alone.

        A preference asks for the point of the group that `rlhf-lines pick --preference`, with this `--scale`, gives.

        Raises:
            ValueError: there is no such mix.
        """
        mix = read_mix(name, self.names, self.front["objectives"])
        if not mix.is_preference:
            return replace(self.like, weights=mix.weights)
        point = pick(self.front, preference=mix.weights, scale=self.scale, group=self.group).point
        return replace(self.like, weights=own_weights(point["spec"]["weights"], self.places))

    def made_of(self) -> dict[str, Any]:
        """What the merges depend on beside their specs, as plain JSON values."""
        return {
            "format": 1,
            "sft": policy_fingerprint(self.swept.sft),
            "policies": list(map(policy_fingerprint, self.swept.policies)),
        }


def read_served(run_dir: str | Path, group: str, scale: str = "raw") -> Served:
    """What a group of a finished sweep has to serve.

    Args:
        run_dir: of the sweep.
        group: whose policies are mixed.
        scale: of the scores that a preference weighs, see `pick`.

    Raises:
        FileNotFoundError: there is no finished sweep, or its models are gone.
        ValueError: no adapter is exactly a mix of the group, it has no single scaling, its policies have names that
            cannot stand in that of a mix, or have changed since the sweep.
    """
    front = read_front(run_dir)
    like, places = mixed_like(front, group)
    names = mixed_names(front, places)
    with open_finished(run_dir) as store:
        return Served(front, group, read_swept(run_dir, store, places), names, places, like, scale)
