"""The local engine: one base in memory for all specs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.rules import RULES
from rlhf_lines.models import end_token_ids, load_tokenizer
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.batches import in_halves, rows_in_memory
from rlhf_lines.sweep.engines.merged_weights import DenseSpecs
from rlhf_lines.sweep.engines.multi_lora import Mixture
from rlhf_lines.sweep.engines.protocol import Completion, Request
from rlhf_lines.sweep.engines.sampling import sample, text_nats


S, T = TypeVar("S"), TypeVar("T")


class LocalEngine:
    """Sample with one loaded base: linear specs as rows of one batch, others one spec at a time.

    Args:
        config: how to load and sample.
        sft: folder of the SFT model; it is loaded when first needed.
        adapters: the policies, then the MORLHF runs, in the order of the specs' weights.
    """

    def __init__(self, config: SweepConfig, sft: Path, adapters: Sequence[Adapter]) -> None:
        self._config, self._sft, self._adapters = config, sft, adapters
        self._mixture: Mixture | None = None

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in their order, which may mix any specs.

        A batch that does not fit into the memory of a GPU is halved: completions do not depend on batches.
        """
        self._load()
        return _by_rule(requests, [request.spec for request in requests], self._complete)

    def nats(self, specs: Sequence[MergeSpec], rows: Sequence[Sequence[int]]) -> list[float]:
        """Return, for each row of token ids, -sum_t log p(token_t | those before), t >= 1, under its spec."""
        self._load()
        return _by_rule(list(zip(specs, rows, strict=True)), specs, self._nats)

    def rows(self, prompt_tokens: int) -> int:
        """The batch size that is given, or the one that free memory allows."""
        if self._config.batch_size is not None:
            return self._config.batch_size
        self._load()
        return rows_in_memory(self._mixture.model, prompt_tokens + self._config.max_new_tokens)

    def close(self) -> None:
        """Do nothing: there are no processes to end."""

    def _complete(self, spec: MergeSpec | None, requests: Sequence[Request]) -> list[Completion]:
        def work(part: Sequence[Request]) -> list[Completion]:
            return sample(
                self._mixture,
                part,
                max_new_tokens=self._config.max_new_tokens,
                temperature=self._config.temperature,
                eos_token_ids=self._ends,
                pad_token_id=self._tokenizer.pad_token_id,
                seed=self._config.seed,
                policy=None if spec is None else self._dense.loaded(spec),
            )

        return in_halves(work, requests)

    def _nats(self, spec: MergeSpec | None, rows: Sequence[tuple[MergeSpec, Sequence[int]]]) -> list[float]:
        def work(part: Sequence[tuple[MergeSpec, Sequence[int]]]) -> list[float]:
            texts = [text for _, text in part]
            if spec is None:
                return text_nats(self._mixture, [spec for spec, _ in part], texts, self._tokenizer.pad_token_id)
            with self._dense.loaded(spec):
                return text_nats(self._mixture, None, texts, self._tokenizer.pad_token_id)

        return in_halves(work, rows)

    def _load(self) -> None:
        if self._mixture is not None:
            return
        model = load_base(self._config, self._sft)
        policies = [Path(adapter.path) for adapter in self._adapters]
        statistics = {entry.rule: entry.statistics for entry in self._config.groups}
        self._tokenizer = load_tokenizer(self._sft)
        self._ends = end_token_ids(model, self._tokenizer)
        self._dense = DenseSpecs(model, self._sft, policies, statistics)
        self._mixture = Mixture(model, self._adapters)


def load_base(config: SweepConfig, sft: Path) -> nn.Module:
    """The SFT model as the config loads it, on the GPU of this process where there is one."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    options = {}
    if config.quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.load_in_8bit,
            load_in_4bit=config.load_in_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        )
        options["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(sft, dtype=config.dtype, **options).eval()
    return model if config.quantized else model.to(device)


def _by_rule(
    items: Sequence[S], specs: Sequence[MergeSpec], work: Callable[[MergeSpec | None, Sequence[S]], list[T]]
) -> list[T]:
    """`work` of the items of linear specs together (spec None), and of each other spec alone, in their order."""
    parts: dict[MergeSpec | None, list[int]] = {}
    for i, spec in enumerate(specs):
        parts.setdefault(None if RULES[spec.rule].is_linear else spec, []).append(i)
    found: dict[int, T] = {}
    for spec, indices in parts.items():
        found |= zip(indices, work(spec, [items[i] for i in indices]), strict=True)
    return [found[i] for i in range(len(items))]
