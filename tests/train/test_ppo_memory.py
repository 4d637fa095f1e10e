"""One base for policy, reference and value function: exact in every precision, and never a tensor of all logits."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from reward_models import FunctionReward
from rlhf_lines.stages import run_stage
from rlhf_lines.train.adapters import checkpoint_contexts, use_adapter
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import _VALUE_PARAMETER, PPOTrainer
from tests import tiny
from tests.tiny import QUIET, TWO_LAYERS, WORDS, word_tokenizer


PROMPTS = [f"{x} {y}" for x in WORDS[:8] for y in WORDS[:4]]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


@pytest.fixture
def make_trainer(tmp_path, llama, tokenizer):
    def make(*, model=None, **settings):
        defaults = {"per_device_train_batch_size": 8, "max_completion_length": 6, "max_grad_norm": 0.0}
        return PPOTrainer(
            llama() if model is None else model,
            [FunctionReward(shortness)],
            PPOConfig(output_dir=str(tmp_path / "trainer"), **{**QUIET, **defaults, **settings}),
            peft_config=LoraConfig(**LORA),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
        )

    return make


def randomise(trainer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name or "value_head" in name:
                std = 1.0 if "value_head" in name else 0.1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return trainer


def roll_out(trainer):
    trainer.model.train()
    return trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS[:8]])


def gradients(trainer):
    """Return the gradient of every trained parameter after one forward and backward pass over a rollout."""
    rollout = roll_out(trainer)
    trainer.current_gradient_accumulation_steps = 1
    # Old values and probabilities that are not the present ones, so that every term of the loss has a gradient.
    rollout = {**rollout, "old_values": rollout["old_values"] + 0.1, "returns": rollout["returns"] - 0.5}
    trainer._compute_loss(trainer.model, rollout).backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return found


# --- a value function of its own


def test_the_value_adapter_reads_the_same_base(make_trainer, llama):
    trainer = randomise(make_trainer(value_lora=True))
    rollout = roll_out(trainer)
    state = trainer.model.state_dict()

    def rebuilt(adapter):
        """The SFT model with one of the two adapters, put together by PEFT on a fresh copy."""
        model = get_peft_model(llama(), LoraConfig(**LORA), autocast_adapter_dtype=False)
        own = {name.replace(f".{adapter}.", ".default."): t for name, t in state.items() if f".{adapter}." in name}
        assert own and set(own) == {name for name in model.state_dict() if "lora_" in name}
        model.load_state_dict(own, strict=False)
        return model.double().eval()

    policy, value = rebuilt("default"), rebuilt("value")
    weight, bias = (state[f"value_head.{name}"].double() for name in ("weight", "bias"))
    for row in range(8):
        prompt, completion = (
            rollout[f"{part}_ids"][row][rollout[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")
        )
        ids = torch.cat([prompt, completion]).unsqueeze(0)
        states = slice(len(prompt) - 1, -1)
        with torch.no_grad():
            hidden = value(ids, output_hidden_states=True).hidden_states[-1][0, states]
            logprobs = policy(ids).logits[0, states].log_softmax(-1).gather(1, completion.unsqueeze(1)).squeeze(1)
        values = (hidden @ weight.T + bias).squeeze(1)
        n = len(completion)
        torch.testing.assert_close(rollout["old_values"][row, :n].double(), values, atol=1e-5, rtol=0)
        torch.testing.assert_close(rollout["old_per_token_logps"][row, :n].double(), logprobs, atol=1e-5, rtol=0)


def test_each_adapter_learns_from_its_own_loss(make_trainer):
    """vf_coef scales the gradients of the value function alone, and the policy's do not depend on it."""
    once, twice = (gradients(randomise(make_trainer(value_lora=True, vf_coef=v))) for v in (0.1, 0.2))
    for name, gradient in once.items():
        factor = 2.0 if ".value." in name or "value_head" in name else 1.0
        assert gradient.abs().max() > 0
        torch.testing.assert_close(twice[name], factor * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("value_lora", [False, True])
def test_gradient_checkpointing_changes_no_gradient(make_trainer, value_lora):
    found, passes = [], []
    for checkpointing in (False, True):
        trainer = randomise(make_trainer(value_lora=value_lora, gradient_checkpointing=checkpointing))
        if checkpointing:  # as Trainer does at the start of training
            new = hasattr(trainer.model, "activation_checkpointing_enable")  # not yet in transformers 5.16
            name = "activation_checkpointing" if new else "gradient_checkpointing"
            kwargs = {f"{name}_kwargs": getattr(trainer.args, f"{name}_kwargs")}
            getattr(trainer.model, f"{name}_enable")(**kwargs)
        attention, calls = trainer.model.get_base_model().model.layers[1].self_attn, []
        attention.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(gradients(trainer))
        passes.append(len(calls))
    assert passes[1] == passes[0] + (2 if value_lora else 1), "layers are repeated in the backward pass, and only there"
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-8)


