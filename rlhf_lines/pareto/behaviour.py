"""What a policy wrote, beside its scores: how long, how much of it is damaged. Pure functions of the completions.

Letters: P prompts, S samples of each, K objectives. Lengths are in tokens, the end token included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.intervals import paired_share_difference
from rlhf_lines.pareto.length import at_matched_length, length_correlation
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import BehaviourEntry, Changes, Mean
from rlhf_lines.pareto.wins import win_rate


NGRAM = 4  # as seq-rep-4 of arXiv 1908.04319: three words in a row recur in good texts too
CHANGING = ("tokens", "share_empty", "share_cut", "repetition", "distinct")  # plain means over completions
ANSWERS = ("share_empty", "share_cut")  # 0 or 1 of each completion
NO_INTERVAL = {"low": None, "high": None}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Behaviour:
    """What is measured of each completion of one point.

    Attributes:
        tokens: `[P, S]`, how many.
        empty: `[P, S]`, 1 where the text has nothing but blanks, else 0.
        cut: `[P, S]`, 1 where it reached the longest length and nothing ended it; None where that is not known.
        repetition: `[P, S]`, see `repeated`.
        distinct: `[P, S]`, one over how often its text occurs among all of the point, so that the mean is the number
            of different texts over the number of completions.
        scores: `[P, S, K]`.
    """

    tokens: Array
    empty: Array
    cut: Array | None
    repetition: Array
    distinct: Array
    scores: Array

    @classmethod
    def of(
        cls,
        texts: Sequence[Sequence[str]],
        token_ids: Sequence[Sequence[Sequence[int]]],
        scores: ArrayLike,
        *,
        max_new_tokens: int | None,
        end_tokens: Collection[int],
        stopped: ArrayLike | None = None,
    ) -> Behaviour:
        """Measure the completions of one point.

        Args:
            texts: S of each of P prompts.
            token_ids: theirs, the end token included where they have one.
            scores: `[P, S, K]`.
            max_new_tokens: the longest that a completion could be; None where it is not known.
            end_tokens: any of them ends a completion.
            stopped: `[P, S]`, 1 where a text ended it, whatever its last token is; None where no text does.

        Raises:
            ValueError: prompts have different numbers of completions, or scores are of another shape or not finite.
        """
        shape = (len(texts), len(texts[0]) if texts else 0)
        counts = sorted({len(row) for row in chain(texts, token_ids)})
        if counts != [shape[1]] or shape[1] == 0 or len(token_ids) != shape[0]:
            raise ValueError(f"prompts have {counts} completions each; expected the same number, 1 or more, for all")
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape[:2] != shape or scores.ndim != 3 or not np.isfinite(scores).all():
            raise ValueError(f"scores have shape {scores.shape}; expected finite ones of [{shape[0]}, {shape[1]}, K]")
        times = Counter(chain.from_iterable(texts))

        def each(value: Callable, rows: Sequence[Sequence]) -> Array:
            return np.array([[value(item) for item in row] for row in rows], dtype=np.float64)

        def cut(ids: Sequence[int]) -> bool:
            return len(ids) >= max_new_tokens and ids[-1] not in end_tokens

        def not_ended() -> Array:
            return each(cut, token_ids) * (1.0 - np.asarray(0.0 if stopped is None else stopped, dtype=np.float64))

        return cls(
            tokens=each(len, token_ids),
            empty=each(lambda text: not text.strip(), texts),
            cut=None if max_new_tokens is None else not_ended(),
            repetition=each(repeated, token_ids),
            distinct=each(lambda text: 1 / times[text], texts),
            scores=scores,
        )


def repeated(token_ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of the n-grams of a completion that occurred before in it; 0 where it has none.

        1 - |different n-grams| / (tokens - n + 1)

    Source: seq-rep-n of arXiv 1908.04319, section 6.

    >>> repeated([1, 2, 3, 4, 1, 2, 3, 4])  # one of five
    0.2
    """
    ngrams = len(token_ids) - n + 1
    if ngrams < 1:
        return 0.0
    return (ngrams - len(set(zip(*(token_ids[i:] for i in range(n)), strict=False)))) / ngrams


