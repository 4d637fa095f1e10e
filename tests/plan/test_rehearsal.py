"""A pass on fake tensors allocates, byte for byte, what the same pass allocates on real ones."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from rlhf_lines import skeleton
from rlhf_lines.plan import rehearsal
from rlhf_lines.plan.rehearsal import LiveBytes, Rehearsal


LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def test_live_bytes_counts_what_is_alive():
    live = LiveBytes()
    with live:
        a = torch.zeros(10)
        b = a.view(2, 5)  # the same storage
        c = a + 1
        assert live.now == 80
        del c
        assert (live.now, live.peak) == (40, 80)
        del a, b
    assert (live.now, live.peak) == (0, 80)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_rehearsed_step_is_a_real_one(llama, checkpointing, autocast):
    dtype = "bfloat16" if autocast else "float32"
    step = Rehearsal(
        skeleton.adapt(skeleton.causal_lm(llama, dtype=dtype), LoraConfig(**LORA)), autocast=autocast
    ).step(3, 20, checkpointing=checkpointing)

    model = get_peft_model(LlamaForCausalLM(llama).to(getattr(torch, dtype)), LoraConfig(**LORA)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
    ids = torch.zeros(3, 20, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padding, so that a mask is made
    live = LiveBytes()
    with live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
            hidden = model.get_base_model().base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        kept, forward = live.now, live.peak - live.now
        live.peak = live.now
        hidden.backward(torch.ones_like(hidden))
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    # The rehearsal also makes ids and mask, 3 x 20 integers of 8 bytes each, inside.
    assert step.kept - kept in (0, 3 * 20 * 8, 2 * 3 * 20 * 8)
    assert step.forward == pytest.approx(forward, abs=1000)
    assert step.backward == pytest.approx(max(0, live.peak - kept - gradients), abs=1000)


def test_checkpointing_keeps_less_and_a_larger_batch_more(llama):
    make = lambda: Rehearsal(skeleton.adapt(skeleton.causal_lm(llama), LoraConfig(**LORA)))  # noqa: E731
    kept = make().step(2, 20).kept
    assert make().step(2, 20, checkpointing={"use_reentrant": False}).kept < kept / 2
    assert make().step(8, 20).kept == pytest.approx(4 * kept, rel=0.02)


def test_what_is_known_of_a_model_is_not_rehearsed_again(llama, monkeypatch):
    """It is known by all that decides: another rank, dropout, dtype, batch or setting is another pass."""
    passes = []
    hidden_states = rehearsal.hidden_states
    monkeypatch.setattr(rehearsal, "hidden_states", lambda *args, **kw: passes.append(1) or hidden_states(*args, **kw))
    monkeypatch.setattr(Rehearsal, "_known", {})

    def run(batch=2, checkpointing=None, dtype="float32", autocast=None, **lora):
        model = skeleton.adapt(skeleton.causal_lm(llama, dtype=dtype), LoraConfig(**{**LORA, **lora}))
        before, of_model = len(passes), Rehearsal(model, autocast=autocast)
        found = of_model.forward(batch, 8), of_model.step(batch, 8, checkpointing=checkpointing)
        return found, len(passes) - before

    first, count = run()
    assert count == 2 and run() == (first, 0)
    others = [
        {"r": 5},
        {"lora_dropout": 0.1},
        {"dtype": "bfloat16"},
        {"batch": 3},
        {"autocast": torch.bfloat16},
        {"target_modules": ["q_proj"]},
    ]
    for other in others:
        found, count = run(**other)
        assert count == 2 and found != first, other
    (forward, step), count = run(checkpointing={"use_reentrant": False})
    assert forward == first[0] and step != first[1] and count == 1


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "deberta-v2", "bart", "distilbert"])
def test_reward_models_of_all_kinds_are_rehearsed(model_type):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, num_labels=1)
    assert Rehearsal(skeleton.classifier(config)).forward(2, 8) > 2 * 8 * 768 * 4


def test_a_model_whose_pass_depends_on_numbers_is_refused():
    from transformers import MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = skeleton.causal_lm(MixtralConfig(**sizes, num_local_experts=4, vocab_size=32))
    with pytest.raises(ValueError, match="the memory of a mixtral model cannot be planned"):
        Rehearsal(model).forward(2, 8)
