"""Texts outside the task, and how well every spec predicts them: what a merge forgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlhf_lines import data
from rlhf_lines.data import files, sources
from rlhf_lines.data.splits import SPLITS
from rlhf_lines.limits import longest_text
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.engines.protocol import mixable
from rlhf_lines.sweep.store import Store, StoredPoint


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CHUNK = 256  # texts per commit


class ForgettingText(NamedTuple):
    """A text outside the task, and the tokens of it that are read."""

    text: str
    token_ids: tuple[int, ...]


def load_forgetting_texts(
    source: str, count: int, max_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> list[ForgettingText]:
    """The first texts of a source with two tokens or more, each once, as their first `max_tokens` tokens.

    Args:
        source: a task that has texts; a file, a folder or a Hub id with a column `text`; or a `.txt` file, in which
            empty lines separate texts. Of several splits, test is read, else validation, else train.
        count: how many texts; a source may have fewer.
        max_tokens: of each text, special tokens included.
        tokenizer: the SFT model's.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it has no column `text`, or fewer than two texts.
    """
    found: dict[tuple[int, ...], ForgettingText] = {}
    for text in _texts(source):
        # Not by truncation, which would keep the end: prompts are cut on the left.
        token_ids = tuple(tokenizer(text, verbose=False)["input_ids"][:max_tokens])
        if len(token_ids) >= 2:
            found.setdefault(token_ids, ForgettingText(text, token_ids))
        if len(found) == count:
            break
    if len(found) < 2:
        raise ValueError(
            f"control {source} has {len(found)} different texts of two tokens or more, expected at least 2: give a "
            "larger source"
        )
    return list(found.values())


def check_forgetting_texts(config: PreTrainedConfig, texts: Sequence[ForgettingText], max_tokens: int) -> None:
    """Stop where a text has more tokens than a model reads.

    Args:
        config: of the model.
        texts: cut to `max_tokens`.
        max_tokens: of each text.

    Raises:
        ValueError: one has.
    """
    limit = longest_text(config)
    if limit is not None and any(len(text.token_ids) > limit.tokens for text in texts):
        raise ValueError(f"control_tokens is {max_tokens}, but {limit.reason}")


def measure_forgetting(
    store: Store,
    nll: Callable[[Sequence[MergeSpec], Sequence[Sequence[int]]], list[float]],
    points: Sequence[StoredPoint],
    texts: Sequence[ForgettingText],
    *,
    known: Callable[[Mapping[int, MergeSpec], Mapping[int, ForgettingText]], Iterable[tuple[int, int, float]]]
    | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Store -log p of every text under every spec of the points, in nats: of all its tokens but the first.

    What is stored already is not measured again; the rest is committed in chunks.

    Args:
        store: where it goes.
        nll: as `Engine.nll`.
        points: whose specs are measured.
        texts: outside the task.
        known: what another run has of specs and texts, see `Reused.nll`.
        advance: told how many more a spec has read.

    Raises:
        ValueError: the store has other texts.
    """
    text_ids = _add_texts(store, texts)
    specs = {point.spec_id: point.spec for point in points}
    finished = store.finished_forgetting()
    if known is not None:
        taken = [row for row in known(specs, dict(zip(text_ids, texts, strict=True))) if row[:2] not in finished]
        store.add_nll(taken)
        advance(len(taken))
        finished |= {row[:2] for row in taken}
    longest_first = sorted(zip(text_ids, texts, strict=True), key=lambda pair: -len(pair[1].token_ids))
    missing = [
        (spec_id, text_id, text)
        for together in mixable(specs)
        for text_id, text in longest_first
        for spec_id in together
        if (spec_id, text_id) not in finished
    ]
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        values = nll([specs[spec_id] for spec_id, _, _ in chunk], [text.token_ids for _, _, text in chunk])
        store.add_nll((spec, text, value) for (spec, text, _), value in zip(chunk, values, strict=True))
        advance(len(chunk))


def largest_ratio(store: Store, points: Sequence[StoredPoint], sft: StoredPoint) -> float:
    """The largest perplexity of a point over that of the SFT model: exp((nll - nll_SFT) / tokens)."""
    tokens, of_sft = store.forgetting_tokens().sum(), store.nll(sft.spec_id).sum()
    return float(np.exp((max(store.nll(point.spec_id).sum() for point in points) - of_sft) / tokens))


def _add_texts(store: Store, texts: Sequence[ForgettingText]) -> list[int]:
    predicted = {text.text: len(text.token_ids) - 1 for text in texts}
    stored = {text.text: text.tokens for text in store.forgetting_texts()}
    if stored and stored != predicted:
        raise ValueError(
            f"the run to be resumed has {len(stored)} control texts, and the source now gives others: give the source "
            "of that run, or start again without --resume"
        )
    return store.add_forgetting_texts(predicted)


def _texts(source: str) -> Iterator[str]:
    if source in data.TASKS:
        return iter(data.load(source, "text", "test")["text"])
    if source.endswith(".txt"):
        return _paragraphs(Path(source))
    splits = sources.read(source)
    split = next(name for name in reversed(SPLITS) if name in splits)
    return (row["text"] for row in files.texts_of(splits[split], files.COLUMNS["text"], "control", source))


def _paragraphs(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"control file {path} does not exist")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"control file {path} is not UTF-8 ({error}): convert it") from None
    return (part.strip() for part in re.split(r"\n\s*\n", content) if part.strip())