def test_trackers_can_read_the_settings_of_a_run_with_checkpointing(make_trainer):
    args = make_trainer(value_lora=True, gradient_checkpointing=True).args
    assert args.gradient_checkpointing_kwargs["context_fn"] is checkpoint_contexts
    settings = json.loads(args.to_json_string())  # what the callbacks of tensorboard and wandb call
    found = {name: value for name, value in settings.items() if name.endswith("_checkpointing_kwargs")}
    assert "gradient_checkpointing_kwargs" in found  # and, since 5.23, activation_checkpointing_kwargs
    assert all(value == {"use_reentrant": False} for value in found.values())


def test_a_value_adapter_is_saved_beside_the_policy_and_not_in_it(make_trainer, llama, tmp_path):
    trainer = make_trainer(value_lora=True, max_steps=4, learning_rate=1e-2, num_iterations=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    policy = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    value = load_file(tmp_path / "saved" / "value" / "adapter_model.safetensors")
    assert policy.keys() == value.keys() and not any(".value." in name for name in policy)
    state = trainer.model.state_dict()
    for saved, adapter in ((policy, "default"), (value, "value")):
        for name, tensor in saved.items():
            assert torch.equal(tensor, state[name.replace(".weight", f".{adapter}.weight")])
            assert tensor.abs().max() > 0
    # What users load is the policy.
    ids = torch.tensor([[3, 4, 5]])
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "saved").eval()
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits, rtol=0, atol=1e-6)


