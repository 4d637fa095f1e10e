"""Fisher information against autograd in float64, a closed form, and itself in other groups."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlhf_lines.statistics.fisher import diagonal_fisher
from rlhf_lines.statistics.samples import Sample
from tests import tiny
from tests.statistics.oracle import made, policy_model, samples_of


def by_hand(model, samples) -> dict[str, torch.Tensor]:
    """Mean over sequences of squared gradients, one sequence and one gradient call at a time, float64."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for prompt, completion in samples:
        ids = torch.tensor([[*prompt, *completion]])
        logprobs = model(input_ids=ids).logits.log_softmax(-1)[0]
        value = sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(completion))
        for name, gradient in zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True):
            total[name] += gradient**2
    return {name: value / len(samples) for name, value in total.items()}


def assert_fisher(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare within the rounding of float32: of a gradient, relative to the largest ones of its parameter."""
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert expected.max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize(
    ("sft", "policy"), [("./sft", "./lora"), ("./gpt2", "./lora_gpt2"), ("./sft", "./dense"), ("./tied", "./tied")]
)
def test_fisher_is_the_mean_of_squared_gradients(folder, flags, sft, policy):
    record = made("fisher", flags(sft_model=sft, policy=policy, parameters="all"))
    samples = samples_of(record, sft, policy)
    if sft == "./sft":  # some end before the longest, with the end token
        assert any(completion[-1] == 1 and len(completion) < 12 for _, completion in samples)
    expected = by_hand(policy_model(sft, policy), samples)
    found = load_file("out/fisher.safetensors")
    stored = load_file(f"{sft}/model.safetensors")
    assert found.keys() == stored.keys() == expected.keys()
    for name, fisher in found.items():
        assert_fisher(fisher, expected[name])


def test_an_adapter_has_the_fisher_of_the_same_policy_saved_dense(folder, flags):
    adapter = made("fisher", flags())
    dense = made("fisher", flags(policy="./dense", output_dir="./dense_out"), "./dense_out")
    assert adapter["samples_sha256"] == dense["samples_sha256"]
    assert (adapter["parameters"], dense["parameters"]) == ("adapted", "all")
    of_adapter, of_dense = load_file("out/fisher.safetensors"), load_file("dense_out/fisher.safetensors")
    modules = ("q_proj", "k_proj", "v_proj", "down_proj")
    assert of_adapter.keys() == {name for name in of_dense if name.split(".")[-2] in modules}
    assert len(of_adapter) == adapter["tensors"] == 3 * len(modules)
    assert all(torch.equal(fisher, of_dense[name]) for name, fisher in of_adapter.items())


@pytest.mark.parametrize("changes", [{"max_memory": "2.5KB"}, {"max_memory": "6KiB"}, {"batch_size": 2}], ids=str)
def test_neither_groups_nor_batches_change_a_bit(folder, flags, changes):
    policy = {"policy": "./dense"}
    one = made("fisher", flags(**policy))
    other = made("fisher", flags(**policy, **changes, output_dir="./other"), "./other")
    assert one["passes"] == 1 and (other["passes"] > 4 or "max_memory" not in changes)
    a, b = load_file("out/fisher.safetensors"), load_file("other/fisher.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_gives_one_file_and_another_seed_another(folder, flags):
    made("fisher", flags())
    made("fisher", flags(output_dir="./again"))
    made("fisher", flags(output_dir="./other", seed=1))
    first = (folder / "out" / "fisher.safetensors").read_bytes()
    assert first == (folder / "again" / "fisher.safetensors").read_bytes()
    assert first != (folder / "other" / "fisher.safetensors").read_bytes()


def test_one_step_of_a_softmax_has_a_closed_form():
    """With logits W h and one token, d log pi(y) / dW_v = (1[y=v] - p_v) h, so F_v = p_v (1 - p_v) h^2.

    The mean over samples that hold every token in proportion to its probability is the exact expectation.
    """
    counts = [1, 2, 3, 4]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny.llama(std=None, vocab_size=len(counts), **sizes)
    prompt = (2, 0, 3)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        model.lm_head.weight.copy_(torch.tensor(counts).log().unsqueeze(1) * hidden / hidden.square().sum())
    samples = [Sample(prompt, (token,)) for token, count in enumerate(counts) for _ in range(count)]
    [(_, fisher)] = diagonal_fisher(model, {"head": model.lm_head.weight}, samples, [["head"]])
    p = torch.tensor(counts) / sum(counts)
    torch.testing.assert_close(fisher, (p * (1 - p)).unsqueeze(1) * hidden.square(), rtol=1e-5, atol=1e-7)


def test_a_parameter_that_the_model_does_not_use_has_none(folder):
    model = policy_model("./sft", "./sft", torch.float32)
    parameters = {"unused": nn.Parameter(torch.ones(2)), "norm": model.model.norm.weight}
    found = dict(diagonal_fisher(model, parameters, [Sample((3, 4), (5, 6))], [["unused"], ["norm"]]))
    assert torch.equal(found["unused"], torch.zeros(2)) and (found["norm"] > 0).all()


def test_a_group_that_is_done_leaves_nothing_on_the_model(folder):
    """Peak memory is bounded only if gradients, and sums of earlier groups, are gone."""
    model = policy_model("./sft", "./sft", torch.float32)
    parameters = dict(model.named_parameters())
    groups = [[name] for name in parameters]
    for name, _ in diagonal_fisher(model, parameters, [Sample((3, 4), (5, 6))], groups):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters.values()), name
        assert all(not parameter._post_accumulate_grad_hooks for parameter in parameters.values())


def test_bfloat16_says_what_it_costs(folder, flags, capsys):
    record = made("fisher", flags(dtype="bfloat16"))
    sft, policy = load_file("sft/model.safetensors"), load_file("dense/model.safetensors")
    error = total = 0.0
    for name in load_file("out/fisher.safetensors"):
        residual = policy[name] - sft[name]
        kept = policy[name].bfloat16().double() - sft[name].bfloat16().double()
        error += (kept - residual.double()).square().sum().item()
        total += residual.double().square().sum().item()
    lost = record["lost_residual"]["relative_l2"]
    assert lost == pytest.approx(math.sqrt(error / total), rel=1e-4)
    assert f"bfloat16 lost {lost:.1%} of the policy's residual" in capsys.readouterr().out


def test_squares_of_bfloat16_gradients_are_summed_in_float32(folder):
    samples = [Sample((3, 4), (5, 6, 7))] * 300  # in bfloat16, a sum stops growing at 256 times its summand
    model = policy_model("./sft", "./dense", torch.bfloat16)
    weights = {"norm": model.model.norm.weight}
    [(_, one)] = diagonal_fisher(model, weights, samples[:1], [["norm"]])
    [(_, many)] = diagonal_fisher(model, weights, samples, [["norm"]])
    torch.testing.assert_close(many, one, rtol=1e-5, atol=0)
    exact = by_hand(policy_model("./sft", "./dense").requires_grad_(True), samples[:1])["model.norm.weight"]
    assert (one.double() - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("policy", ["./trunk", "./gpt2"])
def test_names_are_those_of_the_sft_models_files_also_where_they_lack_the_prefix_of_the_trunk(folder, flags, policy):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained("./gpt2").save_pretrained("./trunk")
    AutoTokenizer.from_pretrained("./gpt2").save_pretrained("./trunk")
    shutil.copyfile("gpt2/generation_config.json", "trunk/generation_config.json")
    made("fisher", flags(sft_model="./trunk", policy=policy))
    made("fisher", flags(sft_model="./gpt2", policy="./gpt2", output_dir="./whole"))
    found, whole = load_file("out/fisher.safetensors"), load_file("whole/fisher.safetensors")
    assert found.keys() == load_file("trunk/model.safetensors").keys()
    assert all(torch.equal(fisher, whole[f"transformer.{name}"]) for name, fisher in found.items())
    assert len(found) == len(whole)
