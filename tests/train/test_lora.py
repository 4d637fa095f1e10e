"""LoRA's layers computed in place, beside the dense map they stand for and beside PEFT's own, in double precision."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from rlhf_lines.train.adapters import use_adapter
from rlhf_lines.train.lora import adapted, add_in_place


SCALING = 0.7


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def parts():
    """Return x, W, bias, A and B; all but W and bias are trained."""
    torch.manual_seed(0)
    x, a, b = (numbers(*shape).requires_grad_() for shape in ((2, 5, 7), (3, 7), (4, 3)))
    return x, numbers(4, 7), numbers(4), a, b


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_map_is_that_of_the_sum_of_weights(parts, has_bias, gradients):
    x, weight, bias, a, b = parts
    bias = bias if has_bias else None
    with torch.set_grad_enabled(gradients):
        found = adapted(x, weight, bias, a, b, SCALING)
    expected = x @ (weight + SCALING * b @ a).t() + (0 if bias is None else bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.requires_grad == gradients


@pytest.mark.parametrize("first_layer", [True, False])
def test_its_gradients_are_those_of_finite_differences(parts, first_layer):
    x, weight, bias, a, b = parts
    x.requires_grad_(not first_layer)  # the first layer reads frozen embeddings
    assert torch.autograd.gradcheck(adapted, (x, weight, bias, a, b, SCALING))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


def adapt(**settings):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False, **settings)
    model = get_peft_model(Two().double(), config)
    model.double()
    return model.eval()


def outcome(model, x):
    """The result, and the gradients of all that is trained."""
    model.zero_grad()
    result = model(x)
    if result.requires_grad:
        result.pow(2).sum().backward()
    return [result.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def add(model):
    model.add_adapter("other", LoraConfig(r=1, target_modules=["second"], init_lora_weights=False))
    model.double()


def use_both(model):
    add(model)
    model.base_model.set_adapter(["default", "other"])


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, None),
        ({"use_rslora": True}, None),
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({}, add),
        ({}, use_both),
        ({}, lambda model: model.merge_adapter()),
        ({}, lambda model: model.base_model.disable_adapter_layers()),
    ],
)
def test_a_model_computes_what_it_does_with_peft_alone(settings, change):
    model, x = adapt(**settings), numbers(3, 6)
    if change is not None:
        change(model)
    expected = outcome(model, x)
    add_in_place(model)
    found = outcome(model, x)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_adapter_in_use_is_applied_in_place(monkeypatch):
    model, x = adapt(), numbers(3, 6)
    add_in_place(model)
    with use_adapter(model, None):
        base = model(x)
    monkeypatch.setattr(Linear, "forward", None)  # PEFT's own is not asked
    assert not torch.allclose(model(x), base)


def test_under_autocast_factors_in_float32_are_cast_as_autocast_does_and_trained_in_their_own_dtype(monkeypatch):
    x = numbers(3, 6)
    exact, model = outcome(adapt(), x), adapt().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    add_in_place(model)
    monkeypatch.setattr(Linear, "forward", None)  # PEFT's own is not asked
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(model, x.to(torch.bfloat16))
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 4
    for mine, true in zip(found, exact, strict=True):
        assert (
            mine.double() - true
        ).norm() < 4 * 2**-8 * true.norm()  # of weights, inputs and two steps that are rounded