def test_use_adapter_chooses_and_leaves_gradients_on(llama):
    model = get_peft_model(llama(), LoraConfig(**LORA))
    model.add_adapter("value", LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1 if ".value." in name else 0.3)
            if "lora_" in name:
                parameter.requires_grad_(True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ids = torch.tensor([[3, 4, 5]])

    def logits():
        return model(ids).logits.detach()

    policy = logits()
    with use_adapter(model, "value"):
        value = logits()
        with use_adapter(model, None):
            base = logits()
        assert torch.equal(logits(), value)
    assert torch.equal(logits(), policy)
    torch.testing.assert_close(base, llama()(ids).logits.detach())
    assert not torch.equal(policy, value) and not torch.equal(value, base)
    with pytest.raises(RuntimeError), use_adapter(model, "value"):
        raise RuntimeError
    assert torch.equal(logits(), policy), "an error inside leaves nothing behind"
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


# --- precisions


@pytest.fixture(scope="module")
def larger_base(tmp_path_factory, tokenizer):
    """A base whose shapes the CPU kernels of bitsandbytes take: multiples of 64, and of the block of 4-bit weights."""
    folder = tmp_path_factory.mktemp("larger") / "base"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    tiny.llama(word_tokenizer(), std=0.1, **{**TWO_LAYERS, **sizes}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("value_lora", [False, True], ids=["head", "adapter"])
@pytest.mark.parametrize(
    "precision",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "bf16": True},
        {"dtype": "float32", "bf16": True},
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "dtype": "bfloat16", "bf16": True},
    ],
    ids=["float32", "bfloat16", "autocast", "8bit", "4bit"],
)
def test_every_precision_trains(flags, larger_base, write_rows, tmp_path, monkeypatch, precision, value_lora):
    if precision.get("load_in_8bit") or precision.get("load_in_4bit"):
        modules = pytest.importorskip("bitsandbytes.nn.modules")
        # As on a CPU with bfloat16 in AVX-512: what is packed for its kernel lets no gradient through.
        monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
        monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", lambda *_: pytest.fail("weights were packed"))
    (tmp_path / "short_rewards.py").write_text(
        "def shortness(prompts, completions):\n    return [-len(c.split()) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write_rows("data/train.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    settings = {
        **{"model_name_or_path": larger_base, "output_dir": tmp_path / "policy", "dataset_name": data.parent},
        **{"rewards": ["short_rewards:shortness"], "use_peft": True, "lora_r": 4, "lora_alpha": 8},
        **{"lora_target_modules": "all-linear", "per_device_train_batch_size": 16, "num_iterations": 4},
        **{"max_steps": 40, "max_completion_length": 8, "logging_steps": 4, "learning_rate": 1e-2},
        **{"value_lora": value_lora, "value_clip_range": 2.0, "kl_coef": 0.0, "gradient_checkpointing": True},
    }
    out = run_stage("ppo", flags(**{**settings, **precision}))
    history = [row for row in json.loads((out / "rlhf_lines.json").read_text())["history"] if "reward" in row]
    # A fresh adapter is the SFT model: in 8 bits, where every batch is quantised on its own, up to that rounding.
    assert abs(history[0]["kl"]) < 0.2 if precision.get("load_in_8bit") else abs(history[0]["kl"]) < 1e-5
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in history)
    assert history[-1]["reward"] > history[0]["reward"] + 1.0, "it learns to be short"
    adapter = load_file(out / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() and tensor.abs().max() > 0 for tensor in adapter.values())
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(larger_base), out)
    assert policy(torch.tensor([[3, 4]])).logits.isfinite().all()


# --- P20


class Largest(TorchDispatchMode):
    """Remembers the size of the largest floating-point tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.size, self.shape = 0, None  # numbers in memory: an expanded view holds no more than it was made of

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                if size > self.size:
                    self.size, self.shape = size, tuple(leaf.shape)
        return result


@pytest.mark.parametrize("value_lora", [False, True])
def test_no_tensor_holds_the_logits_of_a_rollout(tmp_path, tokenizer, value_lora):
    vocabulary, rollout, minibatch, length = 8000, 32, 2, 6
    trainer = PPOTrainer(
        tiny.llama(word_tokenizer(), **TWO_LAYERS, vocab_size=vocabulary),
        [FunctionReward(shortness)],
        PPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=minibatch,
            steps_per_generation=rollout // minibatch,
            max_completion_length=length,
            num_iterations=2,
            value_lora=value_lora,
            **QUIET,
        ),
        peft_config=LoraConfig(**{**LORA, "target_modules": ["q_proj", "v_proj"]}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=copy.deepcopy(tokenizer),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    with Largest() as largest:
        inputs = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS])
        trainer._compute_loss(trainer.model, inputs).backward()
    assert inputs["completion_ids"].shape == (minibatch, length)
    # Two are needed: the next tokens of all rows at one step of generation, and a tile of the logits of a minibatch.
    assert vocabulary * rollout <= largest.size <= vocabulary * rollout * length / 3, largest.shape
    kept = [t for batch in trainer._buffered_inputs for t in batch.values()]
    assert max(t.numel() for t in kept) == minibatch * length


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("value_head.weight", True),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.value.weight", True),
        ("base_model.model.model.embed_tokens.lora_embedding_B.value", True),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", False),
        # RWKV and BERT call a projection "value".
        ("base_model.model.rwkv.blocks.0.attention.value.base_layer.weight", False),
        ("base_model.model.rwkv.blocks.0.attention.value.lora_A.default.weight", False),
        ("base_model.model.rwkv.blocks.0.attention.value.lora_A.value.weight", True),
    ],
)
def test_which_parameters_are_the_value_functions(name, expected):
    assert bool(_VALUE_PARAMETER.search(name)) == expected
