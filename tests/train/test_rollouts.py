"""Rollouts of prompts that come several times, and of padded rows: what is sampled depends on neither."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from reward_models import FunctionReward
from rlhf_lines.sampling import REPEATED, prompt_key, sample_numbers
from rlhf_lines.task_rewards import RewardEntry
from rlhf_lines.train.normalization import SAMPLE, normalizations
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests.tiny import QUIET


PROMPTS = ["a", "b c d", "a", "a", "e f", "b c d", "a", "g"]
REPEATS = [0, 0, 1, 2, 0, 1, 3, 0]  # how often the prompt of a row has come before it
EOS = 1


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


@pytest.fixture
def make(tmp_path, llama, tokenizer):
    """Return a maker of trainers whose completions are long, so that equal ones are no chance."""

    def trainer(prompts=PROMPTS, **settings):
        defaults = {"per_device_train_batch_size": 8, "max_completion_length": 12, "max_steps": 1}
        return PPOTrainer(
            llama(),
            [FunctionReward(shortness)],
            PPOConfig(output_dir=str(tmp_path / "out"), **{**QUIET, **defaults, **settings}),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
        )

    return trainer


def placed(trainer, monkeypatch):
    """Let a trainer note prompts, and the numbers by which it places the noise of their rows."""
    found = []

    def sample(prompt_ids, samples):
        found.append([(tuple(ids), number) for ids, number in zip(prompt_ids, samples, strict=True)])
        return [[2, EOS] for _ in prompt_ids]

    monkeypatch.setattr(trainer, "sample", sample)
    return found


def repeated(tokenizer, first):
    """The prompts as `placed` notes them."""
    rows = zip(PROMPTS, REPEATS, strict=True)
    return [(tuple(tokenizer(prompt)["input_ids"]), first + REPEATED * repeats) for prompt, repeats in rows]


def test_the_samples_of_a_prompt_are_numbered():
    """Rows of two completions: the third and the fourth of prompt 5 are those of its second row."""
    seen = Counter()
    assert sample_numbers([5, 5, 6, 6, 5, 5], seen, count=2, first=8) == [8, 9, 8, 9, 8 + REPEATED, 9 + REPEATED]
    assert sample_numbers([6, 5], seen, count=2, first=8) == [8 + REPEATED, 8 + 2 * REPEATED], "it goes on counting"


def test_equal_prompts_of_a_rollout_have_noise_of_their_own(make):
    trainer = make()
    trainer.model.train()
    rollout = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
    of_a = [
        tuple(ids.tolist()) for ids, prompt in zip(rollout["completion_ids"], PROMPTS, strict=True) if prompt == "a"
    ]
    assert len(set(of_a)) == 4


def test_a_rollout_without_repeats_has_the_noise_that_it_had(make, monkeypatch):
    """The number of the rollout times the completions of a prompt, and which of them a row is."""
    trainer = make(num_generations=2)
    trainer.model.train()
    trainer._rollouts = 3
    found = placed(trainer, monkeypatch)
    trainer._generate_single_turn([[5], [5], [6], [6]], None, {}, 2)
    trainer.model.eval()
    trainer._generate_single_turn([[5], [5], [6], [6]], None, {}, 2)
    assert [[number for _, number in rows] for rows in found] == [[6, 7, 6, 7], [-2, -1, -2, -1]]


def test_processes_number_the_rows_of_all_of_them(make, monkeypatch, tokenizer):
    """What two processes draw of one rollout, each of its half, is what one draws of all."""
    trainer = make()
    trainer.model.train()
    found = placed(trainer, monkeypatch)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    keys = [prompt_key(row) for row in ids]
    trainer._generate_single_turn(ids, None, {}, 1)
    monkeypatch.setattr("rlhf_lines.train.ppo_trainer.gather_object", lambda own: keys)
    for rank in range(2):
        monkeypatch.setattr(type(trainer.accelerator), "process_index", rank)
        trainer._generate_single_turn(ids[4 * rank : 4 * rank + 4], None, {}, 1)
    assert found[0] == found[1] + found[2] == repeated(tokenizer, 0)


@pytest.mark.parametrize("batch", [2, 8])
def test_equal_prompts_of_an_evaluation_do_not_depend_on_its_batches(make, monkeypatch, tokenizer, batch):
    trainer = make(per_device_eval_batch_size=batch)
    for _ in range(2):  # each evaluation counts for itself
        found = placed(trainer, monkeypatch)
        trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS}))
        assert len(found) == 8 // batch
        assert sorted(chain(*found)) == sorted(repeated(tokenizer, -1)), "in an order that TRL draws by the seed"


def test_equal_prompts_are_measured_on_as_many_samples(make, monkeypatch, tokenizer, tmp_path):
    trainer = make(normalization_samples=8)
    found = placed(trainer, monkeypatch)
    scores = iter([0.0, 1.0] * 4)
    model = FunctionReward(lambda prompts, completions: [next(scores) for _ in prompts], name="r")
    normalizations(trainer, [RewardEntry("r", normalize=True)], [model], tmp_path)
    assert list(chain(*found)) == repeated(tokenizer, SAMPLE)


@pytest.mark.parametrize("multiple", [5, 16, 32])
def test_padding_to_a_multiple_changes_no_number(make, multiple):
    """Of completions of at most 12 tokens: rows of 15, 16 and 32, or as many as the longest has."""
    plain, padded = make(num_iterations=2), make(num_iterations=2, pad_to_multiple_of=multiple)
    for trainer in (plain, padded):
        trainer.train()
    first, second = (t._buffered_inputs[0] for t in (plain, padded))
    length = first["completion_ids"].shape[1]
    assert second["completion_ids"].shape[1] == -(-length // multiple) * multiple
    for name in ("completion_ids", "old_per_token_logps", "old_values", "advantages", "returns"):
        torch.testing.assert_close(second[name][:, :length], first[name], rtol=0, atol=1e-5)
    assert not second["completion_mask"][:, length:].any()
    for (name, a), (_, b) in zip(plain.model.named_parameters(), padded.model.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)
