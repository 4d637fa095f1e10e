"""Groups whose weights depend on the prompt: for every prompt the merge that a router chooses, as a linear spec."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.lora.twin import exclusive_parts
from rlhf_lines.merge.rules.twin import check_parts, shared_factor
from rlhf_lines.sweep.choices import GroupEntry
from rlhf_lines.sweep.router import Router, text_sha256


logger = logging.getLogger(__name__)
Row = tuple[int, ...]  # token ids of a prompt, or of a text outside the task


class Routes:
    """From a spec and a prompt to the linear spec that its completion is sampled from.

        theta(x) = theta_SFT + LiNeS(sum_k w_k(x) (tau_s + v_k))

    The exclusive parts v_k of a rank are adapters beside the policies, the shared part tau_s is a coefficient of each
    policy; so a merge of any prompt is a row of coefficients. Without a rank it is the soup at w(x). Specs without a
    router stay what they are.

    Args:
        groups: of the sweep.
        adapters: of all policies, in the order of the specs' weights.
        num_policies: how many of them are merged.

    Raises:
        ValueError: a rank or a coefficient of the shared part is none, or has no effect.
    """

    def __init__(self, groups: Sequence[GroupEntry], adapters: Sequence[Adapter], num_policies: int) -> None:
        entries = [entry for entry in groups if entry.router is not None]
        self._routers = {entry.options["router"]: Router.read(entry.router) for entry in entries}
        self._utilities: dict[tuple[str, Row], NDArray[np.float64]] = {}  # [P, J]
        self._count = num_policies
        self._starts: dict[tuple[int, float | None], int] = {}
        self.parts: list[Adapter] = []
        for entry in entries:
            key = _parts_of(entry.options)
            check_parts(*key)
            if key[0] is not None and key not in self._starts:
                self._starts[key] = len(adapters) + len(self.parts)
                found = exclusive_parts(adapters[:num_policies], rank=key[0], shared=key[1])
                lost = " and ".join(f"{truncation.lost:.1%}" for _, truncation in found)
                logger.info("group %s: rank %s loses %s of the exclusive parts (relative L2)", entry.name, key[0], lost)
                self.parts += [adapter for adapter, _ in found]

    def __bool__(self) -> bool:
        return bool(self._routers)

    def check(self, sft_sha256: str, policies_sha256: Sequence[str], prompts: Mapping[str, Any]) -> None:
        """Stop where a router is of another SFT model or other policies, or has seen the prompts.

        Args:
            sft_sha256: of the SFT model.
            policies_sha256: of the policies, in their order.
            prompts: that the sweep reports.

        Raises:
            ValueError: it is, or has.
        """
        for router in self._routers.values():
            if router.card["sft_sha256"] != sft_sha256:
                raise ValueError(f"router {router.folder} was learned with another SFT model: learn one for this one")
            if router.card["policies_sha256"] != list(policies_sha256[: self._count]):
                raise ValueError(
                    f"router {router.folder} was learned with other policies, or in another order: learn one for these"
                )
            seen = set(router.card["prompts_sha256"]) & set(map(text_sha256, prompts))
            if seen:
                raise ValueError(
                    f"router {router.folder} was learned on {len(seen)} of the {len(prompts)} test prompts, so scores "
                    "there would be too good: learn it on other prompts, or give other test prompts"
                )

    def read(self, rows: Sequence[Sequence[int]], features: Callable[[list[Row]], NDArray[np.float64]]) -> None:
        """Let the routers read prompts, before their specs are asked for.

        Args:
            rows: token ids of prompts, and of texts outside the task, each of which counts as a prompt.
            features: the SFT model's last hidden state at the last token of each, `[n, d]`.
        """
        distinct = list(dict.fromkeys(map(tuple, rows)))
        if not self._routers or not distinct:
            return
        states = features(distinct)
        for digest, router in self._routers.items():
            self._utilities |= zip(((digest, row) for row in distinct), router.predict(states), strict=True)

    def __call__(self, spec: MergeSpec, row: Sequence[int]) -> MergeSpec:
        """The linear spec of a prompt; a spec without a router as it is."""
        return self.at(spec, self.weights(spec, row)) if spec.is_routed else spec

    def weights(self, spec: MergeSpec, row: Sequence[int]) -> tuple[float, ...]:
        """The weights of the policies that a router chooses for a prompt, by the preference that a spec's weights are.

        Of points that are equally good, the first.
        """
        digest = spec.options["router"]
        utilities = self._utilities[digest, tuple(row)] @ np.array(spec.weights)
        return self._routers[digest].points[int(utilities.argmax())]

    def at(self, spec: MergeSpec, weights: Sequence[float]) -> MergeSpec:
        """The merge of a spec of rule `twin` at these weights, linear in the policies and the parts beside them."""
        rank, shared = _parts_of(spec.options)
        mixed = list(weights)
        if rank is not None:
            of_policies = [shared_factor(self._count, shared) * math.fsum(weights)] * self._count
            mixed = [*of_policies, *[0.0] * (self._starts[rank, shared] - self._count), *weights]
        return MergeSpec("linear", mixed, spec.alpha, spec.beta, spec.schedule)

    def chosen(self, spec: MergeSpec, rows: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """How many of these prompts got which weights, the most frequent first."""
        counts = Counter(self.weights(spec, row) for row in rows)
        return [{"weights": list(weights), "prompts": count} for weights, count in counts.most_common()]


def _parts_of(options: Mapping[str, Any]) -> tuple[int | None, float | None]:
    return options.get("rank"), options.get("shared")
