"""What the matrix products of one rollout of ours and its updates take, at the speed measured for their shapes.

Counted are the products with weights, of tokens that are no padding:

- sampling: the prompts at once, then a token of every completion at a time; of the head, one row each;
- the reference, once over prompts and completions, without LoRA; the head only where completions are sampled;
- of each epoch, forward and backward of the same with LoRA. A frozen weight needs no gradient, its input does; A and B
  need both. The head's states need one;
- the reward model, once over its texts.

Not counted: products of attention (queries with keys, 1 to 2 % here), everything that is no product, the optimizer.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from common import Task
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="the task, as Task.write writes it")
    parser.add_argument("--tokens", type=float, required=True, help="mean length of a completion")
    parser.add_argument("--output", required=True, help="JSON: seconds by part, and all operations")
    options = parser.parse_args()
    task = Task.read(options.task)
    tokenizer = AutoTokenizer.from_pretrained(task.sft_model)
    prompt = statistics.mean(map(len, tokenizer(task.prompts).input_ids))
    rows, sampled = task.completions, round(task.completions * options.tokens)
    read = round(task.completions * prompt)
    policy, head = _linear(AutoModelForCausalLM, task.sft_model)
    reward, _ = _linear(AutoModelForSequenceClassification, task.reward_model)
    rank, steps = task.lora_r, options.tokens - 1
    parts = {
        "sampling: the prompts": _forward(policy, read, rank) + _forward(head, rows),
        "sampling: token by token": _times(steps, _forward(policy, rows, rank) + _forward(head, rows)),
        "reference": _forward(policy, read + sampled) + _forward(head, sampled),
        "reward model": _forward(reward, read + sampled + rows),
        "updates, forward": _times(task.epochs, _forward(policy, read + sampled, rank) + _forward(head, sampled)),
        "updates, backward": _times(task.epochs, _backward(policy, read + sampled, rank) + _backward(head, sampled)),
    }
    seconds = {name: sum(n * _seconds(*shape) for shape, n in products.items()) for name, products in parts.items()}
    operations = sum(n * 2 * math.prod(shape) for products in parts.values() for shape, n in products.items())
    Path(options.output).write_text(json.dumps({"seconds": seconds, "operations": operations}))


def _linear(kind, folder: str) -> tuple[Counter, Counter]:
    """The shapes (in, out) of all linear maps of a model and how often each occurs: of the trunk, and of the head."""
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    trunk = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    of_head = Counter() if head is None else Counter([(head.in_features, head.out_features)])
    return Counter((module.in_features, module.out_features) for module in trunk), of_head


def _forward(maps: Counter, rows: int, rank: int = 0) -> Counter:
    """The products (rows, inner, columns) of linear maps, with LoRA of a rank."""
    found = Counter()
    for (size, out), n in maps.items():
        found += _times(n, [(rows, size, out)] + [(rows, size, rank), (rows, rank, out)] * bool(rank))
    return found


def _backward(maps: Counter, rows: int, rank: int = 0) -> Counter:
    """The products for the gradients of what frozen maps read, through weight and factors, and of the factors."""
    found = Counter()
    for (size, out), n in maps.items():
        of_factors = [(rows, out, rank), (rows, rank, size), (rank, rows, size), (out, rows, rank)]
        found += _times(n, [(rows, out, size)] + of_factors * bool(rank))
    return found


def _times(factor: float, products: Iterable) -> Counter:
    return Counter({shape: factor * n for shape, n in Counter(products).items()})


@cache
def _seconds(rows: int, inner: int, columns: int) -> float:
    """The seconds of a product `[rows, inner]` by `[inner, columns]`, the least of a few, into memory that is there."""
    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    taken = []
    for _ in range(REPEATS + 1):
        start = time.process_time()  # of all threads: what else runs on the machine must not raise the limit
        torch.mm(a, b, out=out)
        taken.append((time.process_time() - start) / torch.get_num_threads())
    return min(taken[1:])


if __name__ == "__main__":
    main()
