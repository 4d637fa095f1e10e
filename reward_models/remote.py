"""A reward model that runs elsewhere, behind an address."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from reward_models import wire as wires
from reward_models.base import check_batch_size, check_column, check_lengths, checked_scores, did_you_mean, excerpt
from reward_models.conversation import Prompt, conversation
from reward_models.format import SPECIAL_TOKENS, Format
from reward_models.service import SETTINGS, Service, check_options
from reward_models.wire import CHAT, PAIR, TEXT, WIRES, Item


OPTIONS = ("format", "model", "labels", "sign", *SETTINGS)


class RemoteReward:
    """Score completions by a service: OpenRLHF's form, vLLM's endpoints, or those of text-embeddings-inference.

        score = sign * output[label]    or    sign * (output[a] - output[b])

    Completions go in batches, several requests at a time; what may pass is tried again (see `Service`). A failure ends
    the run: it is never a score.

    Attributes:
        name: what the score is called.
        service: what is asked.
        wire: how.
        template: what the service is shown.
        batch_size: most completions in a request.
        reads_turns: whether prompts may be conversations, which a service of vLLM puts through its chat template.
        reads_columns: whether it is sent a column of the data.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        template: str | Sequence[str] | None = None,
        label: Any = None,
        system: str | None = None,
        batch_size: int = 32,
        format: str | None = None,
        model: str | None = None,
        labels: str | None = None,
        sign: int = 1,
        **settings: Any,
    ) -> None:
        """Take the settings; nothing is sent.

        Args:
            url: the address, as in `http://localhost:8000/classify`.
            name: what the score is called; None is the host.
            template: as of `Format`; None is the prompt's text and the completion's.
            label: which output is the score, an index or a name, or two for their difference; None is the only one.
            system: the system prompt of a conversation, as of `Format`.
            batch_size: most completions in a request.
            format: an endpoint of `WIRES`; None is the last part of the address.
            model: the model that is asked for, where the service has several.
            labels: the column of the data that OpenRLHF's form has as `labels`.
            sign: 1, or -1 for an output that is a cost.
            **settings: of `Service`.

        Raises:
            ValueError: a setting is wrong, or would have no effect.
        """
        self.name = name or urlsplit(url).hostname or url
        self.service = Service(url, name=self.name, **settings)
        last = urlsplit(url).path.rstrip("/").rpartition("/")[2]
        format = format or (last if last in WIRES else None)
        if format not in WIRES:
            given = f"has format {format!r}" if format else "does not say its format"
            raise ValueError(
                f"the service {url} {given}; {did_you_mean(str(format), WIRES)}expected an address that ends in one of "
                f"{', '.join(WIRES)}, or one of these as options: {{format: ...}}"
            )
        self.wire = WIRES[format]
        for option, value, effect in (
            ("model", model, self.wire.names_model),
            ("labels", labels, self.wire.has_labels),
        ):
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"the option {option} of {self.name} is {value!r}; expected a name")
            if value is not None and not effect:
                raise ValueError(f"{url} has the option {option}, which {format} does not send; leave it out")
        check_batch_size(self.name, batch_size)
        self._format = Format(template=self.wire.template, sign=sign).with_changes(template, system=system)
        self.label = None if label is None else Format(label=label).label
        self.template, self.batch_size, self._model, self._labels = self._format.template, batch_size, model, labels
        kind = CHAT if self.template == CHAT else PAIR if isinstance(self.template, tuple) else TEXT
        if kind not in self.wire.takes:
            raise ValueError(
                f"the template of {url} is {excerpt(self.template)}; {format} takes {' or '.join(self.wire.takes)}"
            )
        if unknown := [token for token in SPECIAL_TOKENS if any(f"{{{token}}}" in t for t in self._format.texts())]:
            raise ValueError(
                f"the template of {url} has {{{unknown[0]}}}, and its tokenizer is not here; write the token itself"
            )

    @property
    def reads_turns(self) -> bool:
        """Whether prompts may be conversations."""
        return self.template == CHAT

    @property
    def reads_columns(self) -> bool:
        """Whether it is sent a column of the data."""
        return self._labels is not None

    def score(
        self, prompts: Sequence[Prompt], completions: list[str], columns: Mapping[str, Any] | None = None
    ) -> list[float]:
        """One score per pair, in order.

        Args:
            prompts: texts, or where the template is chat, texts or turns.
            completions: texts.
            columns: of the data, a list with a value per pair each.

        Raises:
            ValueError: the lists differ in length, the service fails, or what it answers is not one finite number per
                pair.
        """
        check_lengths(self.name, prompts, completions, turns=self.reads_turns)
        if self._labels is not None:
            self.check_form(list(columns or {}))
        labels = [""] * len(completions) if self._labels is None else columns[self._labels]
        items = [
            Item(self._content(prompt, completion), prompt, label)
            for prompt, completion, label in zip(prompts, completions, labels, strict=True)
        ]
        batches = wires.batches(self.wire, items, self.batch_size)
        answers = self.service.ask([self._body([items[i] for i in batch]) for batch in batches])
        scores: list[Any] = [None] * len(items)
        for batch, answer in zip(batches, answers, strict=True):
            for i, score in zip(batch, self._read(answer, len(batch)), strict=True):
                scores[i] = score
        return [self._format.sign * score for score in checked_scores(self.name, scores, prompts)]

    def check_form(self, columns: Sequence[str]) -> None:
        """Stop where the data lacks the column that is sent.

        Raises:
            ValueError: it does.
        """
        if self._labels is not None:
            check_column(self.name, "sends", self._labels, columns)

    def shown(self, prompt: Prompt, completion: str) -> str:
        """What the service is sent of one pair: a text, or several as JSON."""
        content = self._content(prompt, completion)
        if isinstance(content, tuple) and len(content) == 1:
            return content[0]
        return json.dumps(content, ensure_ascii=False)

    def _content(self, prompt: Prompt, completion: str) -> Any:
        if self.reads_turns:
            return conversation(prompt, completion, self._format.system)
        return self._format.render(prompt, completion, {})

    def _body(self, items: Sequence[Item]) -> dict[str, Any]:
        body = self.wire.body(items)
        return body if self._model is None else {"model": self._model, **body}

    def _read(self, answer: Any, count: int) -> list[Any]:
        try:
            return [wires.chosen(outputs, self.label) for outputs in wires.outputs_of(self.wire, answer, count)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"reward model {self.name!r} ({self.service.url}) cannot be read: {error}") from None


def remote(text: str, *, options: Mapping[str, Any], **given: Any) -> RemoteReward:
    """The reward model behind this address.

    Raises:
        ValueError: as of `RemoteReward`; or there is no such option.
    """
    check_options(text, options, OPTIONS)
    return RemoteReward(text, **given, **options)
