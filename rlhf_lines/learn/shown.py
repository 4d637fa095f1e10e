"""What was learned, as text: what it is worth beside LiNeS and the soup, and its factors over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lines.merge.rules.profile import Profile


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
        lines.append(
            f"learned - {name}: {difference['value']:z.3f} [{difference['low']:z.3f}, {difference['high']:z.3f}], "
            "95 % interval over validation prompts"
        )
    profiles = {name: Profile.of(options) for name, options in found["profiles"].items()}
    return "\n".join([*lines, "", *profile_table(profiles, policies)])


def profile_table(profiles: Mapping[str, Profile], policies: Sequence[str]) -> list[str]:
    """Factors over depth in units of a soup's 1/K, a column per policy and profile.

    >>> for line in profile_table({"learned": Profile(((0.5, 0.25),), (1.0,))}, ["brief"]):
    ...     print(line)
    factors    brief
             learned
    outside     1.00
    layer 1     0.50
    layer 2     0.25
    """
    first = next(iter(profiles.values()))
    count, width = len(policies), max(8, *(len(text) + 2 for text in (*policies, *profiles)))
    rows = [("outside", None), *((f"layer {layer + 1}", layer) for layer in range(first.num_layers))]
    left = max(len("factors"), *(len(name) for name, _ in rows))
    columns = [(k, name) for k in range(count) for name in profiles]
    head = [
        f"{'factors':<{left}}" + "".join(f"{policies[k]:>{width}}" for k, _ in columns),
        " " * left + "".join(f"{name:>{width}}" for _, name in columns),
    ]
    body = [
        f"{name:<{left}}" + "".join(f"{count * profiles[of].at(layer)[k]:z{width}.2f}" for k, of in columns)
        for name, layer in rows
    ]
    return [line.rstrip() for line in [*head, *body]]


def _valued(values: Mapping[str, Mapping[str, float | None]]) -> str:
    return ", ".join(
        f"{name} {entry['value']:z.3f}" + ("" if entry["kl"] is None else f" (KL {entry['kl']:z.2f})")
        for name, entry in values.items()
    )
