"""A sweep beside the ways others measure a front: an adapter or a checkpoint per point.

    rlhf-lines demo
    python benchmarks/sweep.py [--demo outputs/demo] [--rounds 3]
    python benchmarks/sweep.py --model llama2_7b            # where there is a GPU: random weights, rank 64, bfloat16
    python benchmarks/sweep.py --model smollm2 --sft_model FOLDER --policies FOLDER FOLDER   # see sweep_sides/

11 weights of the rewarded soup and 11 of LiNeS, each on the same prompts, temperature 1, until the end token or
`--max_new_tokens`. All ways meet the same noise, so they must write the same completions; that is asserted first.

- mixed: what `rlhf-lines sweep` does. One base, a batch mixes all points, KL to the SFT model included.
- adapter per point: the rewarded-soups script (arXiv 2306.04488), its merge put right: for every point, both adapters
  are loaded onto the base by PEFT and combined, and prompts are generated one at a time by transformers.
- checkpoint per point: for every point, a dense merge is written and loaded, and prompts are generated in batches.
- SFT model: no policy at all, in batches of several sizes; each row has noise of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peer import ROOT, machine, met, note
from sweep_sides.beside import beside_peers
from torch import nn
from transformers import AutoModelForCausalLM, LogitsProcessor
from transformers.utils import logging

from rlhf_lines import data
from rlhf_lines.artifact import versions
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.provenance import load_adapters
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.models import end_token_ids, load_tokenizer
from rlhf_lines.sampling import gumbel, prompt_key, sample_tokens
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.groups import simplex
from rlhf_lines.sweep.merges import Merges


SPECS = [MergeSpec("linear", w, 1.0, beta) for beta in (0.0, 1.0) for w in simplex(2, 11)]
TOLERATED = 0.002  # of completions may differ: two sums in another order, where two tokens are as likely as each other


@dataclass
class Task:
    """What every way is given."""

    sft: Path
    policies: list[Path]
    prompts: list[tuple[int, ...]]
    max_new_tokens: int
    dtype: str
    batch_size: int | None
    scratch: Path

    @property
    def device(self) -> str:
        """Where models are."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def base(self, folder: Path | None = None) -> nn.Module:
        """Load the SFT model, or another checkpoint."""
        return AutoModelForCausalLM.from_pretrained(folder or self.sft, dtype=self.dtype).eval().to(self.device)

    def requests(self) -> list[Request]:
        """Every point on every prompt, the longest prompts first."""
        prompts = sorted(self.prompts, key=len, reverse=True)
        return [Request(spec, prompt, prompt_key(prompt)) for prompt in prompts for spec in SPECS]


