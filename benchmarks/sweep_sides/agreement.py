"""What must hold before anything is timed: greedy tokens of the SFT model's point, and logits of a mixed one.

- Greedy completions of the SFT model's point, in a batch with another point, are those of `generate`. Where they part,
  the SFT model must hold both tokens for as likely, within two units in the last place of a logit in bfloat16.
- Logits of a point are those of the merged model: in float32 within 1e-3, in bfloat16 no further (root mean square)
  from the merged model in float32 than 1.5 times what the merged model in bfloat16 is: a module's output is rounded
  twice, before and after its residual is added, so that 1.41 times is to be expected.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import Meter, Task, test_prompts
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.side import Tokens, arguments, generated
from reward_models.padding import left_pad
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.provenance import load_adapters
from rlhf_lines.models import load_tokenizer
from rlhf_lines.reading import last_logits
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.merges import Merges


SFT, POINT = MergeSpec("linear", (0.0, 0.0)), MergeSpec("linear", (0.3, 0.7), 1.0, 1.0)
PROMPTS = 8
ULPS = 2 * 2.0**-7  # two units in the last place of bfloat16, of a number of its size


@torch.no_grad()
def main() -> None:
    options = arguments("sweep.py")
    task = Task.read(options.task)
    config = task.config(temperature=0.0)
    adapters = load_adapters([Path(policy) for policy in task.policies], Path(task.sft_model))[0]
    engine = LocalEngine(config, Merges(Path(task.sft_model), adapters), adapters)
    tokenizer = load_tokenizer(task.sft_model)
    prompts = test_prompts(task.sft_model, PROMPTS)
    meter = Meter()
    requests = [Request(spec, tuple(prompt), prompt_key(prompt)) for prompt in prompts for spec in (SFT, POINT)]
    ours = [completion.token_ids for completion in engine.complete(requests)[::2]]
    model = AutoModelForCausalLM.from_pretrained(task.sft_model, dtype=task.dtype).eval()
    theirs = generated(model, tokenizer, prompts, task, do_sample=False)
    parted = [row for row in zip(prompts, ours, theirs, strict=True) if row[1] != row[2]]
    for prompt, a, b in parted:
        _check_as_likely(model, prompt, a, b, task.dtype)
    ids, mask = left_pad(prompts, tokenizer.pad_token_id, "cpu")
    multi_lora = engine.multi_lora
    with multi_lora.rows([POINT] * len(prompts)):
        mixed = last_logits(multi_lora.model, ids, mask, ids.shape[1]).float()
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        merge_policies(task.sft_model, task.policies, POINT, save="dense", output_dir=merged)
        true, rounded = (_logits(merged, dtype, ids, mask) for dtype in ("float32", task.dtype))
    off, of_merged = ((logits - true)[mask.bool()] for logits in (mixed, rounded))
    if task.dtype == "float32":
        assert off.abs().max() < 1e-3, f"logits differ by {off.abs().max():.1e}"
    else:
        assert _rms(off) < 1.5 * _rms(of_merged), f"logits are off by {_rms(off):.3f}, merged {_rms(of_merged):.3f}"
    meter.write(
        options.output,
        prompts=len(prompts),
        parted=len(parted),
        off=_rms(off),
        off_merged=_rms(of_merged),
        largest=off.abs().max().item(),
    )


def _check_as_likely(model: nn.Module, prompt: list[int], a: Tokens, b: Tokens, dtype: str) -> None:
    same = next(i for i, (left, right) in enumerate(zip(a, b, strict=False)) if left != right)
    logits = model(input_ids=torch.tensor([[*prompt, *a[:same]]])).logits[0, -1].float()
    left, right = logits[a[same]], logits[b[same]]
    assert dtype != "float32", f"greedy tokens {a} and {b} differ"
    assert abs(left - right) <= ULPS * max(abs(left), abs(right)), f"logits {left} and {right} of parted tokens"


def _logits(folder: Path, dtype: str, ids: Tensor, mask: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return last_logits(model, ids, mask, ids.shape[1]).float()


def _rms(off: Tensor) -> float:
    return off.square().mean().sqrt().item()


if __name__ == "__main__":
    main()
