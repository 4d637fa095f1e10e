"""One run of TRL 1.12's PPO, as its own examples set it up; runs in the environment that has that release."""

from __future__ import annotations

import peft.tuners.lora  # noqa: F401  here, so that what it imports is not counted as memory of the training
import torch
from common import (
    RolloutClock,
    Task,
    arguments,
    completion_logprobs,
    lora_config,
    resident_mib,
    shared_arguments,
    weights_mib,
    write_checks,
    write_result,
)
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.utils import get_reward


class EndedTexts(nn.Module):
    """A reward model that reads every text as ended by the end token, as it was trained to, also one that was cut.

    TRL shows its reward model a cut completion as it is, and reads the score at its last token; our reward models are
    shown one with the end token behind it. Here one more position is read for all texts and, for those that fill the
    row without having ended, stands in place of the last.
    """

    base_model_prefix = "trunk"

    def __init__(self, classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.score = classifier.score
        self.eos_token_id = classifier.config.eos_token_id

    def trunk(self, input_ids, attention_mask, position_ids, **kwargs):
        end = torch.full_like(input_ids[:, :1], self.eos_token_id)
        output = self.classifier.base_model(
            input_ids=torch.cat([input_ids, end], dim=1),
            attention_mask=torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1),
            position_ids=torch.cat([position_ids, position_ids[:, -1:] + 1], dim=1),
            **kwargs,
        )
        states = output.hidden_states[-1]
        was_cut = attention_mask[:, -1:].bool() & (input_ids[:, -1:] != self.eos_token_id)
        last = torch.where(was_cut[..., None], states[:, -1:], states[:, -2:-1])
        output.hidden_states = (torch.cat([states[:, :-2], last], dim=1),)
        return output


def main() -> None:
    options = arguments()
    task = Task.read(options.task)
    imports_mib = resident_mib()

    args = PPOConfig(
        **shared_arguments(task, options.seed, options.output_dir),
        num_mini_batches=task.minibatches,
        num_ppo_epochs=task.epochs,
        total_episodes=task.rollouts * task.completions,
        response_length=task.max_new_tokens,
        cliprange=task.clip_range,
        cliprange_value=task.value_clip_range,
        stop_token="eos",
        num_sample_generations=0,
        logging_steps=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(task.sft_model, padding_side="left")
    # As in TRL's examples, the critic is a second model, and starts from the reward model.
    reward_model = AutoModelForSequenceClassification.from_pretrained(task.reward_model)
    value_model = AutoModelForSequenceClassification.from_pretrained(task.reward_model)
    reward_model = EndedTexts(reward_model.eval().requires_grad_(False))
    torch.manual_seed(options.seed)  # of the adapter; our trainer takes it from its arguments
    clock = RolloutClock(1)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(task.sft_model),
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer(prompt).input_ids for prompt in task.prompts]}),
        peft_config=lora_config(task),
        callbacks=[clock],
    )
    write_checks(
        options.output_dir,
        logprobs=completion_logprobs(trainer.policy_model, tokenizer, task.checks),
        scores=scores(reward_model, tokenizer, task.checks, task.max_new_tokens),
    )
    if options.check:
        return
    trainer.train()
    trainer.policy_model.save_pretrained(f"{options.output_dir}/adapter")
    history = [row for row in trainer.state.log_history if "objective/scores" in row]
    write_result(
        options.output_dir,
        clock=clock,
        imports_mib=imports_mib,
        weights_mib=weights_mib(trainer.policy_model, reward_model, value_model),
        scores=[row["objective/scores"] for row in history],
        kl=[row["objective/kl"] for row in history],
    )


@torch.no_grad()
def scores(reward_model, tokenizer, pairs: list[list[str]], length: int) -> list[float]:
    """The scores as the trainer computes them: prompts padded on the left, responses on the right to a length.

    A completion of fewer tokens than `length` has ended, and the others were cut there.
    """
    queries = tokenizer([prompt for prompt, _ in pairs], padding=True, return_tensors="pt").input_ids
    responses = torch.full((len(pairs), length), tokenizer.pad_token_id)
    for row, (_, completion) in zip(responses, pairs, strict=True):
        ids = torch.tensor([*tokenizer(completion).input_ids, tokenizer.eos_token_id][:length])
        row[: len(ids)] = ids
    texts = torch.cat([queries, responses], dim=1)
    return get_reward(reward_model, texts, tokenizer.pad_token_id, queries.shape[1])[1].tolist()


if __name__ == "__main__":
    main()
