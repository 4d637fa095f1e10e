"""The local engine: one base in memory for all specs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rlhf_lines.completions import StopTexts
from rlhf_lines.errors import about
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.rules import RULES
from rlhf_lines.models import end_token_ids, load_tokenizer
from rlhf_lines.native_dtypes import tell_if_slow
from rlhf_lines.reading import last_hidden_states
from rlhf_lines.sweep.engines.batches import in_halves, rows_in_memory
from rlhf_lines.sweep.engines.merged_weights import MergedWeights
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.protocol import Completion, Request, Sampling
from rlhf_lines.sweep.engines.sampling import sample, text_nll
from rlhf_lines.sweep.merges import Merges


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

S, T = TypeVar("S"), TypeVar("T")


class LocalEngine:
    """Sample with one loaded base: linear specs as rows of one batch, others one spec at a time.

    Args:
        config: how to load and sample.
        merges: of the policies, by which specs that are not linear are merged; who made them closes them. Their SFT
            model is the base, which is loaded when first needed.
        adapters: the policies, then the MORLHF runs, in the order of the specs' weights, and what else specs mix.
    """

    def __init__(self, config: Sampling, merges: Merges, adapters: Sequence[Adapter]) -> None:
        self._config, self._merges, self._adapters = config, merges, adapters

    @cached_property
    def multi_lora(self) -> MultiLoRA:
        """The base with all adapters, loaded when it is first asked for."""
        return MultiLoRA(load_base(self._config, self._merges.sft), self._adapters)

    @cached_property
    def merged(self) -> MergedWeights:
        """The weights of specs that are not linear, in the place of the base's."""
        return MergedWeights(self.multi_lora.model, self._merges)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The SFT model's."""
        return load_tokenizer(self._merges.sft)

    @cached_property
    def _ends(self) -> list[int]:
        return end_token_ids(self.multi_lora.model, self.tokenizer)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in their order, which may mix any specs.

        A batch that does not fit into the memory of a GPU is halved: completions do not depend on batches.
        """
        return _by_rule(requests, [request.spec for request in requests], self._complete)

    def nll(self, specs: Sequence[MergeSpec], rows: Sequence[Sequence[int]]) -> list[float]:
        """Of each row of token ids, -sum_t log p(token_t | those before), t >= 1, under its spec."""
        return _by_rule(list(zip(specs, rows, strict=True)), specs, self._nll)

    def features(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """What a router reads of prompts: the SFT model's last hidden state at their last tokens, `[n, d]`."""
        return last_hidden_states(self.multi_lora.model, rows).numpy()

    @contextlib.contextmanager
    def following(self, spec: MergeSpec) -> Iterator[PreTrainedModel]:
        """Inside, the loaded model, which is yielded, is the merged policy of a spec, whatever reads with it.

        Outside, it is the SFT model.
        """
        linear = RULES[spec.rule].is_linear
        with self.multi_lora.following(spec) if linear else self.merged.loaded(spec):
            yield self.multi_lora.model

    def rows(self, prompt_tokens: int) -> int:
        """The batch size that is given, or the one that free memory, and a CPU, allow."""
        if self._config.batch_size is not None:
            return self._config.batch_size
        return rows_in_memory(self.multi_lora.model, prompt_tokens + self._config.max_new_tokens)

    def close(self) -> None:
        """Nothing is open here: the merges are closed by who made them."""

    def _complete(self, spec: MergeSpec | None, requests: Sequence[Request]) -> list[Completion]:
        return sample(
            self.multi_lora,
            requests,
            max_new_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            eos_token_ids=self._ends,
            pad_token_id=self.tokenizer.pad_token_id,
            seed=self._config.seed,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            stop=StopTexts(self.tokenizer, self._config.stop),
            policy=None if spec is None else self.merged.loaded(spec),
        )

    def _nll(self, spec: MergeSpec | None, rows: Sequence[tuple[MergeSpec, Sequence[int]]]) -> list[float]:
        specs, texts = zip(*rows, strict=True)
        with contextlib.nullcontext() if spec is None else self.merged.loaded(spec):
            return text_nll(self.multi_lora, specs if spec is None else None, texts, self.tokenizer.pad_token_id)


def load_base(config: Sampling, sft: Path) -> nn.Module:
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
    with Checkpoint(sft) as checkpoint:
        packed = config.quantized or checkpoint.quantisation is not None
    if packed:
        options["device_map"] = {"": device}
    tell_if_slow(config.dtype)
    with about(f"SFT model {sft} cannot be loaded"):
        model = AutoModelForCausalLM.from_pretrained(sft, dtype=config.dtype, **options).eval()
    return model if packed else model.to(device)


def _by_rule(
    items: Sequence[S], specs: Sequence[MergeSpec], work: Callable[[MergeSpec | None, Sequence[S]], list[T]]
) -> list[T]:
    """`work` of the items of linear specs together (spec None), and of each other spec alone, in their order."""
    parts: dict[MergeSpec | None, list[int]] = {}
    for i, spec in enumerate(specs):
        parts.setdefault(None if RULES[spec.rule].is_linear else spec, []).append(i)
    found: dict[int, T] = {}
    for spec, indices in parts.items():
        found |= zip(indices, in_halves(partial(work, spec), [items[i] for i in indices]), strict=True)
    return [found[i] for i in range(len(items))]
