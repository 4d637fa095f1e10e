"""Logits, or mean hidden states, of many texts that do not depend on how the texts are batched.

The definition is the model's own forward of one unpadded text. What stands between that and a padded batch is where
a model looks: a decoder's head reads the last token that is not `config.pad_token_id`, whatever the tokenizer pads
with; BART reads the last EOS; an encoder reads the first token, or pools under its mask. So there are three ways here,
and each model gets the fastest one that is exact for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


# Causal models whose head `score` reads one token of the trunk's last hidden state. Newer models say so by inheriting
# transformers' GenericForSequenceClassification; these are older. Both lists are checked model by model in the tests.
LAST_TOKEN_DECODERS = frozenset({"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt"})
# Encoders whose output does not depend on masked positions to the right.
PADDED_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "modernbert",
        "roberta",
        "xlm-roberta",
    }
)

Row = dict[str, list[int]]


@torch.no_grad()
def logits(model: Any, rows: Sequence[Row], *, pad_token_id: int | None, batch_size: int) -> torch.Tensor:
    """Float32 logits `[N, labels]` on the CPU for tokenized texts, in their order.

    Args:
        model: a sequence classification model in evaluation mode.
        rows: n texts as the tokenizer returned them without padding: `input_ids` and perhaps `token_type_ids`.
        pad_token_id: the tokenizer's pad token, or None if it has none.
        batch_size: most texts in one forward pass.
    """
    model_type = model.config.model_type
    if _reads_last_token(model):
        groups, run = [list(range(len(rows)))], _last_token_logits
    elif model_type in PADDED_ENCODERS and pad_token_id is not None:
        groups, run = [list(range(len(rows)))], _masked_logits
    else:
        groups, run = _same_shape(model, rows), _own_logits
        if not model.config.is_encoder_decoder and model.config.get_text_config().pad_token_id is None:
            # Such a model may refuse more than one text, even without padding.
            batch_size = 1
    result = _in_order(model, rows, groups, run, pad_token_id, batch_size)
    return torch.stack(result) if result else torch.empty(0, model.config.num_labels)


@torch.no_grad()
def mean_states(model: Any, rows: Sequence[Row], *, pad_token_id: int | None, batch_size: int) -> torch.Tensor:
    """The float32 means `[N, hidden size]` of the last hidden states over the tokens of each text, in their order.

    Args:
        model: a model without a head in evaluation mode, no encoder-decoder.
        rows: n texts as of `logits`, each with a token.
        pad_token_id: the tokenizer's pad token, or None if it has none.
        batch_size: most texts in one forward pass.
    """
    if model.config.model_type in PADDED_ENCODERS and pad_token_id is not None:
        groups = [list(range(len(rows)))]
    else:
        groups = _same_shape(model, rows)
    result = _in_order(model, rows, groups, _mean_states, pad_token_id or 0, batch_size)
    return torch.stack(result) if result else torch.empty(0, model.config.get_text_config().hidden_size)


def _in_order(
    model: Any, rows: Sequence[Row], groups: Sequence[Sequence[int]], run: Any, pad_token_id: int | None, size: int
) -> list[torch.Tensor]:
    """What `run` makes of each row, on the CPU; a batch has `size` rows of one group at most."""
    result: list[torch.Tensor | None] = [None] * len(rows)
    for group in groups:
        for batch in by_length(group, [row["input_ids"] for row in rows], size):
            output = run(model, [rows[i] for i in batch], pad_token_id).float().cpu()
            for i, row in zip(batch, output, strict=True):
                result[i] = row
    return result


def _reads_last_token(model: Any) -> bool:
    from transformers.modeling_layers import GenericForSequenceClassification

    return isinstance(model, GenericForSequenceClassification) or model.config.model_type in LAST_TOKEN_DECODERS


def by_length(group: Sequence[int], rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest texts first, so that a batch that does not fit in memory fails at once.

    Args:
        group: the indices.
        rows: token ids of all texts.
        batch_size: most indices in a batch.
    """
    order = sorted(group, key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _same_shape(model: Any, rows: Sequence[Row]) -> list[list[int]]:
    """Groups of indices of equal length and number of EOS, because BART's head counts EOS across the batch."""
    eos = model.config.get_text_config().eos_token_id
    groups: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        ids = row["input_ids"]
        groups.setdefault((len(ids), ids.count(eos)), []).append(i)
    return list(groups.values())


def _padded(model: Any, rows: Sequence[Row], name: str, fill: int) -> torch.Tensor:
    width = max(len(row["input_ids"]) for row in rows)
    padded = [row[name] + [fill] * (width - len(row[name])) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=model.device)


def _mask(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    return _padded(model, [{"input_ids": [1] * len(row["input_ids"])} for row in rows], "input_ids", 0)


def _last_token_logits(model: Any, rows: Sequence[Row], pad_token_id: int | None) -> torch.Tensor:
    """The head at the position where the model itself would read each text alone.

    Alone, that is the last token that differs from `config.pad_token_id`, or the last token if that is None. So where
    the pad token is EOS and a text ends with EOS, the model reads the token before, in training and here.
    Padding stands to the right of a causal model, which never looks there; its token does not matter.
    """
    own_pad = model.config.get_text_config().pad_token_id
    last = [_last_other(row["input_ids"], own_pad) for row in rows]
    hidden = model.base_model(
        input_ids=_padded(model, rows, "input_ids", 0), attention_mask=_mask(model, rows), use_cache=False
    ).last_hidden_state
    return model.score(hidden[torch.arange(len(rows), device=hidden.device), last])


def _last_other(ids: Sequence[int], pad_token_id: int | None) -> int:
    """The last position whose token is not the pad token; 0 if there is none, as transformers does."""
    return next((i for i in reversed(range(len(ids))) if ids[i] != pad_token_id), 0)


def _masked_logits(model: Any, rows: Sequence[Row], pad_token_id: int) -> torch.Tensor:
    inputs = {name: _padded(model, rows, name, pad_token_id if name == "input_ids" else 0) for name in rows[0]}
    return model(**inputs, attention_mask=_mask(model, rows)).logits


def _mean_states(model: Any, rows: Sequence[Row], pad_token_id: int) -> torch.Tensor:
    inputs = {name: _padded(model, rows, name, pad_token_id if name == "input_ids" else 0) for name in rows[0]}
    mask = _mask(model, rows)
    states = model(**inputs, attention_mask=mask).last_hidden_state.float()
    return (states * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _own_logits(model: Any, rows: Sequence[Row], pad_token_id: int | None) -> torch.Tensor:
    inputs = {name: torch.tensor([row[name] for row in rows], device=model.device) for name in rows[0]}
    return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits
