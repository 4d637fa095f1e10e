"""Train a LoRA policy by PPO against two rewards, with the trainer of this project, which is one of TRL.

    python examples/train_ppo_lora.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset_name prompts.jsonl --max_steps 200 --output_dir ppo-policy

    accelerate launch examples/train_ppo_lora.py ...       # on several GPUs

`rlhf-lines ppo` does this from a config, with checkpoints, records and checks. This is the trainer as a part of your
own program.
"""

from __future__ import annotations

import argparse

from peft import LoraConfig

import reward_models
from rlhf_lines import data
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer


def few_digits(prompts: list[str], completions: list[str]) -> list[float]:
    """Minus the share of characters that are digits."""
    return [-sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


def main() -> None:
    """Load, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="the SFT model: a folder or a name on the Hub")
    parser.add_argument("--dataset_name", required=True, help="a file of prompts")
    parser.add_argument("--max_steps", type=int, default=200, help="updates")
    parser.add_argument("--max_completion_length", type=int, default=48)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()

    # 1. Prompts, written in the model's chat template; beside each stands what reward models are shown.
    sft = local_folder(args.model_name_or_path)
    tokenizer = load_tokenizer(sft)
    prompts = data.load(args.dataset_name, "prompts", "train", tokenizer=tokenizer)

    # 2. Rewards score text, so that a reward model may have another tokenizer than the policy.
    rewards = [
        reward_models.load("rule:length", options={"target": 20, "scale": 10}),
        reward_models.FunctionReward(few_digits),
    ]

    # 3. The trainer holds one frozen base: it is policy, reference (adapter off) and trunk of the value function.
    trainer = PPOTrainer(
        model=str(sft),
        reward_models=rewards,
        args=PPOConfig(
            output_dir=args.output_dir,
            reward_weights=[1.0, 5.0],
            per_device_train_batch_size=8,
            num_iterations=2,
            max_steps=args.max_steps,
            max_completion_length=args.max_completion_length,
            learning_rate=1e-5,
            kl_coef=0.05,
            save_strategy="no",
            report_to="none",
        ),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.train()

    # 4. An adapter of PEFT: merge it, sweep it, load it with transformers.
    trainer.save_model(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"the policy is in {args.output_dir}")


if __name__ == "__main__":
    main()