def behaviour_entry(
    own: Behaviour | None, sft: Behaviour | None, objectives: Sequence[str], resampling: Resampling
) -> BehaviourEntry:
    """What the completions of a point are like; null where there is nothing to say it from.

    Args:
        own: the point's.
        sft: the SFT model's for the same prompts and samples, or None.
        objectives: K names.
        resampling: of the prompts.

    Raises:
        ValueError: the two have other shapes.
    """
    if own is None:
        return {
            **dict.fromkeys((*CHANGING, "win_rate")),
            "length_correlation": dict.fromkeys(objectives),
            "at_matched_length": dict.fromkeys(objectives),
        }
    _check_same(own, sft)
    columns, scores = prompt_means(own), np.moveaxis(own.scores, -1, 0)
    shares = {name: columns[name] for name in ANSWERS if name in columns}
    means = resampling.means(columns) | resampling.shares(shares)
    means |= resampling.shares({"repetition": columns["repetition"]}, answers=False)
    means["distinct"] |= NO_INTERVAL  # how often a text recurs depends on all other prompts
    if means["tokens"]["low"] is not None:  # stretched for few prompts, it may lie below what a length can be
        means["tokens"]["low"] = max(means["tokens"]["low"], 0.0)
    matched: list[Mean | None] = [None] * len(objectives)
    if sft is not None:
        tokens = (own.tokens, sft.tokens)
        pairs = zip(scores, np.moveaxis(sft.scores, -1, 0), strict=True)
        matched = [at_matched_length(tokens, pair, resampling) for pair in pairs]
    return {
        **{name: means.get(name) for name in CHANGING},
        "win_rate": None if sft is None else win_rate(own.scores, sft.scores, objectives, resampling),
        "length_correlation": {
            name: length_correlation(own.tokens, values, resampling)
            for name, values in zip(objectives, scores, strict=True)
        },
        "at_matched_length": dict(zip(objectives, matched, strict=True)),
    }


def changes(own: Behaviour | None, sft: Behaviour | None, resampling: Resampling) -> Changes | None:
    """The mean of a point minus that of the SFT model, paired by prompts; None without one of them.

    That of `distinct` has no interval, for the reason that `distinct` itself has none. The SFT model's own are
    exactly 0.
    """
    if own is None or sft is None:
        return None
    _check_same(own, sft)
    mine, theirs = prompt_means(own), prompt_means(sft)
    found = resampling.means({name: mine[name] - theirs[name] for name in mine if name in theirs})
    found["distinct"] |= NO_INTERVAL
    values = {name: {"value": mean["mean"], "low": mean["low"], "high": mean["high"]} for name, mean in found.items()}
    if own is not sft:
        for name in values.keys() & {*ANSWERS, "repetition"}:
            share = paired_share_difference(mine[name], theirs[name], resampling.confidence, answers=name in ANSWERS)
            values[name] |= {"low": share.low, "high": share.high}
    return {name: values.get(name) for name in CHANGING}


def prompt_means(behaviour: Behaviour) -> dict[str, Array]:
    """By `CHANGING`, the mean over the samples of each prompt, `[P]`; without what is not known."""
    columns = zip(
        CHANGING,
        (behaviour.tokens, behaviour.empty, behaviour.cut, behaviour.repetition, behaviour.distinct),
        strict=True,
    )
    return {name: column.mean(axis=1) for name, column in columns if column is not None}


def _check_same(own: Behaviour, sft: Behaviour | None) -> None:
    if sft is not None and own.scores.shape != sft.scores.shape:
        raise ValueError(
            f"scores have shape {own.scores.shape}, and those of the SFT model {sft.scores.shape}; expected the same "
            "prompts, samples and objectives"
        )
