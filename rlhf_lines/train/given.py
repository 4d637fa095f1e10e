"""What `PPOTrainer` is given in Python: refused in one sentence, before the work, where it cannot be trained on.

The stage `ppo` checks its config, where less can be said. What the rewards are is read in `rewards`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlhf_lines.train.adapted import check_lora


# Arguments of GRPOTrainer that PPO does not take.
_NOT_TAKEN = {
    **dict.fromkeys(
        ("rollout_func", "tools", "environment_factory"),
        "the tokens of a completion are those that the policy sampled, all of them: values and advantages know no "
        "others",
    ),
    "reward_processing_classes": "reward models score text, and have tokenizers of their own",
}


def check_policy(model: object, peft_config: object) -> None:
    """Stop unless a policy can be made that is a base, whose weights stay what they are, and an adapter.

    Args:
        model: what the trainer is given as the SFT model.
        peft_config: of its adapter.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "the model has an adapter already, expected the SFT model alone, which is PPO's reference: give its base "
            "and peft_config, or merge an adapter that is part of the SFT model into it first (merge_and_unload)"
        )
    if peft_config is None:
        raise ValueError(
            "peft_config is None, expected a LoraConfig: PPO trains LoRA policies, and its reference is the base "
            "without the adapter"
        )
    check_lora(peft_config)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Stop where an argument of GRPOTrainer is given that PPO does not take.

    Raises:
        ValueError: one is.
    """
    for name, reason in _NOT_TAKEN.items():
        if arguments.get(name):
            raise ValueError(f"{name} is given, which PPO does not take: {reason}; leave it out")


def first_rows(arguments: Mapping[str, Any], *, evaluates: bool) -> dict[str, Mapping[str, Any]]:
    """The first row of every data set that is read and can be asked for it, by what the data set is called.

    Args:
        arguments: of the trainer.
        evaluates: whether `eval_dataset` is read in the run.
    """
    given = {"train_dataset": arguments.get("train_dataset")}
    if evaluates:
        sets = arguments.get("eval_dataset")
        named = sets.items() if isinstance(sets, dict) else []
        given |= {f"eval_dataset {name!r}": dataset for name, dataset in named} or {"eval_dataset": sets}
    return {name: dataset[0] for name, dataset in given.items() if hasattr(dataset, "__len__") and len(dataset)}


def names_of_sets(arguments: Mapping[str, Any]) -> list[str]:
    """The names of the data sets of an evaluation, where there are several."""
    given = arguments.get("eval_dataset")
    return list(given) if isinstance(given, dict) else []


def check_template(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]]) -> None:
    """Stop where prompts are conversations, and the tokenizer has no chat template to write them in.

    Raises:
        ValueError: so it is.
    """
    if tokenizer.chat_template is None and any(not isinstance(row["prompt"], str) for row in rows):
        raise ValueError(
            f"the data has conversations as prompts, but the tokenizer of {tokenizer.name_or_path} has no chat "
            "template: give texts, or set tokenizer.chat_template"
        )
