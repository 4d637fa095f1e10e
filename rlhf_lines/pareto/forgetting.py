"""How much of what the policies forgot a scaled merge brings back, and how much of their reward it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lines.pareto.style import single_policy


def sft_point(front: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The point of the SFT model, None if the front has none."""
    return next((point for point in front["points"] if point["group"] == "sft"), None)


def damage_undone(front: Mapping[str, Any], group: str = "lines") -> list[dict[str, Any]]:
    """Returns, for every weight, what `group` undoes of the damage and keeps of the reward of the rewarded soup.

    With p the perplexity of the control texts and r the mean score, of the SFT model, of the soup and of `group` at
    the same weights::

        damage_undone = (p_soup - p_group) / (p_soup - p_sft)
        reward_kept   = (r_group - r_sft) / (r_soup - r_sft)      for every reward

    1 is all of it, and a share may lie outside of [0, 1]. It is None where the soup did no damage or gained nothing:
    there is nothing to undo or keep.

    Args:
        front: what `build_front` returns, with perplexities; weights without them are left out.
        group: the group that is compared with `rewarded_soup`.

    Returns:
        Mappings with `weights`, `policy` (its name if the weights are those of a single policy, else None),
        `soup` and `point` (ids), `damage_undone` and `reward_kept` (reward to share), in the order of the
        points of the soup. The list is empty without an SFT point.
    """
    sft = sft_point(front)
    if sft is None or not sft.get("perplexity"):
        return []
    measured = [point for point in front["points"] if point.get("perplexity")]
    scaled = {tuple(point["spec"]["weights"]): point for point in reversed(measured) if point["group"] == group}
    rows = []
    for soup in measured:
        point = scaled.get(tuple(soup["spec"]["weights"]))
        if soup["group"] != "rewarded_soup" or point is None:
            continue
        before, after, base = (each["perplexity"]["mean"] for each in (soup, point, sft))
        rows.append(
            {
                "weights": list(soup["spec"]["weights"]),
                "policy": single_policy(front, soup),
                "soup": soup["id"],
                "point": point["id"],
                "damage_undone": _share(before - after, before - base),
                "reward_kept": {
                    reward: _share(
                        point["scores"][reward]["mean"] - sft["scores"][reward]["mean"],
                        soup["scores"][reward]["mean"] - sft["scores"][reward]["mean"],
                    )
                    for reward in front["rewards"]
                },
            }
        )
    return rows


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
