"""Every row of a mixed batch is the merged policy of its own spec, whatever the other rows are."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, load_adapter
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from tests import tiny


PROMPTS = [[5, 9, 14, 3], [7], [22, 30, 4, 11, 8, 19, 6], [12, 13], [33, 3, 21, 17, 10], [4, 4, 4], [9, 28], [16, 5, 5]]
BY_LAYER = {
    "factors": [[0.2, 1.0, 0.0, 0.5], [1.0, 0.3, 0.6, -0.4], [0.0, 0.8, 0.1, 1.2]],
    "outside": [0.5, 0.0, 2.0],
}
TWO = [
    MergeSpec("linear", (0.3, 0.7)),
    MergeSpec("linear", (0.0, 0.0)),
    MergeSpec("linear", (1.0, 0.0)),
    MergeSpec("linear", (0.0, 1.0), alpha=0.4, beta=1.2),
    MergeSpec("linear", (0.5, 0.5), alpha=0.5, beta=1.0),
    MergeSpec("linear", (1.5, -0.5), alpha=1.5, beta=-1.0),
    MergeSpec("sum", (0.3, 0.7), alpha=0.4, beta=0.2),
    MergeSpec("linear", (0.3, 0.7)),
]
THREE = [
    MergeSpec("linear", (0.2, 0.3, 0.5)),
    MergeSpec("linear", (0.0, 0.0, 0.0)),
    MergeSpec("linear", (0.0, 0.0, 1.0)),
    # The head lies outside the layers: it is scaled by alpha, not by the factor of the last layer.
    MergeSpec("linear", (0.1, 0.1, 0.8), alpha=0.5, beta=1.5),
    MergeSpec("linear", (0.6, 0.4, 0.0), alpha=0.0, beta=2.0),
    MergeSpec("sum", (0.2, 0.3, 0.5), alpha=0.7, beta=0.3),
    MergeSpec("layerwise", (0.2, 0.5, 0.3), 0.9, 0.5, options=BY_LAYER),
]
FOUR = [
    MergeSpec("linear", (0.1, 0.2, 0.3, 0.4)),
    MergeSpec("linear", (0.0, 0.0, 0.0, 0.0)),
    MergeSpec("linear", (0.0, 0.0, 0.0, 1.0), alpha=0.5, beta=1.0, schedule="sqrt"),
    MergeSpec("linear", (0.25, 0.25, 0.25, 0.25), beta=-0.5, schedule="reversed_quadratic"),
    MergeSpec("sum", (0.7, -0.2, 0.1, 0.4), alpha=0.2),
]


def batch_logits(model, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits ``[length, vocab]`` of every prompt, computed in one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    return [row[width - len(prompt) :] for row, prompt in zip(logits, prompts, strict=True)]


def plain_logits(model, prompt: list[int]) -> torch.Tensor:
    """Logits ``[length, vocab]`` of one prompt alone, without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits[0]


@pytest.mark.parametrize("specs", [TWO, THREE, FOUR], ids=["two policies", "three policies", "four policies"])
def test_each_row_is_the_dense_merge_of_its_spec(load_multi_lora, dense_model, specs):
    multi_lora = load_multi_lora(len(specs[0].weights))
    prompts = PROMPTS[: len(specs)]
    expected = [plain_logits(dense_model(spec), prompt) for spec, prompt in zip(specs, prompts, strict=True)]
    # The specs move the logits by far more than the tolerance, so a row that follows another spec is seen.
    sft = [plain_logits(multi_lora.model, prompt) for prompt in prompts]
    moved = [(e - s).abs().max().item() for e, s, spec in zip(expected, sft, specs, strict=True) if any(spec.weights)]
    assert len(moved) == len(specs) - 1 and min(moved) > 0.05
    with multi_lora.rows(specs):
        mixed = batch_logits(multi_lora.model, prompts)
    backwards = list(reversed(range(len(specs))))
    with multi_lora.rows([specs[i] for i in backwards]):
        reordered = batch_logits(multi_lora.model, [prompts[i] for i in backwards])
    for i, (row, want) in enumerate(zip(mixed, expected, strict=True)):
        torch.testing.assert_close(row, want, rtol=0, atol=1e-4)
        torch.testing.assert_close(reordered[-1 - i], want, rtol=0, atol=1e-4)
        with multi_lora.rows([specs[i]]):
            torch.testing.assert_close(plain_logits(multi_lora.model, prompts[i]), want, rtol=0, atol=1e-4)


