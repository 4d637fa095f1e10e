"""How much of what the policies forgot a scaled merge brings back, and how much of their reward it keeps."""

from __future__ import annotations

from typing import TypedDict

from rlhf_lines.pareto.schema import LINES, SFT, SOUP, Front, PointEntry


class Undone(TypedDict):
    """A point of the rewarded soup and the scaled merge with the same weights."""

    weights: list[float]
    policy: str | None  # its name if the weights are those of a single policy
    soup: int  # ids of the two
    point: int
    damage_undone: float | None  # None where the soup did no damage
    reward_kept: dict[str, float | None]  # by reward; None where the soup gained nothing


def sft_point(front: Front) -> PointEntry | None:
    """The point of the SFT model, None if the front has none."""
    return next((point for point in front["points"] if point["group"] == SFT), None)


def damage_undone(front: Front, group: str = LINES) -> list[Undone]:
    """What `group` undoes of the damage and keeps of the reward of the rewarded soup, for every weight.

    With p the perplexity of the texts outside the task and r the mean score, of the SFT model, of the soup and of
    `group` at the same weights::

        damage_undone = (p_soup - p_group) / (p_soup - p_sft)
        reward_kept   = (r_group - r_sft) / (r_soup - r_sft)      for every reward

    1 is all of it, and a share may lie outside of [0, 1].

    Args:
        front: what `build_front` returns; weights without perplexities are left out.
        group: the group that is compared with `rewarded_soup`.

    Returns:
        In the order of the points of the soup; nothing without an SFT point.
    """
    sft = sft_point(front)
    if sft is None or sft["perplexity"] is None:
        return []
    measured = [point for point in front["points"] if point["perplexity"] is not None]
    scaled = {tuple(point["spec"]["weights"]): point for point in reversed(measured) if point["group"] == group}
    rows: list[Undone] = []
    for soup in measured:
        point = scaled.get(tuple(soup["spec"]["weights"]))
        if soup["group"] != SOUP or point is None:
            continue
        before, after, base = (each["perplexity"]["mean"] for each in (soup, point, sft))
        scores = {
            reward: [each["scores"][reward]["mean"] for each in (soup, point, sft)] for reward in front["rewards"]
        }
        rows.append(
            {
                "weights": list(soup["spec"]["weights"]),
                "policy": None if soup["single_policy"] is None else soup["label"],
                "soup": soup["id"],
                "point": point["id"],
                "damage_undone": _share(before - after, before - base),
                "reward_kept": {name: _share(r - r_sft, r_soup - r_sft) for name, (r_soup, r, r_sft) in scores.items()},
            }
        )
    return rows


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
