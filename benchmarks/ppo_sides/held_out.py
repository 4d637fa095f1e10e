"""Score every policy of ppo_vs_trl.py on prompts that none was trained on, all by the same code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from common import Task
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

import reward_models
from rlhf_lines.models import load_tokenizer


LOGITS = 2**26  # numbers at most in the logits of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, help="the task, as Task.write writes it")
    parser.add_argument("--output", required=True, help="JSON: one {score, kl} per policy, the SFT model first")
    parser.add_argument("adapters", nargs="+")
    options = parser.parse_args()
    task = Task.read(options.task)
    tokenizer = load_tokenizer(task.sft_model)
    reward_model = reward_models.load(task.reward_model)
    sft = AutoModelForCausalLM.from_pretrained(task.sft_model).eval()
    results = []
    for adapter in [None, *options.adapters]:
        policy = AutoModelForCausalLM.from_pretrained(task.sft_model)
        if adapter is not None:
            policy = PeftModel.from_pretrained(policy, adapter).merge_and_unload()
        score, kl = measure(policy.eval(), sft, tokenizer, reward_model, task)
        results.append({"score": score, "kl": kl})
    Path(options.output).write_text(json.dumps(results))


@torch.no_grad()
def measure(policy, sft, tokenizer, reward_model, task: Task) -> tuple[float, float]:
    """The mean score of one sample per held-out prompt, and its mean KL to the SFT model in nats per completion.

    The KL is sum_t KL(pi(.|s_t) || pi_SFT(.|s_t)) over the states of the samples, each term exact over the vocabulary.
    """
    torch.manual_seed(0)
    sampling = GenerationConfig(
        max_new_tokens=task.max_new_tokens,
        do_sample=True,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    prompts, completions, kl = task.held_out, [], 0.0
    rows = max(1, LOGITS // ((max(map(len, tokenizer(prompts).input_ids)) + task.max_new_tokens) * len(tokenizer)))
    for start in range(0, len(prompts), rows):
        batch = tokenizer(prompts[start : start + rows], padding=True, return_tensors="pt")
        width = batch.input_ids.shape[1]
        ids = policy.generate(**batch, generation_config=sampling)
        completions += tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        ended = (ids[:, width:] == tokenizer.eos_token_id).long().cumsum(dim=1)
        seen = torch.cat([batch.attention_mask, torch.ones_like(ended)], dim=1)
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
        ours, reference = (
            model(input_ids=ids, attention_mask=seen, position_ids=positions).logits[:, width - 1 : -1].log_softmax(-1)
            for model in (policy, sft)
        )
        is_state = torch.cat([torch.ones_like(ended[:, :1]), 1 - ended[:, :-1].clamp(max=1)], dim=1)
        kl += ((ours.exp() * (ours - reference)).sum(-1) * is_state).sum().item()
    scores = reward_model.score(prompts, completions)
    return sum(scores) / len(scores), kl / len(prompts)


if __name__ == "__main__":
    main()
