"""A language model as a reward model: the grade that it expects to give, by its probabilities of the next token.

Source: Zhang et al. 2024, Generative verifiers, arXiv 2408.15240 (the probability of Yes, reasoning before it); Liu et
al. 2023, G-Eval, arXiv 2303.16634 (grades weighted by their probabilities, section 2); Ankner et al. 2024, CLoud, arXiv
2408.11791 (a critique first).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models.base import check_batch_size, check_lengths, checked_scores
from reward_models.checkpoint import LANGUAGE_MODEL, check_causal, open_checkpoint, torch_device, torch_dtype
from reward_models.conversation import Prompt
from reward_models.grading import GradeEncoder, Grading


PREFIX = "generative:"
STRAYED = 0.5  # of the probability; with less on its grades a model is about to say something else

logger = logging.getLogger(__name__)


def strayed_text(strayed: int, graded: int) -> str:
    """What people read of how many texts a generative reward model strayed on.

    >>> strayed_text(3, 40)
    'in 3 of 40 texts less than half of the probability lay on the grades'
    """
    return f"in {strayed:,} of {graded:,} texts less than half of the probability lay on the grades"


class Generative:
    """Score completions by the grade that a causal language model expects to give them.

        score = sum_g value(g) p(g) / sum_g p(g)

    over the grades g, with p(g) the probability of the token that g begins with, over the whole vocabulary, after
    question, reasoning and cue. Without reasoning this is one forward pass; with it the model first writes at most that
    many tokens, the most likely one at every step.

    Attributes:
        name: what the score is called.
        encoder: makes the tokens.
        reads_turns: always; a prompt may be a text or its turns.
        truncated: how many pairs were cut so far.
        graded: how many pairs were scored so far.
        strayed: of how many of them less than half of the probability lay on the grades: the model was about to say
            something else, and the score says little.
    """

    reads_turns = True

    def __init__(self, model: Any, tokenizer: Any, grading: Grading, *, batch_size: int = 32) -> None:
        """Make a reward model of a loaded language model, which is put into evaluation mode.

        Raises:
            ValueError: as `GradeEncoder`; the model is no causal language model; or the batch size is none.
        """
        self.name, self.batch_size, self.graded, self.strayed = grading.name, batch_size, 0, 0
        check_causal(model.config, f"reward model {self.name!r}")
        check_batch_size(self.name, batch_size)
        self.model, self.encoder = model.eval(), GradeEncoder(model.config, tokenizer, grading)
        self._share, self._told = 0.0, False

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.encoder.tokenizer

    @property
    def truncated(self) -> int:
        """How many pairs were cut so far."""
        return self.encoder.truncated

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        grading: Grading,
        *,
        device: Any = None,
        dtype: Any = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> Generative:
        """The language model in a folder, in a PEFT adapter folder or on the Hub, of which safetensors are read.

        Args:
            source: folder or Hub id.
            grading: what it is asked.
            device: torch device; None is the current CUDA device, or the CPU if there is none.
            dtype: torch dtype or its name; None is float32.
            batch_size: most texts in one forward pass.
            trust_remote_code: whether code from the source may run.

        Raises:
            FileNotFoundError: as `open_checkpoint`.
            ValueError: as `open_checkpoint`, or as of a new one.
        """
        placed = {"dtype": torch_dtype(dtype, source), "device": torch_device(device)}
        model, tokenizer = open_checkpoint(
            str(source), **placed, trust_remote_code=trust_remote_code, kind=LANGUAGE_MODEL
        )
        return cls(model, tokenizer, grading, batch_size=batch_size)

    def beside(self, grading: Grading, *, batch_size: int) -> Generative:
        """Another reward model of the same weights, which asks something else."""
        return Generative(self.model, self.tokenizer, grading, batch_size=batch_size)

    def score(self, prompts: Sequence[Prompt], completions: list[str]) -> list[float]:
        """One score per pair, in order.

        Raises:
            ValueError: the lists differ in length, a score is not finite (names the prompt), or a question does not
                fit.
        """
        import torch

        check_lengths(self.name, prompts, completions, turns=True)
        values = torch.tensor(list(self.encoder.grading.grades.values()), dtype=torch.float64)
        if not completions:
            return []
        logs = self.grade_log_probabilities(prompts, completions)
        self._count(logs.logsumexp(dim=1).exp())
        return checked_scores(self.name, (logs.softmax(dim=1) @ values).tolist(), prompts)

    def grade_log_probabilities(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Any:
        """The log-probabilities of the grades, a float64 tensor `[pairs, grades]` on the CPU."""
        from reward_models import next_token

        questions = [self.encoder.encode(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]
        rows = [
            self.encoder.graded(question, reasons)
            for question, reasons in zip(questions, self._reasons(questions), strict=True)
        ]
        return next_token.log_probabilities(
            self.model, [row.token_ids for row in rows], [row.grades for row in rows], **self._batching()
        )

    def _reasons(self, questions: Sequence[Sequence[int]]) -> list[str]:
        """What the model writes before the grade: nothing without reasoning."""
        from reward_models import next_token

        most = self.encoder.grading.reasoning
        if not most:
            return [""] * len(questions)
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        written = next_token.continuations(
            self.model, questions, most=most, eos_token_ids=sorted(ends), **self._batching()
        )
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]

    def _batching(self) -> dict[str, int]:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)  # it is masked: any will do
        return {"pad_token_id": next(i for i in known if i is not None), "batch_size": self.batch_size}

    def _count(self, shares: Any) -> None:
        """Count these pairs by the share of probability on their grades, and tell once that it is small."""
        self.graded += len(shares)
        self.strayed += int((shares < STRAYED).sum())
        self._share += float(shares.sum())
        if self.graded and not self._told and (mean := self._share / self.graded) < STRAYED:
            self._told = True
            logger.warning(
                "reward model %r has %.2g of its probability on its grades (%s; mean of %s): it would say something "
                "else, so its scores say little; see what it reads, take a model that follows instructions, or let "
                "it reason first",
                *(self.name, mean, ", ".join(self.encoder.grading.grades), self.graded),
            )
