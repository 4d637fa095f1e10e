"""The vLLM engine of a sweep: all specs as adapters of one vLLM engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines import distributed
from rlhf_lines.completions import StopTexts
from rlhf_lines.errors import about
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.models import checkpoint_end_token_ids, load_tokenizer
from rlhf_lines.native_dtypes import tell_if_slow
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.protocol import Completion, Pair, Request
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters, check_servable, largest_rank
from rlhf_lines.sweep.engines.vllm_arguments import (
    INSTEAD,
    check_dtype,
    engine_arguments,
    next_token_arguments,
    reading_arguments,
    request_seed,
    sampling_arguments,
)


ROWS = 2048  # vLLM makes its own batches: many requests keep them full, and a killed run loses that many at most
STEPS = 1 << 16  # requests for single tokens that are handed over at once


def check_here(dtype: str) -> None:
    """Stop where vLLM cannot serve a sweep on this machine, before anything is loaded.

    Args:
        dtype: of the sweep.

    Raises:
        ValueError: several processes were started, vLLM is not installed, or a GPU does not take the dtype.
    """
    if (processes := distributed.count()) > 1:
        raise ValueError(
            f"engine vllm starts its own processes, but {processes} were started: leave out the launcher, and give "
            "vllm a tensor_parallel_size"
        )
    _check_installed()  # before torch is asked for a GPU: vLLM sees to it that this does not keep it from forking
    check_dtype(dtype, cpu=distributed.on_cpu(), instead=INSTEAD)


class Job(NamedTuple):
    """One request to vLLM: under which spec (None is the SFT model), after which tokens, with which settings."""

    spec: MergeSpec | None
    token_ids: Sequence[int]
    arguments: dict[str, Any]


class VllmEngine:
    """Generates with vLLM, which is started by the first request and loads every spec as an adapter.

    The noise is vLLM's own: completions at a temperature above 0 are not those of the local engine.

    Args:
        config: how to sample, and `vllm`: the arguments of vLLM's engine.
        sft: folder of the SFT model.
        adapters: the policies, then the MORLHF runs, in the order of the specs' weights.
        folder: of the run; adapters are written below it.

    Raises:
        ValueError: as `check_here`; or an argument is not free, or the ranks are too large.
    """

    def __init__(self, config: SweepConfig, sft: Path, adapters: Sequence[Adapter], folder: Path) -> None:
        check_here(config.dtype)
        self._config = config
        modules = sorted({name.rpartition(".")[2] for adapter in adapters for name in adapter.modules})
        self._adapt_head = "lm_head" in modules
        self._arguments = engine_arguments(
            config.vllm or {},
            sft=sft,
            dtype=config.dtype,
            seed=config.seed,
            rank=largest_rank(adapters, mixed=_mixed(config)),
            modules=modules,
        )
        tokenizer = load_tokenizer(sft)
        self._end_tokens = checkpoint_end_token_ids(sft, tokenizer)
        self._stop = StopTexts(tokenizer, config.stop)
        self._adapters = SpecAdapters(folder, adapters, sft, config.dtype)
        self._llm = None
        self._numbers: dict[Path, int] = {}  # vLLM knows an adapter by a number from 1

    def rows(self, prompt_tokens: int) -> int:
        """How many requests one call should hold."""
        return self._config.batch_size or ROWS

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in their order, which may mix any linear specs.

        Raises:
            ValueError: a spec that is not linear.
        """
        for request in requests:
            check_servable(request.spec)
        jobs = [Job(request.spec, request.prompt_ids, self._sampling(request)) for request in requests]
        outputs = [output.outputs[0] for output in self._generate(jobs)]
        tokens = [tuple(output.token_ids) for output in outputs]
        if self._stop:  # vLLM, which has no tokenizer here, has written on
            tokens = [ids[: self._stop.kept(r.prompt_ids, ids)] for r, ids in zip(requests, tokens, strict=True)]
        pairs = [(request.prompt_ids, ids) for request, ids in zip(requests, tokens, strict=True)]
        own = self._own_logprobs(requests, pairs, outputs)
        reference = self.sft_logprobs(pairs)
        return [Completion(ids, ours - theirs) for ids, ours, theirs in zip(tokens, own, reference, strict=True)]

    def nll(self, specs: Sequence[MergeSpec], rows: Sequence[Sequence[int]]) -> list[float]:
        """Of each row of token ids, -sum_t log p(token_t | those before), t >= 1, under its spec.

        Raises:
            ValueError: a spec that is not linear.
        """
        for spec in specs:
            check_servable(spec)
        pairs = [(tuple(row[:1]), tuple(row[1:])) for row in rows]
        return [-value for value in self._logprobs(specs, pairs, temperature=1.0)]

    def sft_logprobs(self, pairs: Sequence[Pair]) -> list[float]:
        """The log-probability of each completion after its prompt under the SFT model, at the temperature.

        Specs that share their noise often write the same: each pair is read once.
        """
        distinct = list(dict.fromkeys(pairs))
        values = self._logprobs([None] * len(distinct), distinct, temperature=self._config.temperature or 1.0)
        known = dict(zip(distinct, values, strict=True))
        return [known[pair] for pair in pairs]

    def close(self) -> None:
        """End vLLM's processes and free its memory; the next request starts it again."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=30)
            self._llm = None

    def _sampling(self, request: Request) -> dict[str, Any]:
        return sampling_arguments(
            temperature=self._config.temperature,
            max_new_tokens=self._config.max_new_tokens,
            end_tokens=self._end_tokens,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            seed=request_seed(self._config.seed, request.prompt_key, request.sample),
        )

    def _own_logprobs(self, requests: Sequence[Request], pairs: Sequence[Pair], outputs: Sequence) -> list[float]:
        """The log-probability of each completion under its spec, among all tokens.

        Where vLLM draws among the most likely, it tells the log-probabilities among those: completions are read again.
        """
        if self._config.samples_policy or self._config.temperature == 0:
            # The tokens that are kept, of those that have been written.
            return [
                _sum_logprobs(list(output.logprobs)[: len(ids)], ids)
                for output, (_, ids) in zip(outputs, pairs, strict=True)
            ]
        return self._logprobs([request.spec for request in requests], pairs, temperature=self._config.temperature)

    def _logprobs(self, specs: Sequence[MergeSpec | None], pairs: Sequence[Pair], *, temperature: float) -> list[float]:
        """The log-probability of each completion after its prompt under its spec.

        vLLM reads given tokens in one pass at temperature 1 only, and leaves out what an adapter adds to the head
        (vLLM's issue 51594). There, every token is asked for on its own, after those before it.
        """
        if temperature == 1 and not self._adapt_head:
            jobs = [
                Job(spec, prompt + completion, reading_arguments())
                for spec, (prompt, completion) in zip(specs, pairs, strict=True)
            ]
            outputs = self._generate(jobs)
            return [
                _sum_logprobs(output.prompt_logprobs[len(prompt) :], completion)
                for output, (prompt, completion) in zip(outputs, pairs, strict=True)
            ]
        steps = self._next_tokens(specs, pairs, temperature)
        return [sum(itertools.islice(steps, len(completion))) for _, completion in pairs]

    def _next_tokens(
        self, specs: Sequence[MergeSpec | None], pairs: Sequence[Pair], temperature: float
    ) -> Iterator[float]:
        """Yield the log-probability of every token of every completion, one after the other."""
        jobs = (
            Job(spec, prompt + completion[:t], next_token_arguments(token, temperature=temperature))
            for spec, (prompt, completion) in zip(specs, pairs, strict=True)
            for t, token in enumerate(completion)
        )
        while some := list(itertools.islice(jobs, STEPS)):
            for job, output in zip(some, self._generate(some), strict=True):
                yield _sum_logprobs(output.outputs[0].logprobs, job.arguments["logprob_token_ids"])

    def _generate(self, jobs: Sequence[Job]) -> list:
        """The output of vLLM for every job, in their order.

        Jobs of one spec are neighbours, so that an adapter that has left memory is loaded again only once. Those of the
        SFT model go first, on their own: where both are in one batch, vLLM's CPU kernels give a row that has no adapter
        the last one (vLLM's pull request 48421).
        """
        from vllm import SamplingParams

        loras = [self._lora(job.spec) for job in jobs]
        plain = [i for i, lora in enumerate(loras) if lora is None]
        adapted = sorted(set(range(len(jobs))) - set(plain), key=lambda i: (loras[i].lora_int_id, i))
        outputs = {}
        for some in filter(None, (plain, adapted)):
            generated = self._start().generate(
                [{"prompt_token_ids": list(jobs[i].token_ids)} for i in some],
                [SamplingParams(**jobs[i].arguments) for i in some],
                lora_request=[loras[i] for i in some],
                use_tqdm=False,
            )
            outputs.update(zip(some, generated, strict=True))
        return [outputs[i] for i in range(len(jobs))]

    def _lora(self, spec: MergeSpec | None):
        from vllm.lora.request import LoRARequest

        path = self._adapters.path(spec) if spec is not None else None
        if path is None:
            return None
        number = self._numbers.setdefault(path, len(self._numbers) + 1)
        return LoRARequest(path.name, number, str(path.resolve()))

    def _start(self):
        if self._llm is None:
            from vllm import LLM

            tell_if_slow(self._config.dtype)
            with about("vLLM cannot serve the SFT model with these settings", ValueError, TypeError, ImportError):
                self._llm = LLM(**self._arguments)
        return self._llm


def _mixed(config: SweepConfig) -> list[list[int]]:
    """Of every policy set, the merged policies among them, which adapters one spec may mix."""
    listed, sets = config.listed_policies, [entry.policies for entry in config.policy_sets]
    return [list(range(len(config.policies))), *([listed.index(policy) for policy in of_set] for of_set in sets)]


def _check_installed() -> None:
    try:
        from vllm import LLM  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"engine vllm needs vLLM ({error}): install it as docs/sweep.md says (for a CPU `make vllm` does it), "
            "or use engine local"
        ) from error


def _sum_logprobs(logprobs, token_ids: Sequence[int]) -> float:
    return sum(of_step[token].logprob for of_step, token in zip(logprobs, token_ids, strict=True))
