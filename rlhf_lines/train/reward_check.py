"""`rlhf-lines reward --check`: what rewards say of held-out pairs, so that one knows what a policy would be trained on.

Letters: N pairs. A margin is the score of the chosen completion minus that of the rejected one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_models import Generative, RewardModel
from reward_models.generative import strayed_text
from rlhf_lines.config import read_fields
from rlhf_lines.data.config import PreferenceDataConfig
from rlhf_lines.errors import Problems
from rlhf_lines.pareto.intervals import Estimate, share_estimate
from rlhf_lines.scoring import Asked, score
from rlhf_lines.task_rewards import RewardEntry, check_some, load_reward_models, raw_score_problems


ABOUT_AS_LONG = 0.2  # of the longer one
BINS = 10
LENGTHS = ("shorter", "as long", "longer")  # what the chosen completion is


@dataclass
class RewardCheckConfig:
    """Which rewards are checked."""

    rewards: list[RewardEntry] = field(
        metadata={"help": "Reward models, as in the config of a sweep.", "parse": RewardEntry.of}
    )
    batch_size: int = field(default=32, metadata={"help": "Texts in one forward pass, or in one request to a service."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether a model may bring code of its own."})

    def __post_init__(self) -> None:
        read_fields(self)
        check_some(self.rewards)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1")
        Problems(raw_score_problems(self.rewards)).check()


REWARD_CHECK = (PreferenceDataConfig, RewardCheckConfig)


class Calibration(NamedTuple):
    """How far the margins can be read as a Bradley-Terry model reads them.

    Attributes:
        error: of the probability `sigmoid(|margin|)` that the higher score is the chosen one; see `calibration`.
        temperature: what margins are to be divided by for the best fit; above 1 the model is too sure. None where the
            fit has no end: all pairs are right, or it is no better than chance.
    """

    error: float
    temperature: float | None


class Checked(NamedTuple):
    """What one reward says of the pairs.

    Attributes:
        name: of the score.
        accuracy: share of pairs whose chosen completion scores higher, a tie half.
        by_length: the same by `LENGTHS`, and of how many pairs; None where there are none.
        calibration: of its margins.
        margins: `[N]`.
        truncated: how many texts were cut.
        strayed: of a generative reward model, on how many texts less than half of the probability lay on the grades;
            None of others.
    """

    name: str
    accuracy: Estimate
    by_length: dict[str, tuple[int, Estimate | None]]
    calibration: Calibration
    margins: NDArray[np.float64]
    truncated: int
    strayed: int | None


class RewardCheck(NamedTuple):
    """What all rewards say.

    Attributes:
        source: of the pairs.
        pairs: how many.
        longer: share of pairs whose chosen completion is the longer one, a tie half.
        rewards: one by one.
    """

    source: str
    pairs: int
    longer: Estimate
    rewards: list[Checked]


def check(data_config: PreferenceDataConfig, config: RewardCheckConfig) -> RewardCheck:
    """Score the held-out pairs by every reward; nothing is written.

    Raises:
        FileNotFoundError: the data or a reward model does not exist.
        ValueError: the data has no such pairs, or a reward cannot score them.
    """
    models = load_reward_models(
        config.rewards, batch_size=config.batch_size, trust_remote_code=config.trust_remote_code
    )
    with_turns = any(getattr(model, "reads_turns", False) for model in models)
    pairs = data_config.load("preferences", "test", None, with_turns=with_turns)
    asked = [Asked(pair["prompt"], pair.get("conversation")) for pair in pairs]
    for model in models[1:]:  # one that cannot score is told before the first has scored all
        score(model, asked[:1], pairs["chosen"][:1], [()])
    lengths = [np.array([float(len(text.split())) for text in pairs[side]]) for side in ("chosen", "rejected")]
    found = [_checked(model, asked, pairs["chosen"], pairs["rejected"], lengths) for model in models]
    return RewardCheck(data_config.dataset_name, len(pairs), share_estimate(wins(lengths[0] - lengths[1])), found)


def wins(margins: ArrayLike) -> NDArray[np.float64]:
    """1 where a margin is positive, 1/2 where it is 0, else 0.

    >>> wins([0.3, 0.0, -2.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2


def length_groups(chosen: ArrayLike, rejected: ArrayLike) -> NDArray[np.str_]:
    """By pair, whether the chosen completion is shorter, about as long, or longer.

    As long means that the lengths differ by at most a fifth of the longer one.

    >>> length_groups([10, 8, 12, 0], [10, 10, 2, 0]).tolist()
    ['as long', 'as long', 'longer', 'as long']
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    difference = (chosen - rejected) / np.maximum(np.maximum(chosen, rejected), 1.0)
    near = np.abs(difference) <= ABOUT_AS_LONG + 1e-12
    return np.where(near, LENGTHS[1], np.where(difference < 0, LENGTHS[0], LENGTHS[2]))


def calibration(margins: ArrayLike, bins: int = BINS) -> Calibration:
    """How far `sigmoid(|margin|)` is the share of pairs in which the higher score is the chosen one.

        error       = sum_b n_b / N |mean of wins in b - mean of sigmoid(|m|) in b|
        temperature = argmax_T sum_i log sigmoid(m_i / T)

    over bins of as many pairs each, by |m|. The error is the expected calibration error of Guo et al. 2017, arXiv
    1706.04599, eq. 3, and the temperature that of its section 4.2, both for the Bradley-Terry model of the pairs.

    Args:
        margins: `[N]`.
        bins: how many at most.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    margins = np.asarray(margins, dtype=np.float64)
    order = np.argsort(np.abs(margins), kind="stable")
    sure, right = expit(np.abs(margins))[order], wins(margins)[order]
    parts = [part for part in np.array_split(np.arange(len(margins)), bins) if len(part)]
    error = sum(len(part) * abs(right[part].mean() - sure[part].mean()) for part in parts) / len(margins)

    def slope(inverse: float) -> float:  # of the log-likelihood, in 1 / T; it falls
        return float((margins * expit(-inverse * margins)).sum())

    if slope(0.0) <= 0.0 or not (margins < 0.0).any():
        return Calibration(error, None)
    highest = 1.0 / np.abs(margins).max()
    while slope(highest) > 0.0:
        highest *= 2.0
    return Calibration(error, 1.0 / brentq(slope, 0.0, highest, xtol=1e-12, rtol=1e-12))


def agreement(a: ArrayLike, b: ArrayLike) -> tuple[Estimate, float | None]:
    """In what share of pairs two rewards prefer the same completion, and the rank correlation of their margins.

    A tie of either counts half. The correlation is Spearman's; None where all margins of one are equal.
    """
    from scipy.stats import spearmanr

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    same = share_estimate((1 + np.sign(a) * np.sign(b)) / 2)
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return same, None
    return same, float(spearmanr(a, b).statistic)


def check_table(found: RewardCheck) -> str:
    """What people read of a check."""
    by_length = [f"chosen is {length}" for length in LENGTHS]
    header = ["reward", "accuracy", *by_length, "calibration error", "temperature", "cut"]
    rows = [header, *(_row(reward) for reward in found.rewards)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    pairs = [(a, b) for i, a in enumerate(found.rewards) for b in found.rewards[i + 1 :]]
    of_two = [_of_two(a, b) for a, b in pairs]
    strayed = [
        f"{reward.name}: {strayed_text(reward.strayed, 2 * found.pairs)}; see docs/reward_models.md"
        for reward in found.rewards
        if reward.strayed
    ]
    return "\n".join(
        [
            f"{found.pairs:,} held-out pairs of {found.source}; the longer completion is the chosen one in "
            f"{_share(found.longer)}",
            "",
            *lines,
            *(["", *strayed] if strayed else []),
            *(["", *of_two] if of_two else []),
        ]
    )


def _checked(
    model: RewardModel, asked: Sequence[Asked], chosen: Sequence[str], rejected: Sequence[str], lengths: Sequence
) -> Checked:
    nothing: list[Sequence[int]] = [()] * len(asked)  # no tokens of a policy: the texts are people's
    before = getattr(model, "truncated", 0), getattr(model, "strayed", 0)  # in a first try
    scores = [np.array(score(model, asked, list(texts), nothing)) for texts in (chosen, rejected)]
    margins = scores[0] - scores[1]
    right, groups = wins(margins), length_groups(*lengths)
    by_length: Mapping[str, NDArray] = {length: right[groups == length] for length in LENGTHS}
    return Checked(
        model.name,
        share_estimate(right),
        {length: (len(of), share_estimate(of) if len(of) else None) for length, of in by_length.items()},
        calibration(margins),
        margins,
        getattr(model, "truncated", 0) - before[0],
        model.strayed - before[1] if isinstance(model, Generative) else None,
    )


def _row(reward: Checked) -> list[str]:
    by_length = [
        "-" if estimate is None else f"{_share(estimate)} of {count:,}" for count, estimate in reward.by_length.values()
    ]
    temperature = reward.calibration.temperature
    return [
        reward.name,
        _share(reward.accuracy),
        *by_length,
        f"{reward.calibration.error:.3f}",
        "-" if temperature is None else f"{temperature:.3g}",
        f"{reward.truncated:,}",
    ]


def _of_two(a: Checked, b: Checked) -> str:
    same, correlation = agreement(a.margins, b.margins)
    ranks = "" if correlation is None else f"; rank correlation of their margins {correlation:z.2f}"
    return f"{a.name} and {b.name} prefer the same one in {_share(same)}{ranks}"


def _share(share: Estimate) -> str:
    """A share with its interval, in per cent."""
    interval = "" if share.low is None else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.value:.1f} %{interval}"
