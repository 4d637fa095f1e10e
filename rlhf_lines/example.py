r"""One real row exactly as the policy and as every reward model reads it: for a plan, a log, a report.

Tokens are written out, special ones included, as a Python text: in quotes, with `\n` for a line break.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from reward_models import FunctionReward, Generative, Judge, RemoteReward, RewardModel
from reward_models.conversation import prompt_turns, reply
from reward_models.similarity import SimilaritySettings
from rlhf_lines.completions import completion_texts
from rlhf_lines.data.templates import said
from rlhf_lines.distributed import leads
from rlhf_lines.scoring import Asked, score, shown


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2000  # characters of a text; of a longer one both ends are shown
WORDS = 8  # tokens of what was asked that stand for a completion, where there is none yet

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """Who reads, and what."""

    reader: str
    text: str


class Sample(NamedTuple):
    """A completion of a row, as text and tokens."""

    text: str
    token_ids: Sequence[int]


def stand_in(tokenizer: PreTrainedTokenizerBase, prompt: str, asked: Asked) -> Sample:
    """A completion for a prompt that has none yet: the first words of what the user said.

    What a chat template adds, such as the name of a role or a system turn of its own, is not among them.

    Args:
        tokenizer: the policy's.
        prompt: what the policy reads, as text.
        asked: what reward models may be shown of it.
    """
    text = said(asked.text)
    of_user = [turn["content"] for turn in asked.conversation or () if turn["role"] == "user"]
    text = next((content for content in of_user if content in text), text) or prompt
    words = [token for token in tokenizer(text)["input_ids"] if token not in tokenizer.all_special_ids][:WORDS]
    return Sample(completion_texts(tokenizer, [tokenizer(prompt)["input_ids"]], [words])[0], words)


def policy_reading(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], reader: str = "policy") -> Reading:
    """What the policy reads: its tokens."""
    return Reading(reader, written(tokenizer.decode(list(token_ids))))


def reward_reading(name: str, model: Any, asked: Asked, completion: str) -> Reading:
    """What a reward model reads of a completion.

    Args:
        name: of its score.
        model: a reward model, or the encoder of one.
        asked: what the completion answers.
        completion: its text.
    """
    (prompt, completion), reader = shown(model, asked, completion), f"reward {name}"
    encoder = getattr(model, "encoder", model)
    if isinstance(model, SimilaritySettings):
        (source,) = model.sources([prompt], {name: [value] for name, value in asked.columns.items()})
        return Reading(reader, f"source {written(source)}, completion {written(completion)}")
    if hasattr(encoder, "shown"):
        return Reading(reader, written(encoder.shown(prompt, completion)))
    if getattr(model, "reads_turns", False):
        return Reading(
            reader, f"prompts [{written(prompt_turns(prompt))}], completions [[{written(reply(completion))}]]"
        )
    return Reading(reader, f"prompt {written(prompt)}, completion {written(completion)}")


def readings(
    tokenizer: PreTrainedTokenizerBase, prompt: str, asked: Asked, models: Iterable[Any], sample: Sample
) -> list[Reading]:
    """A prompt as the policy, and with a completion as each of these reward models reads it.

    Args:
        tokenizer: the policy's.
        prompt: what the policy reads, as text.
        asked: what reward models may be shown of it.
        models: reward models, or encoders of them.
        sample: the completion.
    """
    of_policy = policy_reading(tokenizer, tokenizer(prompt)["input_ids"])
    return [of_policy, *(reward_reading(model.name, model, asked, sample.text) for model in models)]


def try_rewards(
    tokenizer: PreTrainedTokenizerBase, prompt: str, asked: Asked, models: Sequence[RewardModel], **of_run: Any
) -> None:
    """Log a row as everybody reads it, and let every function, service and generative reward model score it.

    What cannot work stops here, before anything is sampled. There is no completion yet, so words of the prompt stand
    for it.

    Args:
        tokenizer: the policy's.
        prompt: what the policy reads, as text.
        asked: what reward models may be shown of it.
        models: reward models.
        **of_run: as of `scoring.score`.

    Raises:
        ValueError: a function or service fails or cannot be called, or a chat template refuses what it is given.
    """
    sample = stand_in(tokenizer, prompt, asked)
    tell(readings(tokenizer, prompt, asked, models, sample), stands_in=True)
    for model in models:
        if isinstance(model, FunctionReward | RemoteReward | Judge | Generative):
            score(model, [asked], [sample.text], [sample.token_ids], **of_run)


def tell(found: Sequence[Reading], *, stands_in: bool = False) -> None:
    """Log readings, in the process that speaks."""
    if leads():
        logger.info("%s", as_text(found, stands_in=stands_in))


def as_text(found: Sequence[Reading], *, stands_in: bool = False) -> str:
    """Readings as lines of text.

    Args:
        found: the readings.
        stands_in: whether words of the prompt stand for its completion.
    """
    note = "; the first words of the prompt stand for a completion" if stands_in else ""
    width = max(len(reading.reader) for reading in found)
    lines = [f"  {reading.reader:<{width}}  {reading.text}" for reading in found]
    return "\n".join([f"the first row, as it is read{note}", *lines])


def written(value: object) -> str:
    """A value as Python writes it, without the middle of a long one."""
    text = repr(value)
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"