@dataclass
class Way:
    """Seconds by part, and the completions by (spec, prompt)."""

    seconds: dict[str, float] = field(default_factory=dict)
    completions: dict[tuple[MergeSpec, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)

    def timed(self, part: str, work: Callable):
        """Do the work and add its seconds to a part."""
        start = time.perf_counter()
        done = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return done

    @property
    def tokens(self) -> int:
        """How many tokens were generated."""
        return sum(map(len, self.completions.values()))

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def mixed(task: Task, *, kl: bool = True) -> Way:
    """All points in the batches of a sweep."""
    way = Way()
    config = SweepConfig(
        sft_model=str(task.sft),
        policies=[str(policy) for policy in task.policies],
        rewards=["rule:length", "rule:lexical"],
        output_dir="unused",
        max_new_tokens=task.max_new_tokens,
        batch_size=task.batch_size,
        dtype=task.dtype,
    )
    adapters = way.timed("load", lambda: load_adapters(task.policies, task.sft)[0])
    engine = LocalEngine(config, Merges(task.sft, adapters), adapters)
    way.timed("load", lambda: engine.multi_lora)
    todo = task.requests()
    size = way.timed("load", lambda: engine.rows(len(todo[0].prompt_ids)))
    for part in _parts(todo, size):
        if kl:
            completions = [c.token_ids for c in way.timed("generate", lambda part=part: engine.complete(part))]
        else:
            completions = way.timed("generate", lambda part=part: _without_kl(engine, task, part))
        way.completions |= {(r.spec, r.prompt_ids): c for r, c in zip(part, completions, strict=True)}
    return way


def _without_kl(engine: LocalEngine, task: Task, part: Sequence[Request]) -> list[tuple[int, ...]]:
    multi_lora = engine.multi_lora
    with multi_lora.rows([request.spec for request in part]):
        return _sampled(multi_lora.model, task, part, choose_rows=multi_lora.select_rows)


def adapter_per_point(task: Task) -> Way:
    """Every point as an adapter that PEFT combines, one prompt at a time."""
    from peft import PeftModel

    way, tokenizer = Way(), load_tokenizer(task.sft)
    base = way.timed("load", task.base)
    ends, layers = end_token_ids(base, tokenizer), base.config.num_hidden_layers
    for spec in SPECS:

        def merge(spec: MergeSpec = spec) -> PeftModel:
            model = PeftModel.from_pretrained(base, task.policies[0], adapter_name="0")
            model.load_adapter(task.policies[1], adapter_name="1")
            model.add_weighted_adapter(["0", "1"], list(spec.weights), "merged", combination_type="cat")
            model.set_adapter("merged")
            scales = lines_scales(layers, spec.alpha, spec.beta)
            for name, parameter in model.named_parameters():
                if "lora_B.merged" in name:
                    parameter.data *= scales[int(name.split(".layers.")[1].split(".")[0])].to(parameter.dtype).item()
            return model.eval()

        model = way.timed("merge", merge)
        for prompt in task.prompts:
            completion = way.timed("generate", lambda p=prompt, m=model: _generate(m, task, p, ends, tokenizer))
            way.completions[spec, prompt] = completion
        way.timed("merge", model.unload)
    return way


def _generate(model: nn.Module, task: Task, prompt: tuple[int, ...], ends: list[int], tokenizer) -> tuple[int, ...]:
    ids = torch.tensor([prompt], device=task.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=task.max_new_tokens,
        do_sample=False,  # the noise makes the most likely token a sample
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=[_SharedNoise(prompt)],
    )
    return tuple(output[0, len(prompt) :].tolist())


class _SharedNoise(LogitsProcessor):
    """Add the noise of a sweep's sampling, sample 0."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self._key, self._length = torch.tensor([prompt_key(prompt)]), len(prompt)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._length
        return scores.double() + gumbel(0, self._key, torch.zeros_like(self._key), step, scores.shape[1])


def checkpoint_per_point(task: Task, size: int) -> Way:
    """Every point as a dense checkpoint, written and loaded, in batches."""
    way = Way()
    todo, folder = task.requests(), task.scratch / "merged"
    for spec in SPECS:
        way.timed(
            "merge",
            lambda spec=spec: merge_policies(
                task.sft, task.policies, spec, save="dense", output_dir=folder, overwrite=True, device=task.device
            ),
        )
        model = way.timed("load", lambda: task.base(folder))
        for part in _parts([request for request in todo if request.spec == spec], size):
            completions = way.timed("generate", lambda part=part, model=model: _sampled(model, task, part))
            way.completions |= {(r.spec, r.prompt_ids): c for r, c in zip(part, completions, strict=True)}
    return way


def sft_alone(task: Task, size: int) -> tuple[float, int]:
    """The SFT model on as many rows as a sweep has; return seconds and tokens."""
    model = task.base()
    todo = [Request(r.spec, r.prompt_ids, r.prompt_key, i % len(SPECS)) for i, r in enumerate(task.requests())]
    start = time.perf_counter()
    tokens = sum(len(completion) for part in _parts(todo, size) for completion in _sampled(model, task, part))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, tokens


def _sampled(model: nn.Module, task: Task, part: Sequence[Request], **options) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(task.sft)
    sampled = sample_tokens(
        model,
        [request.prompt_ids for request in part],
        [(request.prompt_key, request.sample) for request in part],
        max_new_tokens=task.max_new_tokens,
        temperature=1.0,
        eos_token_ids=end_token_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        seed=0,
        **options,
    )
    rows = zip(sampled.tokens.tolist(), sampled.lengths.tolist(), strict=True)
    return [tuple(row[:length]) for row, length in rows]


def _parts(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def main() -> None:
    """Assert agreement, time every way, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="outputs/demo", help="folder of a finished demo")
    parser.add_argument("--model", choices=("demo", "llama2_7b", "smollm2"), default="demo")
    parser.add_argument("--num_prompts", type=int, help="200, or 100 of smollm2")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--batch_size", type=int, help="of a mixed batch; found from memory if not given")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways but the adapter per point, which has one")
    of_smollm2 = parser.add_argument_group("smollm2")
    of_smollm2.add_argument("--sft_model", type=Path, default=Path("outputs/smollm2/docstrings/sft"))
    of_smollm2.add_argument("--policies", type=Path, nargs=2, help="faithful and readable, beside the SFT model")
    of_smollm2.add_argument("--encoder", type=Path, default=Path("models/all-MiniLM-L6-v2"))
    of_smollm2.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    of_smollm2.add_argument("--num_weights", type=int, default=11)
    of_smollm2.add_argument(
        "--sizes", type=int, nargs="+", default=[16, 64, 256], help="batches of the SFT model alone"
    )
    of_smollm2.add_argument("--threads", type=int, default=1, help="of each side; sides are one after another")
    of_smollm2.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "benchmarks" / "sweep_smollm2")
    options = parser.parse_args()
    options.num_prompts = options.num_prompts or (100 if options.model == "smollm2" else 200)
    if options.model == "smollm2":
        beside_peers(options)
        return
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        task = _task(options, Path(scratch))
        _compare(task, options)


