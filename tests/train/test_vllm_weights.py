"""What vLLM is sent: the weights of the merged policy. (vLLM itself is not needed for that.)"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from reward_models import FunctionReward
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests.tiny import QUIET


RANK, ALPHA = 3, 6


@pytest.fixture(params=[False, True], ids=["value head", "value adapter"])
def trainer(request, tmp_path, llama, tokenizer):
    """Return a trainer whose adapters are not zero."""
    trainer = PPOTrainer(
        llama(),
        [FunctionReward(lambda prompts, completions: [float(len(completion)) for completion in completions])],
        PPOConfig(
            output_dir=str(tmp_path / "trainer"),
            **{**QUIET, "per_device_train_batch_size": 4, "max_completion_length": 4, "learning_rate": 1e-2},
            **{"max_steps": 2, "num_iterations": 2, "value_lora": request.param},
        ),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b c", "d", "e f"]}),
        processing_class=tokenizer,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return trainer


def sent(trainer):
    """Return names and copies of what is sent to vLLM after an update."""
    return {name: tensor.clone() for name, tensor in trainer._vllm_weights()}


def sent_by_trl(trainer):
    """Return what TRL itself would send."""
    generation = VLLMGeneration.__new__(VLLMGeneration)  # without the engine
    generation.model, generation._dist = trainer.model, DistributedBackend(trainer.accelerator)
    return {name: tensor.clone() for name, tensor in generation._iter_named_params()}


def test_vllm_is_sent_the_merged_policy_and_nothing_else(trainer, llama):
    expected, state = llama().state_dict(), trainer.model.state_dict()
    for name in expected:
        a = state.get(f"base_model.model.{name.replace('.weight', '.lora_A.default.weight')}")
        if a is not None:
            b = state[f"base_model.model.{name.replace('.weight', '.lora_B.default.weight')}"]
            expected[name] = (expected[name].double() + ALPHA / RANK * b.double() @ a.double()).float()
    weights = sent(trainer)
    assert weights.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-6)


def test_vllm_is_sent_what_trl_sends_but_the_value_head(trainer):
    weights, by_trl = sent(trainer), sent_by_trl(trainer)
    assert weights.keys() == {name for name in by_trl if not name.startswith("value_head.")}
    for name, weight in weights.items():
        torch.testing.assert_close(weight, by_trl[name], rtol=0, atol=1e-6)


def test_the_trainer_goes_on_after_sending(trainer):
    trainer.model.get_base_model().to(torch.bfloat16)  # where adding and subtracting would not give back the base
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    sent(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == (name in trained), name
        assert torch.equal(parameter, before[name]), name
    assert trainer.model.active_adapters == ["default"]
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if (p - before[name]).abs().max() > 1e-4}
    assert moved == trained
