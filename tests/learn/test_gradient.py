"""Derivatives by factors are inner products of the dense gradient with residuals; Adam's first steps by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.learn.adamerging import entropy
from rlhf_lines.learn.gradient import Differentiated, descend
from rlhf_lines.merge.inputs.adapter import dense_residual, load_adapter
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.space import make_space
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.local import load_base
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from tests import tiny


PAIRS = [((5, 9, 14, 3), (7, 8)), ((7,), (22, 3, 9)), ((22, 30, 4, 11, 8), (19,))]
WEIGHTS = [0.5, 1.0, -0.25]


def likelihood(logits, pair):
    """-log p of the second part, written apart from the code that is tested."""
    before, after = pair
    rows = logits[len(before) - 1 : len(before) + len(after) - 1]
    return -sum(row[token] - row.logsumexp(0) for row, token in zip(rows, after, strict=True))


@pytest.fixture
def adapters(policies):
    return [load_adapter(policy) for policy in policies]


@pytest.fixture
def load_sft(sft):
    """A function that loads the SFT model in float64."""
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float64).eval()


@pytest.mark.parametrize("name", ["coefficients", "profile", "policies"])
@pytest.mark.parametrize("loss", [entropy, likelihood])
def test_derivatives_are_inner_products_with_residuals(load_sft, adapters, name, loss):
    space = make_space(name, 3, 4)
    vector = np.random.default_rng(0).normal(0.8, 0.5, len(space.start))
    got, derivatives = Differentiated(MultiLoRA(load_sft(), adapters), space, 3, 0)(vector, PAIRS, loss, WEIGHTS)

    # The dense model at these factors, one row at a time, and its gradient.
    model, profile = load_sft(), space.profile(vector)
    taus = [{f"{m}.weight": dense_residual(one, m).double() for m in one.modules} for one in adapters]
    layers = layer_indices(sorted({name for tau in taus for name in tau}), num_layers=4)
    parameters = {name: model.get_parameter(name) for name in layers}
    with torch.no_grad():
        for k, tau in enumerate(taus):
            for module, residual in tau.items():
                parameters[module] += profile.at(layers[module])[k] * residual
    total = sum(
        weight * loss(model(input_ids=torch.tensor([before + after])).logits[0], (before, after))
        for (before, after), weight in zip(PAIRS, WEIGHTS, strict=True)
    )
    total.backward()
    dense = np.zeros((3, 5))
    for k, tau in enumerate(taus):
        for module, residual in tau.items():
            place = 0 if layers[module] is None else 1 + layers[module]
            dense[k, place] += (parameters[module].grad * residual).sum().item()
    assert got == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(derivatives, space.matrix().T @ dense.ravel(), rtol=1e-4, atol=1e-6)
    # Two policies change nothing outside the layers.
    assert (np.abs(derivatives) > 1e-4).sum() == len(derivatives) - (2 if name == "coefficients" else 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_derivatives_on_a_quantised_base_are_those_on_its_weights(tmp_path, bits):
    """The weights that a quantised base stands for, in a plain one; 8 bits round activations too, to 1 of 127."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}  # which kernels on CPUs take
    sft = tmp_path / "sft"
    tiny.llama(vocab_size=32, **sizes).save_pretrained(sft)
    adapters = [load_adapter(tiny.save_adapter(sft, tmp_path / name, seed=k)) for k, name in enumerate("ab")]
    named = {"sft_model": str(sft), "policies": ["a", "b"], "rewards": ["m:a", "m:b"], "output_dir": "never"}
    packed = load_base(SweepConfig(**named, load_in_8bit=bits == 8, load_in_4bit=bits == 4), sft)
    plain = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in packed.named_parameters():
            if bits == 8 and hasattr(weight, "SCB"):
                plain.get_parameter(name).copy_(weight * weight.SCB.unsqueeze(1) / 127)
            elif bits == 4 and hasattr(weight, "quant_state"):
                plain.get_parameter(name).copy_(dequantize_4bit(weight.data, weight.quant_state))
    space = make_space("profile", 2, 2)
    vector = np.random.default_rng(0).normal(0.8, 0.5, len(space.start))
    (_, found), (_, expected) = (
        Differentiated(MultiLoRA(model, adapters), space, 2, 0)(vector, PAIRS, likelihood, WEIGHTS)
        for model in (packed, plain)
    )
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.04 * np.abs(expected).max())


def test_outside_the_block_all_rows_are_the_sft_model(load_sft, adapters):
    multi_lora = MultiLoRA(load_sft(), adapters)
    tokens = torch.tensor([[5, 9, 14]])
    before = multi_lora.model(input_ids=tokens).logits
    with multi_lora.mixed(torch.ones(3, 5), 1):
        assert not torch.equal(multi_lora.model(input_ids=tokens).logits, before)
    assert torch.equal(multi_lora.model(input_ids=tokens).logits, before)


def test_entropy_by_hand():
    # Of 1/2, 1/4, 1/4: 1.5 ln 2; of one sure token: 0.
    logits = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0]]) * torch.tensor([[np.log(2.0)], [1e4]])
    assert entropy(logits.double(), ((), ())).item() == pytest.approx(1.5 * np.log(2) / 2, rel=1e-6)


def test_adams_first_steps_go_by_the_learning_rate_and_stay_in_the_bounds():
    found, losses = descend(lambda x, step: (float((x**2).sum()), 2 * x), [1.0, -1.0], steps=1, learning_rate=0.1)
    np.testing.assert_allclose(found, [0.9, -0.9], atol=1e-8)  # Adam's first step is the sign times the rate
    assert losses == [2.0]
    bounded, _ = descend(
        lambda x, step: (0.0, np.ones(2)), [0.3, 1.0], steps=9, learning_rate=0.1, project=lambda x: x.clip(0.0, 1.0)
    )
    np.testing.assert_allclose(bounded, [0.0, 0.1], atol=1e-7)


@pytest.mark.parametrize("name", ["coefficients", "profile", "policies"])
def test_the_matrix_of_a_space_is_its_profile(name):
    space = make_space(name, 2, 3)
    vector = np.arange(1.0, len(space.start) + 1)
    np.testing.assert_allclose(space.matrix() @ vector, space.profile(vector).vector(), rtol=1e-14)
