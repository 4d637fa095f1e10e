"""PPO on every architecture: what it samples is what transformers writes, and what it reads of it needs no padding."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from reward_models import FunctionReward
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests.architectures import ARCHITECTURES
from tests.tiny import EOS, PAD, QUIET


PROMPTS = ["a", "b c d", "e f", "g h i j a b"]
LENGTH = 6


def completion_lengths(prompts, completions):
    return [float(len(completion)) for completion in completions]


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    """Return a maker of trainers of a model, with random factors as after some training."""

    def make(model, targets):
        size = {"per_device_train_batch_size": len(PROMPTS), "max_completion_length": LENGTH}
        trainer = PPOTrainer(
            model,
            [FunctionReward(completion_lengths)],
            PPOConfig(output_dir=str(tmp_path / "trainer"), **QUIET, **size, router_aux_loss_coef=0.0),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), task_type="CAUSAL_LM"),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        return trainer

    return make


def logprobs(model, prompt, completion) -> torch.Tensor:
    """Of the tokens of a completion, read in one pass, alone and without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.not_trained], ids=lambda a: a.name)
def test_what_ppo_cannot_read_is_refused(make_trainer, architecture):
    model = architecture.model()
    model.get_output_embeddings().weight.data.mul_(20)
    with pytest.raises(ValueError, match=architecture.not_trained):
        make_trainer(model, architecture.targets)


@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if not a.not_trained], ids=lambda architecture: architecture.name
)
def test_rollouts_and_their_probabilities_are_those_of_rows_alone(make_trainer, tokenizer, architecture):
    model = architecture.model()
    sft = copy.deepcopy(model)
    trainer = make_trainer(model, architecture.targets)
    policy = copy.deepcopy(trainer.model).merge_and_unload().eval()
    trainer.model.train()
    torch.nn.init.normal_(trainer.model.value_head.weight)
    rollout = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
    with torch.no_grad():  # of all tokens at once, while the rollout's are those of the sampling
        read = trainer._read(trainer.model, *trainer._sequences(rollout), None)
    torch.testing.assert_close(rollout["old_values"], read.values, atol=2e-3, rtol=0)
    reference = trainer._reference_logprobs(rollout)
    assert (rollout["prompt_mask"] == 0).any()
    for row in range(len(PROMPTS)):
        prompt, completion = (
            rollout[f"{part}_ids"][row][rollout[f"{part}_mask"][row].bool()].tolist()
            for part in ("prompt", "completion")
        )
        for got, of_model in ((rollout["old_per_token_logps"], policy), (reference, sft)):
            want = logprobs(of_model, prompt, completion)
            torch.testing.assert_close(got[row, : len(completion)].double(), want, atol=2e-4, rtol=0)
    trainer.temperature = 0.0
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    for prompt, completion in zip(ids, trainer.sample(ids, [0] * len(ids)), strict=True):
        tokens = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": LENGTH, "eos_token_id": EOS, "pad_token_id": PAD}
        want = policy.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        assert completion == want[0, len(prompt) :].tolist()
