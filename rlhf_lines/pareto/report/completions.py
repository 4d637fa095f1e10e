"""What the points wrote, in columns, and the prompts of it that fit into so many bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlhf_lines.pareto.intervals import unit
from rlhf_lines.pareto.report.words import number, visible


@dataclass(frozen=True)
class Completions:
    """Completions of the same prompts by every spec, with their scores.

    Letters: P prompts, S samples of each. Points that share a spec share its completions. A sample that is not there
    is None.

    Attributes:
        prompts: P texts, as the policies read them.
        asked: P texts, in short what was asked in each; empty where that is the whole prompt.
        total: how many prompts the run has; these are some of them.
        spec_of: from the id of a point to the spec whose completions are its own.
        texts: from spec to P lists of S texts.
        kl: from spec to P lists of S values, in nats.
        scores: from reward to spec to P lists of S values.
        log_ratio_name: what `kl` is: `kl`, or `log_ratio` where it is no estimate of that, see the store.
    """

    prompts: Sequence[str]
    total: int
    spec_of: Mapping[int, int]
    texts: Mapping[int, Sequence[Sequence[str | None]]]
    kl: Mapping[int, Sequence[Sequence[float | None]]]
    scores: Mapping[str, Mapping[int, Sequence[Sequence[float | None]]]]
    log_ratio_name: str = "kl"
    asked: Sequence[str] = ()

    def some(self, indices: Sequence[int]) -> Completions:
        """The completions of the prompts at `indices` alone."""

        def rows(by_spec: Mapping[int, Sequence[Any]]) -> dict[int, list[Any]]:
            return {spec: [values[i] for i in indices] for spec, values in by_spec.items()}

        return replace(
            self,
            prompts=[self.prompts[i] for i in indices],
            asked=[self.asked[i] for i in indices] if self.asked else (),
            texts=rows(self.texts),
            kl=rows(self.kl),
            scores={reward: rows(by_spec) for reward, by_spec in self.scores.items()},
        )


def columns(
    completions: Completions, digits: Mapping[str, int], kl_digits: int, spreads: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The completions as JSON values in which every text occurs once.

    `texts` lists the distinct texts, and `written[spec][prompt][sample]` is an index into it, or None. `measures` has
    one entry for each of the rewards in `digits` and a last one for the KL: `texts`, the distinct numbers as they are
    shown, in ascending order, and `ranks`, indices into them in the shape of `written`. Of two scores, the one with the
    higher rank is higher. A reward has its `spread`, too: in its units differences of several rewards can be added.
    Specs that no point has are left out.

    Args:
        completions: what the points wrote.
        digits: the decimals of each reward's scores; rewards that were not read are left out.
        kl_digits: the decimals of the KL.
        spreads: of each reward, by default 1.
    """
    number_of: dict[str, int] = {}
    specs = sorted(set(completions.spec_of.values()))

    def index(text: str | None) -> int | None:
        return None if text is None else number_of.setdefault(visible(text), len(number_of))

    def ranked(by_spec: Mapping[int, Sequence[Sequence[float | None]]], digits: int) -> dict[str, Any]:
        values = [[[_shown(value, digits) for value in row] for row in by_spec[spec]] for spec in specs]
        ascending = sorted({value for rows in values for row in rows for value in row} - {None})
        rank = {value: i for i, value in enumerate(ascending)}
        ranks = [[[rank.get(value) for value in row] for row in rows] for rows in values]
        return {"texts": [number(value, digits) for value in ascending], "ranks": ranks}

    written = [[[index(text) for text in row] for row in completions.texts[spec]] for spec in specs]
    scores = completions.scores
    return {
        "prompts": [visible(prompt) for prompt in completions.prompts],
        "asked": [visible(text) for text in completions.asked if completions.asked != completions.prompts],
        "spec_of": {str(point): specs.index(spec) for point, spec in completions.spec_of.items()},
        "texts": list(number_of),
        "written": written,
        "measures": [
            *(
                ranked(scores[reward], places) | {"spread": (spreads or {}).get(reward, 1.0)}
                for reward, places in digits.items()
                if reward in scores
            ),
            ranked(completions.kl, kl_digits),
        ],
    }


def score_spreads(completions: Completions, spec: int | None) -> dict[str, float]:
    """The standard deviation of every reward over prompts, of a spec or, for None, of all; 1 where it is 0.

    The spec is that of the SFT model: see `lost_most` (`wins.py`), whose losses the page sorts by.
    """

    def spread(by_spec: Mapping[int, Sequence[Sequence[float | None]]]) -> float:
        specs = by_spec.values() if spec is None else [by_spec[spec]]
        known = [[value for value in row if value is not None] for rows in specs for row in rows]
        with np.errstate(over="ignore", invalid="ignore"):
            found = float(unit([np.mean(row) for row in known if row])) if any(known) else 1.0
        return found if math.isfinite(found) else 1.0

    return {reward: spread(by_spec) for reward, by_spec in completions.scores.items()}


def fitting(completions: Completions, size: Callable[[Completions], int], room: int) -> Completions:
    """The completions of as many evenly spaced prompts as fit into `room`, by `size` of the result."""
    total = len(completions.prompts)
    if size(completions) <= room:
        return completions
    low, high = 0, total  # low prompts fit (none of them always does), high ones do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = size(completions.some(evenly_spaced(total, middle))) <= room
        low, high = (middle, high) if fits else (low, middle)
    return completions.some(evenly_spaced(total, low))


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of the indices below `total`, each in the middle of its share of them.

    >>> evenly_spaced(10, 5), evenly_spaced(3, 7)
    ([1, 3, 5, 7, 9], [0, 1, 2])
    """
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _shown(value: float | None, digits: int) -> float | None:
    """The value with four significant digits and no more than so many decimals."""
    return None if value is None or not math.isfinite(value) else round(float(f"{value:.4g}"), digits)
