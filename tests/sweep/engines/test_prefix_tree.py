"""Completions as paths of a tree have the log-probabilities that they have one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlhf_lines.sweep.engines import prefix_tree
from rlhf_lines.sweep.engines.prefix_tree import ARCHITECTURES, takes_trees, tree_logprobs, trees_of
from tests.tiny import widened


PAD = 0
PROMPTS = [(5, 9, 14, 3), (7,), (22, 30, 4, 11, 8)]
COMPLETIONS = [(3, 4, 5, 6), (3, 4, 5), (3, 4, 7, 6, 5, 1), (8,), (3,), (9, 9, 9), (9, 9, 1)]
PAIRS = [
    *itertools.product(PROMPTS[:2], COMPLETIONS),
    (PROMPTS[2], (1, 2)),  # a tree with fewer nodes than the others
]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def tiny(model_type: str, **changes):
    """A random model of an architecture whose logits react to every position."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**SIZES, **changes}
    if model_type == "gpt2":
        sizes = {"vocab_size": 40, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4}
    elif model_type == "gpt_neox":
        del sizes["num_key_value_heads"]
    if model_type == "mistral":
        sizes["sliding_window"] = changes.get("sliding_window")
    if model_type in ("gemma", "qwen3"):
        sizes["head_dim"] = 4
    torch.manual_seed(0)
    return widened(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)), 0.3)


def one_by_one(model, prompt, completion, temperature: float) -> float:
    """log p(completion | prompt) of one unpadded row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double() / temperature
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_each_completion_has_the_logprob_that_it_has_alone(model_type):
    model = tiny(model_type)
    assert takes_trees(model)
    found = tree_logprobs(model, trees_of(PAIRS), PAD, 0.7)
    assert set(found) == set(PAIRS)
    for prompt, completion in PAIRS:
        assert found[prompt, completion] == pytest.approx(one_by_one(model, prompt, completion, 0.7), abs=1e-4)


def test_a_prefix_is_one_path_of_nodes():
    first, second, third = trees_of(PAIRS)
    assert first.prompt == PROMPTS[0] and first.tokens == second.tokens and third.tokens == [1, 2]
    assert len(first.tokens) == len({c[:i] for c in COMPLETIONS for i in range(1, len(c) + 1)})
    for completion, node in first.ends.items():
        path = []
        while node >= 0:
            path.append(first.tokens[node])
            node = first.parents[node]
        assert tuple(reversed(path)) == completion


def test_large_trees_are_divided(monkeypatch):
    monkeypatch.setattr(prefix_tree, "MOST_NODES", 6)
    model = tiny("llama")
    trees = trees_of(PAIRS)
    assert len(trees) > 3 and all(len(tree.tokens) <= 6 for tree in trees)
    assert sorted((tree.prompt, completion) for tree in trees for completion in tree.ends) == sorted(PAIRS)
    found = tree_logprobs(model, trees, PAD, 1.0)
    for prompt, completion in PAIRS:
        assert found[prompt, completion] == pytest.approx(one_by_one(model, prompt, completion, 1.0), abs=1e-4)


def test_windows_and_other_architectures_are_read_row_by_row():
    assert not takes_trees(tiny("mistral", sliding_window=8))
    from transformers import BloomConfig, BloomForCausalLM

    assert not takes_trees(BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=4)))
