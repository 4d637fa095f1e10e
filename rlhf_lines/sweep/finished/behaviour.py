"""From the completions in the run store to what they are like, point by point."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lines.completions import StopTexts, completion_texts
from rlhf_lines.data.templates import said
from rlhf_lines.models import is_here, load_tokenizer, local_folder
from rlhf_lines.pareto.behaviour import Behaviour
from rlhf_lines.pareto.schema import Front, PointEntry
from rlhf_lines.sweep.store import PAGE, Row, Store, StoredPrompt


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Key = tuple[int, int, int]  # spec, prompt and sample of a completion


def read_behaviour(store: Store, split: str, objectives: Sequence[str]) -> dict[int, Behaviour]:
    """By the id of its spec, what the completions of each point of a split are like.

    The completions of one spec are in memory at a time.

    Raises:
        ValueError: prompts have different numbers of completions, or a score is missing.
    """
    most, ends, stopped = store.recall("max_new_tokens", None), end_tokens(store), _stopped(store)
    if stopped is None:
        most, stopped = None, set()
    specs = itertools.groupby(store.rows(split, objectives), key=lambda row: row.spec)
    return {spec: _behaviour(list(rows), objectives, most, ends, stopped) for spec, rows in specs}


def end_tokens(store: Store) -> set[int]:
    """The tokens that end a completion.

    A run of an earlier version does not tell them. There they are the last tokens of completions that are shorter than
    a completion may be: nothing else ended these.
    """
    known = store.recall("end_tokens", None)
    return store.last_tokens(shorter_than=store.recall("max_new_tokens", 0)) if known is None else set(known)


def stopped_at_length(store: Store, tokenizer: PreTrainedTokenizerBase) -> list[Key] | None:
    """The completions of the longest length that one of the texts of `stop` ended: their tokens say more than is kept.

    None where the tokens of some completion do not read as its text: the run had another tokenizer, and nothing is
    known. A page of completions is in memory at a time.

    Args:
        store: of the run.
        tokenizer: the SFT model's.
    """
    stop = StopTexts(tokenizer, store.recall("stop", []))
    if not stop:
        return []
    prompts = {number: text for split in store.splits() for number, (text, _) in store.prompts(split).items()}
    prompt_ids = cache(lambda number: tokenizer(prompts[number])["input_ids"])
    rows, found = store.rows_of_length(store.recall("max_new_tokens")), []
    while page := list(itertools.islice(rows, PAGE)):
        texts = completion_texts(tokenizer, [prompt_ids(row.prompt) for row in page], [row.token_ids for row in page])
        if any(stop.cut(text) != row.text for row, text in zip(page, texts, strict=True)):
            return None
        found += [row[:3] for row, text in zip(page, texts, strict=True) if text != row.text]
    return found


def _stopped(store: Store) -> set[Key] | None:
    """What `stopped_at_length` found; None of a run of an earlier version whose tokenizer is not here."""
    if not store.recall("stop", []):
        return set()
    known, sft = store.recall("stopped", None), store.recall("sft_model", "")
    if known is None and is_here(sft):
        with contextlib.suppress(FileNotFoundError, ValueError):  # the model is here, and has no tokenizer
            known = stopped_at_length(store, load_tokenizer(local_folder(sft)))
    return None if known is None else set(map(tuple, known))


def lost_prompts(folder: str | Path, front: Front, point: PointEntry) -> dict[int, str]:
    """What was asked in the prompts at which a point lost most against the SFT model, by their ids in the store.

    Args:
        folder: of the sweep.
        front: of that folder.
        point: of that front.

    Raises:
        ValueError: the run store cannot be read.
    """
    lost = [entry["prompt"] for entry in point["lost_most"] or ()]
    if not lost:
        return {}
    with Store(folder, reading=True) as store:
        asked = asked_in(store.prompts(front["split"]))
    return {number: asked[number] for number in lost if number in asked}


def asked_in(prompts: Mapping[int, StoredPrompt]) -> dict[int, str]:
    """What was asked in each of these prompts, without the marks of a template and what all of them begin with."""
    asked = {number: said(prompt.scored_text) for number, prompt in prompts.items()}
    start = common_start(list(asked.values()))
    return {number: "…" * (start > 0) + text[start:] for number, text in asked.items()}


def common_start(texts: Sequence[str]) -> int:
    """How many characters all texts begin with alike, to the end of a word; 0 where some text has no more than these.

    >>> common_start(["Say what it does: zip", "Say what it does: zlib"]), common_start(["map", "map"])
    (18, 0)
    """
    first, last = min(texts, default=""), max(texts, default="")  # in whose order all others lie between
    same = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    end = re.match(r"(.*\s)?", "".join(same), re.DOTALL).end()
    return end if len(texts) > 1 and all(len(text) > end for text in texts) else 0


def _behaviour(
    rows: Sequence[Row], objectives: Sequence[str], most: int | None, ends: set[int], stopped: Collection[Key]
) -> Behaviour:
    prompts = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.prompt)]
    missing = next(((row, name) for row in rows for name in objectives if name not in row.scores), None)
    if missing:
        row, name = missing
        raise ValueError(
            f"sample {row.sample} of prompt {row.prompt} under spec {row.spec} has no score {name!r}: give it one with "
            "rlhf-lines score"
        )
    return Behaviour.of(
        [[row.text for row in group] for group in prompts],
        [[row.token_ids for row in group] for group in prompts],
        [[[row.scores[name] for name in objectives] for row in group] for group in prompts],
        max_new_tokens=most,
        end_tokens=ends,
        stopped=[[row[:3] in stopped for row in group] for group in prompts],
    )
