"""What a finished sweep has to serve: the policies of one of its groups, and their merge at any weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.fingerprints import policy_fingerprint
from rlhf_lines.merge.rules import RULES
from rlhf_lines.pareto import Front, pick, read_front
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.schema import MORLHF, SFT, groups_of
from rlhf_lines.serve.names import PREFIX, SEPARATORS, read_mix
from rlhf_lines.sweep.store import open_finished
from rlhf_lines.sweep.swept import Swept, read_swept


SUM = 1e-6  # by which the weights of a point may miss 1


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
        return replace(self.like, weights=self.own(point["spec"]["weights"]))

    def made_of(self) -> dict[str, Any]:
        """What the merges depend on beside their specs, as plain JSON values."""
        return {
            "format": 1,
            "sft": policy_fingerprint(self.swept.sft),
            "policies": list(map(policy_fingerprint, self.swept.policies)),
        }

    def own(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Of the weights of a spec of the front, those of these policies."""
        return tuple(weights[place] if place < len(weights) else 0.0 for place in self.places)


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
    like, places = _like(front, group)
    names = policy_names([front["policies"][place] for place in places])
    _check_names(names)
    with open_finished(run_dir) as store:
        return Served(front, group, read_swept(run_dir, store, places), names, places, like, scale)


def linear_specs(front: Front, group: str) -> dict[int, MergeSpec]:
    """The specs of a group's points that are merges, by the ids of these; each has an exact adapter.

    Raises:
        ValueError: there is no such group, or it has none.
    """
    groups = groups_of(front)
    if group not in groups:
        raise ValueError(unknown_name("group", group, groups))
    if group == SFT:
        raise ValueError("group sft is the SFT model, which is no merge: give another group, such as lines")
    points = [point for point in front["points"] if point["group"] == group and any(point["spec"]["weights"])]
    specs = {point["id"]: MergeSpec.from_dict(point["spec"]) for point in points}
    if any(spec.is_routed for spec in specs.values()):
        raise ValueError(
            f"group {group} has weights that a router chooses for every prompt, so that no one adapter is its policy: "
            "give another group, such as lines"
        )
    rules = {spec.rule for spec in specs.values() if not RULES[spec.rule].is_linear}
    if rules:
        raise ValueError(
            f"group {group} has rule {rules.pop()}, of which no adapter is exactly the merge: give a group whose rule "
            "is linear, or merge one point with rlhf-lines merge"
        )
    return specs


def _like(front: Front, group: str) -> tuple[MergeSpec, list[int]]:
    """The spec that all points of a group are but for their weights, with one per own policy; and where these are."""
    specs = list(linear_specs(front, group).values())
    if group == MORLHF:
        raise ValueError("group morlhf is no mix of policies: give another one, such as lines")
    if len({replace(spec, weights=(1.0,)) for spec in specs}) > 1:
        raise ValueError(
            f"the points of group {group} have scalings of their own, as from alpha auto or a search, so that there is "
            "none for other weights: give another group, or serve single points (rlhf-lines export --adapters)"
        )
    if any(abs(sum(spec.weights) - 1) > SUM for spec in specs):
        raise ValueError(f"the weights of group {group} do not sum to 1: give another group, such as lines")
    merged = next(len(point["spec"]["weights"]) for point in front["points"] if point["group"] == SFT)
    if all(len(spec.weights) <= merged for spec in specs):
        places = list(range(merged))
    else:  # of a further set of policies, whose weights stand behind
        places = sorted({k for spec in specs for k, weight in enumerate(spec.weights) if weight})
    return replace(specs[0], weights=(1.0,) * len(places)), places


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1 or any(separator in name for separator in SEPARATORS):
            raise ValueError(
                f"the policies are called {', '.join(names)} after their folders, but a mix ({PREFIX}NAME=WEIGHT,...) "
                "needs names that differ and hold no comma or equals sign: rename the folders, and sweep again"
            )
