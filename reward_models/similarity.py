"""How close in meaning a completion is to a text: the cosine of two sentence embeddings.

The embeddings are those of a sentence encoder, trained by others to be close where meanings are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_models.base import check_batch_size, check_column, check_lengths, checked_scores, excerpt, is_number
from reward_models.checkpoint import torch_device, torch_dtype
from reward_models.conversation import Prompt, prompt_turns
from reward_models.encoder import input_names, longest_input
from reward_models.files import open_tokenizer, refuse_pointers
from reward_models.rules import folded_words


PREFIX = "similarity:"
OPTIONS = ("source", "echo", "ngram")
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; others would change the embedding


class SimilaritySettings:
    """What is compared with what, and what is subtracted; no weights are needed.

    Attributes:
        name: what the score is called.
        source: the column of the data that completions are compared with; None is the prompt's last turn of the user.
        echo: what is subtracted from the score of a completion that only repeats the prompt.
        ngram: of how many words the pieces are that count as repeated.
        reads_turns: always; a prompt may be a text or its turns.
        reads_columns: always; `score` is given the columns of the data.
    """

    reads_turns = True
    reads_columns = True

    def __init__(self, name: str, *, source: str | None = None, echo: float = 0.0, ngram: int = 3) -> None:
        """Take the settings.

        Raises:
            ValueError: one is wrong.
        """
        for option, value, holds, expected in (
            ("source", source, source is None or (isinstance(source, str) and source), "the name of a column"),
            ("echo", echo, is_number(echo) and echo >= 0, "a number from 0"),
            ("ngram", ngram, isinstance(ngram, int) and not isinstance(ngram, bool) and ngram >= 1, "words, from 1"),
        ):
            if not holds:
                raise ValueError(f"the option {option} of {name} is {value!r}; expected {expected}")
        self.name, self.source, self.echo, self.ngram = name, source, float(echo), ngram

    def check_form(self, columns: Sequence[str]) -> None:
        """Stop where the data lacks the column.

        Raises:
            ValueError: it does.
        """
        if self.source is not None:
            otherwise = "; without the option source it compares with the prompt's last turn of the user"
            check_column(self.name, "compares with", self.source, columns, otherwise=otherwise)

    def sources(self, prompts: Sequence[Prompt], columns: Mapping[str, Any]) -> list[str]:
        """The texts that the completions of these prompts are compared with.

        Raises:
            ValueError: the column is missing, or holds something else than a text.
        """
        if self.source is None:
            return [last_of_user(prompt) for prompt in prompts]
        self.check_form(list(columns))
        found = columns[self.source]
        for prompt, text in zip(prompts, found, strict=True):
            if not isinstance(text, str):
                raise ValueError(
                    f"reward model {self.name!r} compares with the column {self.source!r}, which holds {excerpt(text)} "
                    f"for the prompt {excerpt(prompt)}; expected a text"
                )
        return list(found)


class Similarity(SimilaritySettings):
    """Score completions by their similarity of meaning to a source, less what they only repeat of the prompt.

        e(text) = mean over its tokens of the encoder's last hidden states
        score   = cos(e(completion), e(source)) - echo * copied

    where `copied` is the share of the completion's n-grams of words that stand in the prompt (see `copied_share`). A
    completion without words, or one whose source has none, has the score 0 whatever is copied. The cosine is in -1 to
    1. Texts longer than the encoder reads lose their end.

    Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084 (mean pooling, cosine).

    Attributes:
        model: the encoder, a transformers model without a head.
        tokenizer: its tokenizer.
        batch_size: most texts in one forward pass.
        max_length: longest text in tokens, or None for no limit.
        truncated: how many texts were cut so far, completions or sources.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "similarity",
        batch_size: int = 32,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        """Make a reward model of a loaded encoder, which is put into evaluation mode.

        Args:
            model: the encoder.
            tokenizer: its tokenizer.
            name: what the score is called.
            batch_size: most texts in one forward pass.
            max_length: longest text in tokens, where model and tokenizer allow more.
            **settings: of `SimilaritySettings`.

        Raises:
            ValueError: a setting is wrong, or the model is an encoder-decoder, whose states are of no single text.
        """
        super().__init__(name, **settings)
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"reward model {name!r} is an encoder-decoder; expected a sentence encoder, such as a BERT"
            )
        check_batch_size(name, batch_size)
        self.model, self.tokenizer, self.batch_size, self.truncated = model.eval(), tokenizer, batch_size, 0
        self.max_length = longest_input(model.config, tokenizer, wanted=max_length)
        self._inputs = input_names(model)

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | Path,
        *,
        name: str | None = None,
        device: Any = None,
        dtype: Any = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> Similarity:
        """The similarity by the encoder in a folder or on the Hub, of which safetensors are read.

        Args:
            encoder: folder or Hub id; one of sentence-transformers with mean pooling, or any encoder.
            name: what the score is called; None is `similarity`.
            device: torch device; None is the current CUDA device, or the CPU if there is none.
            dtype: torch dtype or its name; None is float32.
            batch_size: most texts in one forward pass.
            trust_remote_code: whether code from the source may run.
            **settings: of `SimilaritySettings`.

        Raises:
            ValueError: as of a new one; weights are missing, or the folder says that its embeddings are made in
                another way.
        """
        from transformers import AutoModel

        name = name or "similarity"
        SimilaritySettings(name, **settings)  # refused before weights are read
        check_pooling(encoder)
        refuse_pointers(encoder)
        model, info = AutoModel.from_pretrained(
            str(encoder),
            dtype=torch_dtype(dtype, encoder),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        # The pooler belongs to another head: means of states do not go through it.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        missing += sorted(key for key, *_ in info["mismatched_keys"])
        if missing:
            raise ValueError(f"{encoder} has no weights for {missing}, so its embeddings would be random")
        tokenizer = open_tokenizer(str(encoder), trust_remote_code=trust_remote_code)
        made = model.to(torch_device(device)).requires_grad_(False)
        limit = (_read_json(encoder, "sentence_bert_config.json") or {}).get("max_seq_length")
        return cls(made, tokenizer, name=name, batch_size=batch_size, max_length=limit, **settings)

    def score(
        self, prompts: Sequence[Prompt], completions: list[str], columns: Mapping[str, Any] | None = None
    ) -> list[float]:
        """One score per pair, in order.

        Args:
            prompts: texts or turns.
            completions: texts.
            columns: of the data, a list with a value per pair each.

        Raises:
            ValueError: the lists differ in length, or the column is missing or holds no text.
        """
        check_lengths(self.name, prompts, completions, turns=True)
        sources = self.sources(prompts, columns or {})
        scores = [0.0] * len(completions)
        worded = [i for i in range(len(scores)) if folded_words(completions[i]) and folded_words(sources[i])]
        vectors = self.embeddings([texts[i] for texts in (completions, sources) for i in worded])
        said, meant = vectors[: len(worded)], vectors[len(worded) :]
        for i, cosine in zip(worded, (said * meant).sum(dim=1).tolist(), strict=True):
            copied = copied_share(completions[i], prompts[i], self.ngram) if self.echo else 0.0
            scores[i] = cosine - self.echo * copied
        return checked_scores(self.name, scores, prompts)

    def embeddings(self, texts: Sequence[str]) -> Any:
        """Embeddings of length 1, a float64 tensor `[texts, hidden size]` on the CPU; each text is read once."""
        import torch

        from reward_models import forward

        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        rows = [self._tokenize(text) for text in distinct]
        states = forward.mean_states(
            self.model, rows, pad_token_id=self.tokenizer.pad_token_id, batch_size=self.batch_size
        )
        normalised = torch.nn.functional.normalize(states.double(), dim=1)
        return normalised[[distinct[text] for text in texts]]

    def _tokenize(self, text: str) -> dict[str, list[int]]:
        row = self.tokenizer(text, verbose=False)
        if self.max_length is not None and len(row["input_ids"]) > self.max_length:
            self.truncated += 1
            row = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return {name: list(row[name]) for name in self._inputs if name in row}


def last_of_user(prompt: Prompt) -> str:
    """The last turn of the user, without blanks around it; empty where there is none."""
    said = [turn["content"] for turn in prompt_turns(prompt) if turn["role"] == "user"]
    return said[-1].strip() if said else ""


def copied_share(completion: str, prompt: Prompt, ngram: int) -> float:
    """The share of the completion's n-grams of words that stand in a turn of the prompt; 0 without words.

    A completion of fewer words than n is one n-gram. Words are those of `rules.folded_words`.

    >>> copied_share("the cat sat down", "Where the cat sat, nobody knows.", 3)
    0.5
    """
    words = folded_words(completion)
    size = min(ngram, len(words))
    if not size:
        return 0.0
    there = {gram for turn in prompt_turns(prompt) for gram in _grams(folded_words(turn["content"]), size)}
    own = _grams(words, size)
    return sum(gram in there for gram in own) / len(own)


def check_pooling(encoder: str | Path) -> None:
    """Stop where the files of sentence-transformers say that an embedding is no mean of states.

    Raises:
        ValueError: they do.
    """
    for place, kind in _modules(encoder):
        if kind not in KNOWN_MODULES:
            raise ValueError(f"the encoder {encoder} has the module {kind} ({place}); expected mean pooling alone")
        if kind == "Pooling":
            settings = _read_json(encoder, f"{place}/config.json") or {}
            flags = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True]
            mode = settings.get("pooling_mode", flags)
            if mode not in ("mean", ["mean_tokens"]):
                raise ValueError(f"the encoder {encoder} pools by {mode}; expected the mean of its tokens")


def _modules(encoder: str | Path) -> list[tuple[str, str]]:
    modules = _read_json(encoder, "modules.json") or []
    return [(module["path"], module["type"].rpartition(".")[2]) for module in modules]


def _read_json(encoder: str | Path, name: str) -> Any:
    from transformers.utils import cached_file

    path = cached_file(str(encoder), name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
