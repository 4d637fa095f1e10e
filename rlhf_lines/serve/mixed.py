"""Which groups of a front can be mixed at any weights, and the name of a point as such a mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.rules import RULES
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.schema import MORLHF, SFT, Front, PointEntry, groups_of
from rlhf_lines.serve.names import PREFIX, SEPARATORS, mix_name, read_mix


EXACT = 1e-6  # by which weights of a point may miss those of a name, and their sum 1


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


def mixed_like(front: Front, group: str) -> tuple[MergeSpec, list[int]]:
    """The spec that all points of a group are but for their weights, with one per own policy; and where these are.

    Raises:
        ValueError: `linear_specs`; or they have scalings of their own, or weights that do not sum to 1.
    """
    specs = list(linear_specs(front, group).values())
    if group == MORLHF:
        raise ValueError("group morlhf is no mix of policies: give another one, such as lines")
    if len({replace(spec, weights=(1.0,)) for spec in specs}) > 1:
        raise ValueError(
            f"the points of group {group} have scalings of their own, as from alpha auto or a search, so that there is "
            "none for other weights: give another group, or serve single points (rlhf-lines export --adapters)"
        )
    if any(abs(sum(spec.weights) - 1) > EXACT for spec in specs):
        raise ValueError(f"the weights of group {group} do not sum to 1: give another group, such as lines")
    merged = min(len(point["spec"]["weights"]) for point in front["points"])
    if all(len(spec.weights) <= merged for spec in specs):
        places = list(range(merged))
    else:  # of a further set of policies, whose weights stand behind
        places = sorted({k for spec in specs for k, weight in enumerate(spec.weights) if weight})
    return replace(specs[0], weights=(1.0,) * len(places)), places


def mixed_names(front: Front, places: Sequence[int]) -> list[str]:
    """What mixes call the policies in these places of the front's weights, by their folders.

    Raises:
        ValueError: the front does not know them, two have one name, or a name holds what parts those of mixes.
    """
    if max(places) >= len(front["policies"]):
        raise ValueError("the front does not say which policies it was made from: make it again with rlhf-lines front")
    names = policy_names([front["policies"][place] for place in places])
    for name in names:
        if names.count(name) > 1 or any(separator in name for separator in SEPARATORS):
            raise ValueError(
                f"the policies are called {', '.join(names)} after their folders, but a mix ({PREFIX}NAME=WEIGHT,...) "
                "needs names that differ and hold no comma or equals sign: rename the folders, and sweep again"
            )
    return names


def mix_of_point(front: Front, point: PointEntry) -> str | None:
    """What a request names for a point from `rlhf-lines serve --group` its group; None where no mix is exactly it."""
    try:
        _, places = mixed_like(front, point["group"])
        names = mixed_names(front, places)
        weights = own_weights(point["spec"]["weights"], places)
        counted = [k for k, weight in enumerate(weights) if weight]
        name = mix_name([weights[k] for k in counted], [names[k] for k in counted])
        served = read_mix(name, names, front["objectives"]).weights  # a name has three decimals
    except ValueError:
        return None
    return name if all(abs(a - b) <= EXACT for a, b in zip(served, weights, strict=True)) else None


def own_weights(weights: Sequence[float], places: Sequence[int]) -> tuple[float, ...]:
    """Of the weights of a spec of the front, those of the policies in these places."""
    return tuple(weights[place] if place < len(weights) else 0.0 for place in places)
