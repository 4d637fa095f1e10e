"""One run of rlhf_lines' PPO, through its public trainer."""

from __future__ import annotations

import peft.tuners.lora  # noqa: F401  here, so that what it imports is not counted as memory of the training
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

import reward_models
from rlhf_lines.models import load_tokenizer
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer


def main() -> None:
    options = arguments()
    task = Task.read(options.task)
    imports_mib = resident_mib()

    updates = task.epochs * task.minibatches
    shared = shared_arguments(task, options.seed, options.output_dir)
    shared["per_device_train_batch_size"] //= task.minibatches
    if options.bf16:
        shared |= {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    args = PPOConfig(
        **shared,
        steps_per_generation=task.minibatches,
        num_iterations=task.epochs,
        max_steps=task.rollouts * updates,
        max_completion_length=task.max_new_tokens,
        epsilon=task.clip_range,
        value_clip_range=task.value_clip_range,
        max_grad_norm=0.0,  # TRL's PPO does not clip gradients
        logging_steps=updates,
    )
    tokenizer = load_tokenizer(task.sft_model)
    reward_model = reward_models.load(task.reward_model, batch_size=task.completions)
    clock = RolloutClock(updates)
    trainer = PPOTrainer(
        model=task.sft_model,
        reward_models=[reward_model],
        args=args,
        peft_config=lora_config(task),
        train_dataset=Dataset.from_dict({"prompt": task.prompts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    prompts, completions = map(list, zip(*task.checks, strict=True))
    write_checks(
        options.output_dir,
        logprobs=completion_logprobs(trainer.model, tokenizer, task.checks),
        scores=reward_model.score(prompts, completions),
    )
    if options.check:
        return
    trainer.train()
    trainer.model.save_pretrained(f"{options.output_dir}/adapter")
    history = [row for row in trainer.state.log_history if "reward" in row]
    write_result(
        options.output_dir,
        clock=clock,
        imports_mib=imports_mib,
        weights_mib=weights_mib(trainer.model, reward_model.model),
        tokens=sum(row["completions/mean_length"] for row in history) / len(history),
        scores=[row["reward"] for row in history],
        kl=[row["kl"] for row in history],
    )


if __name__ == "__main__":
    main()