def _task(options: argparse.Namespace, scratch: Path) -> Task:
    if options.model == "demo":
        demo = Path(options.demo)
        sft, policies, dtype = demo / "sft", [demo / "policies" / name for name in ("brief", "specific")], "float32"
    else:
        from random_llama import write_random_llama

        if not torch.cuda.is_available():
            sys.exit("--model llama2_7b needs a GPU")
        sft, policies = write_random_llama(scratch, rank=64)
        dtype = "bfloat16"
    tokenizer = load_tokenizer(sft)
    texts = dict.fromkeys(data.load("docstrings", "prompts", "test", tokenizer=tokenizer)["prompt"])
    prompts = list(dict.fromkeys(tuple(tokenizer(text)["input_ids"]) for text in texts))[: options.num_prompts]
    return Task(sft, policies, prompts, options.max_new_tokens, dtype, options.batch_size, scratch)


def _compare(task: Task, options: argparse.Namespace) -> None:
    on_demo = options.model == "demo"
    sizes = [100, 200, 400, 800]
    ours, bare, dense, alone = [], [], [], {size: [] for size in sizes}
    for turn in range(options.rounds):
        note(f"round {turn + 1}: mixed, checkpoint per point, SFT model")
        ours.append(mixed(task))
        bare.append(mixed(task, kl=False))
        dense.append(checkpoint_per_point(task, len(task.prompts)))
        for size in sizes:
            alone[size].append(sft_alone(task, size))
    ways = {"mixed (`rlhf-lines sweep`)": ours, "mixed, without KL": bare, "checkpoint per point": dense}
    if on_demo:
        note("adapter per point, one prompt at a time: minutes")
        ways["adapter per point, one prompt at a time"] = [adapter_per_point(task)]
    expected = ours[0].completions
    apart = {}
    for name, runs in ways.items():
        differing = max(sum(run.completions[key] != expected[key] for key in expected) for run in runs)
        apart[name] = differing
        if on_demo and differing > TOLERATED * len(expected):
            sys.exit(f"{name}: {differing} of {len(expected)} completions differ from those of the mixed batches")
    print(f"{len(expected):,} completions, {ours[0].tokens:,} tokens; {machine()}; {_versions()}\n")
    print("| way | load, s | merge, s | generate, s | all, s | tokens/s | completions that differ |")
    print("|---|---|---|---|---|---|---|")
    middle = {name: statistics.median_low([run.total for run in runs]) for name, runs in ways.items()}
    for name, runs in ways.items():
        run = next(run for run in runs if run.total == middle[name])
        parts = " | ".join(f"{run.seconds.get(part, 0.0):.1f}" for part in ("load", "merge", "generate"))
        spread = f" ({min(r.total for r in runs):.1f}-{max(r.total for r in runs):.1f})" if len(runs) > 1 else ""
        print(f"| {name} | {parts} | {run.total:.1f}{spread} | {run.tokens / run.total:,.0f} | {apart[name]} |")
    rates = {size: statistics.median(tokens / seconds for seconds, tokens in runs) for size, runs in alone.items()}
    for size, rate in rates.items():
        print(f"| SFT model alone, batches of {size} | | | | | {rate:,.0f} | |")
    best = max(rates.values())
    rate = ours[0].tokens / statistics.median_low([run.seconds["generate"] for run in ours])
    against_dense = middle["checkpoint per point"] / middle["mixed (`rlhf-lines sweep`)"]
    print()
    if on_demo:
        soups = middle["adapter per point, one prompt at a time"] / middle["mixed (`rlhf-lines sweep`)"]
        print(f"- {met(soups >= 15)}: {soups:.1f} times as fast as an adapter per point (goal: at least 15).")
        print(f"- {met(rate >= 0.75 * best)}: {rate / best:.2f} of the SFT model's tokens/s (goal: at least 0.75).")
        print(f"- {against_dense:.1f} times as fast as a checkpoint per point.")
    else:
        print(f"- {met(against_dense >= 2)}: {against_dense:.1f} times as fast as a checkpoint per point (goal: 2).")


def _versions() -> str:
    found = versions()
    return ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
