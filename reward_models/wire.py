"""What is sent to a service that scores, and how its answer is read, by the last part of its address.

- `get_reward`: OpenRLHF's remote reward model, `openrlhf/cli/serve_rm.py` and what is written like it.
- `classify`, `pooling`, `score`: vLLM's, `vllm/entrypoints/pooling/`.
- `predict`, `rerank`: those of text-embeddings-inference, `router/src/http/types.rs`.

Where a service would squash its outputs by a sigmoid or softmax, it is asked for them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reward_models.base import did_you_mean, excerpt
from reward_models.conversation import Turn


TEXT, PAIR, CHAT = "a text", "two texts", "chat"
JOINED = "{prompt}{completion}"
BESIDE = ("{prompt}", "{completion}")
Label = int | str | tuple[int, int] | tuple[str, str] | None


class Item(NamedTuple):
    """What is sent of one completion.

    Attributes:
        content: the one or two texts of the template, or the turns of a conversation.
        prompt: the prompt alone.
        label: what the data says of the row, for OpenRLHF's services.
    """

    content: tuple[str, ...] | list[Turn]
    prompt: Any = ""
    label: Any = ""


@dataclass(frozen=True)
class Wire:
    """How an endpoint is asked and read.

    Attributes:
        service: whose it is.
        takes: kinds of templates.
        template: the default.
        body: the JSON of a request, from its items.
        outputs: from the JSON of an answer, the outputs by item: a list of numbers, or a mapping from names to numbers.
        together: what items of one request have in common.
        names_model: whether a request can name the model.
        has_labels: whether a request has what the data says of its rows.
    """

    service: str
    takes: tuple[str, ...]
    template: str | tuple[str, str]
    body: Callable[[Sequence[Item]], dict[str, Any]]
    outputs: Callable[[Any], list[Any]]
    together: Callable[[Item], object] = lambda item: None
    names_model: bool = False
    has_labels: bool = False


def batches(wire: Wire, items: Sequence[Item], size: int) -> list[list[int]]:
    """The indices of the items that go into each request: at most `size`, and only what may stand together.

    A conversation stands alone.
    """
    groups: dict[object, list[int]] = {}
    for i, item in enumerate(items):
        alone = isinstance(item.content, list)
        groups.setdefault(("alone", i) if alone else ("together", wire.together(item)), []).append(i)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def chosen(outputs: Any, label: Label) -> Any:
    """The score among the outputs for one completion: that of the label, or the difference of those of two.

    Raises:
        ValueError: there is no such output, or there are several and no label.
    """
    if isinstance(label, tuple):
        return chosen(outputs, label[0]) - chosen(outputs, label[1])
    known = list(outputs) if isinstance(outputs, Mapping) else list(range(len(outputs)))
    if label is None and len(known) == 1:
        return outputs[known[0]]
    if label is None or label not in known:
        names = ", ".join(map(str, known))
        given = "no label is given" if label is None else f"the label is {label!r}"
        raise ValueError(f"it has the outputs {names}, and {given}; {did_you_mean(str(label), map(str, known))}set one")
    return outputs[label]


def _openrlhf(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "query": [item.content[0] for item in items],
        "prompts": [item.prompt for item in items],
        "labels": [item.label for item in items],
    }


def _vllm(items: Sequence[Item]) -> dict[str, Any]:
    first = items[0].content
    sent = {"messages": first} if isinstance(first, list) else {"input": [item.content[0] for item in items]}
    return {**sent, "use_activation": False}


def _vllm_score(items: Sequence[Item]) -> dict[str, Any]:
    firsts, seconds = zip(*(item.content for item in items), strict=True)
    return {"text_1": list(firsts), "text_2": list(seconds), "use_activation": False}


def _predict(items: Sequence[Item]) -> dict[str, Any]:
    return {"inputs": [list(item.content) for item in items], "raw_scores": True}


def _rerank(items: Sequence[Item]) -> dict[str, Any]:
    return {"query": items[0].content[0], "texts": [item.content[1] for item in items], "raw_scores": True}


def _by_index(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    ordered = sorted(rows, key=lambda row: row["index"])
    if [row["index"] for row in ordered] != list(range(len(ordered))):
        raise ValueError(f"the indices {[row['index'] for row in ordered]} do not count from 0")
    return [row[key] for row in ordered]


def _last_token(outputs: Sequence[Any]) -> Sequence[Any]:
    """Of outputs by token those of the last, where the score of a text stands."""
    return outputs[-1] if isinstance(outputs[0], list) else outputs


def _named(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {row["label"]: row["score"] for row in rows}


WIRES = {
    "get_reward": Wire(
        "OpenRLHF",
        (TEXT,),
        JOINED,
        _openrlhf,
        lambda answer: [[reward] for reward in answer["rewards"]],
        has_labels=True,
    ),
    "classify": Wire(
        "vLLM",
        (TEXT, CHAT),
        JOINED,
        _vllm,
        lambda answer: _by_index(answer["data"], "probs"),
        names_model=True,
    ),
    "pooling": Wire(
        "vLLM",
        (TEXT, CHAT),
        JOINED,
        _vllm,
        lambda answer: [_last_token(outputs) for outputs in _by_index(answer["data"], "data")],
        names_model=True,
    ),
    "score": Wire(
        "vLLM",
        (PAIR,),
        BESIDE,
        _vllm_score,
        lambda answer: [[score] for score in _by_index(answer["data"], "score")],
        names_model=True,
    ),
    "predict": Wire(
        "text-embeddings-inference",
        (TEXT, PAIR),
        JOINED,
        _predict,
        lambda answer: [_named(rows) for rows in answer],
    ),
    "rerank": Wire(
        "text-embeddings-inference",
        (PAIR,),
        BESIDE,
        _rerank,
        lambda answer: [[score] for score in _by_index(answer, "score")],
        together=lambda item: item.content[0],
    ),
}


def outputs_of(wire: Wire, answer: Any, count: int) -> list[Any]:
    """The outputs for each of `count` completions.

    Raises:
        ValueError: the answer is of another form, or for more or fewer completions.
    """
    try:
        outputs = wire.outputs(answer)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"its answer is {excerpt(answer)}, which is not {wire.service}'s form ({reason})") from None
    if len(outputs) != count:
        raise ValueError(f"its answer has {len(outputs)} scores for {count} completions; expected as many")
    return outputs
