"""What was learned, as text: what it is worth beside LiNeS and the soup, and its factors over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_lines.learn.record import SOUP
from rlhf_lines.merge.rules.profile import Profile
from rlhf_lines.pareto.table import align, estimate_text, in_blocks


FEW = 5  # runs, of which the range is shown beside the standard deviation


def result_text(found: Mapping[str, Any], policies: Sequence[str]) -> str:
    """The lines that a user reads when learning is done.

    Args:
        found: what the record holds.
        policies: names of the policies.
    """
    train, validation = found["train"], found["validation"]
    lines = [
        f"{found['aim']} of {found['candidates']} candidates on {found['prompts']['train']} train prompts, best: "
        f"{_valued(train)}",
        f"on {found['prompts']['validation']} validation prompts: {_valued(validation)}",
    ]
    for name, difference in found["differences"].items():
        few = "too few validation prompts differ for an interval"
        told = few if difference["low"] is None else "95 % interval over validation prompts"
        lines.append(f"learned - {name}: {estimate_text(difference, 3)}, {told}")
    profiles = {name: Profile.of(options) for name, options in found["profiles"].items() if name != SOUP}
    return "\n".join([*lines, "", *profile_table(profiles, policies)])


def comparison_text(found: Mapping[str, Any]) -> str:
    """The lines that a user reads of runs that were compared.

    Args:
        found: what the record of the comparison holds.
    """
    count, prompts = len(found["runs"]), " to ".join(map(str, found["prompts"]))
    others = "other runs and other prompts" if found["aim"] == "utility" else "other runs, on these prompts"
    rows = [["", "mean over runs", *found["names"]]]
    named = {**found["validation"], **{f"learned - {name}": one for name, one in found["differences"].items()}}
    for name, one in named.items():
        rows.append([name, estimate_text(one, 3), *(f"{value:z.3f}" for value in one["runs"])])
    return "\n".join(
        [
            f"{count} runs of {found['method']}: {found['aim']} on {prompts} validation prompts, 95 % intervals for "
            f"{others}",
            align(rows, left=1),
            "",
            *spread_table(found["profiles"], found["policies"], with_range=count <= FEW),
        ]
    )


def profile_table(profiles: Mapping[str, Profile], policies: Sequence[str]) -> list[str]:
    """Factors over depth in units of a soup's 1/K, a column per policy and profile, in blocks of at most 110 columns.

    >>> for line in profile_table({"learned": Profile(((0.5, 0.25),), (1.0,))}, ["brief"]):
    ...     print(line)
    factors, 1 is the soup's    brief
                              learned
    embeddings, head             1.00
    layer 1                      0.50
    layer 2                      0.25
    """
    of_policy = {name: len(policies) * np.reshape(one.vector(), (len(policies), -1)) for name, one in profiles.items()}
    return _over_depth(
        {name: [[f"{value:z.2f}" for value in row] for row in rows] for name, rows in of_policy.items()}, policies
    )


def spread_table(
    profiles: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], policies: Sequence[str], *, with_range: bool
) -> list[str]:
    r"""Factors over depth of several runs: their mean, standard deviation and, `with_range`, smallest and largest.

    >>> learned = {"mean": [[1.0]], "standard_deviation": [[0.5]], "smallest": [[0.6]], "largest": [[1.4]]}
    >>> print(*spread_table({"learned": learned}, ["brief"], with_range=True), sep="\n")
    factors, 1 is the soup's                      brief
                                                learned
    embeddings, head          1.00 +- 0.50 (0.60..1.40)
    """

    def cell(name: str, k: int, place: int) -> str:
        mean, deviation, low, high = (
            profiles[name][key][k][place] for key in ("mean", "standard_deviation", "smallest", "largest")
        )
        return f"{mean:z.2f} +- {deviation:z.2f}" + (f" ({low:z.2f}..{high:z.2f})" if with_range else "")

    shape = np.shape(next(iter(profiles.values()))["mean"])
    cells = {
        name: [[cell(name, k, place) for place in range(shape[1])] for k in range(shape[0])]
        for name in profiles
        if name != SOUP
    }
    return _over_depth(cells, policies)


def _over_depth(cells: Mapping[str, Sequence[Sequence[str]]], policies: Sequence[str]) -> list[str]:
    """Columns of texts, by profile and policy: what lies outside the layers, then the layers."""
    places = len(next(iter(cells.values()))[0])
    fixed = [
        ["factors, 1 is the soup's"],
        [""],
        ["embeddings, head"],
        *([f"layer {layer}"] for layer in range(1, places)),
    ]
    columns = [[policy, name, *rows[k]] for k, policy in enumerate(policies) for name, rows in cells.items()]
    return "\n\n".join(in_blocks(fixed, columns, left=1)).splitlines()


def _valued(values: Mapping[str, Mapping[str, float | None]]) -> str:
    return ", ".join(
        f"{name} {entry['value']:z.3f}" + ("" if entry["kl"] is None else f" (KL {entry['kl']:z.2f})")
        for name, entry in values.items()
    )