def test_outside_and_under_zero_weights_every_row_is_the_sft_model(load_multi_lora, sft):
    from transformers import AutoModelForCausalLM

    untouched = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
    multi_lora = load_multi_lora(2)
    expected = batch_logits(untouched, PROMPTS)
    before = batch_logits(multi_lora.model, PROMPTS)
    with multi_lora.rows([MergeSpec("linear", (0.0, 0.0))] * len(PROMPTS)):
        zero = batch_logits(multi_lora.model, PROMPTS)
    with pytest.raises(KeyError, match="stop"), multi_lora.rows(TWO):
        raise KeyError("stop")
    after = batch_logits(multi_lora.model, PROMPTS)
    for rows in (before, zero, after):
        assert all(torch.equal(row, want) for row, want in zip(rows, expected, strict=True))
    for parameter, want in zip(multi_lora.model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(parameter, want)


@pytest.mark.parametrize("spec", [THREE[3], THREE[-1]], ids=["LiNeS", "by layer"])
def test_while_a_spec_is_followed_every_pass_of_any_rows_is_its_dense_merge(load_multi_lora, dense_model, spec):
    multi_lora = load_multi_lora(3)
    sft = plain_logits(multi_lora.model, PROMPTS[0])
    with multi_lora.following(spec):
        for prompts in (PROMPTS, PROMPTS[2:5], PROMPTS[:1]):
            expected = [plain_logits(dense_model(spec), prompt) for prompt in prompts]
            for row, want in zip(batch_logits(multi_lora.model, prompts), expected, strict=True):
                torch.testing.assert_close(row, want, rtol=0, atol=1e-4)
        with torch.no_grad():  # its tokens without their name, as lm-eval gives them
            unnamed = multi_lora.model(torch.tensor(PROMPTS[2:3])).logits[0]
        torch.testing.assert_close(unnamed, plain_logits(dense_model(spec), PROMPTS[2]), rtol=0, atol=1e-4)
        ids = torch.tensor([PROMPTS[4]] * 3)
        written = multi_lora.model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=6, do_sample=False)
    assert torch.equal(written[:1], dense_model(spec).generate(ids[:1], max_new_tokens=6, do_sample=False))
    with pytest.raises(KeyError, match="stop"), multi_lora.following(spec):
        raise KeyError("stop")
    assert torch.equal(plain_logits(multi_lora.model, PROMPTS[0]), sft)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_hot_rows_are_the_policy_as_peft_loads_it(load_multi_lora, sft, policies, k):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), policies[k]).eval()
    multi_lora = load_multi_lora(3)
    one_hot = MergeSpec("linear", tuple(float(i == k) for i in range(3)))
    specs = [one_hot if i % 2 else THREE[3] for i in range(len(PROMPTS))]
    with multi_lora.rows(specs):
        rows = batch_logits(multi_lora.model, PROMPTS)
    for i in range(1, len(PROMPTS), 2):
        torch.testing.assert_close(rows[i], plain_logits(policy, PROMPTS[i]), rtol=0, atol=1e-4)


def test_selected_rows_keep_their_specs(multi_lora, dense_model):
    kept = [6, 3, 0]
    with multi_lora.rows(TWO):
        multi_lora.select_rows(torch.tensor([0, 3, 5, 6]))
        multi_lora.select_rows(torch.tensor(kept))
        rows = batch_logits(multi_lora.model, [PROMPTS[i] for i in kept])
    for i, row in zip(kept, rows, strict=True):
        torch.testing.assert_close(row, plain_logits(dense_model(TWO[i]), PROMPTS[i]), rtol=0, atol=1e-4)
    # What was selected does not outlive the block.
    with multi_lora.rows(TWO):
        rows = batch_logits(multi_lora.model, PROMPTS)
    torch.testing.assert_close(rows[5], plain_logits(dense_model(TWO[5]), PROMPTS[5]), rtol=0, atol=1e-4)


def test_transposed_layers_of_gpt2(tmp_path, save_policy):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sft = tmp_path / "gpt2"
    tiny.gpt2(vocab_size=40).save_pretrained(sft)
    # attn.c_proj is square, where a wrong layout has the right shape.
    folder = save_policy(sft, tmp_path / "policy", seed=1, target_modules=["c_attn", "attn.c_proj"])
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), folder).eval()
    multi_lora = MultiLoRA(AutoModelForCausalLM.from_pretrained(sft).eval(), [load_adapter(folder)])
    sft_logits = [plain_logits(multi_lora.model, prompt) for prompt in PROMPTS[:2]]
    with multi_lora.rows([MergeSpec("linear", (1.0,)), MergeSpec("linear", (0.0,))]):
        rows = batch_logits(multi_lora.model, PROMPTS[:2])
    expected = plain_logits(policy, PROMPTS[0])
    assert (expected - sft_logits[0]).abs().max() > 0.01
    torch.testing.assert_close(rows[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows[1], sft_logits[1], rtol=0, atol=1e-4)


def test_mistakes_are_named(multi_lora):
    with pytest.raises(ValueError, match="rule 'ties' is not linear"), multi_lora.rows([MergeSpec("ties", (0.5, 0.5))]):
        pass
    module = "model.layers.0.self_attn.other_proj"
    stranger = Adapter("stranger", {module: Factors(torch.ones(2, 16), torch.ones(16, 2), 1.0)})
    with pytest.raises(ValueError, match=f"'{module}', which the SFT model has not"):
        MultiLoRA(multi_lora.model, [stranger])
