"""Stage ``reward``: a reward model from pairs of a better and a worse completion."""

from __future__ import annotations

from pathlib import Path

import trl
from trl import ModelConfig, RewardConfig, get_peft_config, get_quantization_config

import reward_models
from rlhf_lines import data
from rlhf_lines.artifact import remove_pickles, write_record
from rlhf_lines.config import PreferenceDataConfig, RunConfig
from rlhf_lines.models import init_kwargs, local_folder, name_base
from rlhf_lines.train.checkpoints import WholeCheckpoints
from rlhf_lines.train.folder import training_folder
from rlhf_lines.train.progress import show_progress


CONFIGS = (RunConfig, PreferenceDataConfig, RewardConfig, ModelConfig)


class RewardTrainer(WholeCheckpoints, trl.RewardTrainer):
    """TRL's, with checkpoints that are visible when complete."""


def run(
    run_config: RunConfig,
    data_config: PreferenceDataConfig,
    training: RewardConfig,
    model_config: ModelConfig,
    given: dict,
) -> Path:
    """Train and return the folder of a sequence classifier with one label, and its accuracy on held-out pairs.

    The accuracy is that of the saved folder, read back as any later stage reads it: a head that was lost on the way
    would show.

    Raises:
        FileNotFoundError: the base does not exist.
        FileExistsError: ``output_dir`` exists.
        ValueError: the task has no such preference.
    """
    from transformers import AutoTokenizer

    base = local_folder(model_config.model_name_or_path, revision=model_config.model_revision, what="base model")
    train_pairs, test_pairs = _pairs(data_config, "train"), _pairs(data_config, "test")
    final = Path(training.output_dir)
    with training_folder(training, run_config, given) as folder:
        training.output_dir = str(folder)
        training.model_init_kwargs = {**init_kwargs(model_config), **(training.model_init_kwargs or {})}
        tokenizer = AutoTokenizer.from_pretrained(base)
        if tokenizer.eos_token is None:  # encoders: the trainer ends every text with this token
            tokenizer.eos_token = tokenizer.sep_token
        peft_config = get_peft_config(model_config)
        if peft_config is not None:  # whatever lora_task_type says: for this task PEFT trains and saves the head, too
            peft_config.task_type = "SEQ_CLS"
        trainer = RewardTrainer(
            model=str(base),
            args=training,
            train_dataset=train_pairs,
            eval_dataset=_pairs(data_config, "validation") if training.eval_strategy != "no" else None,
            processing_class=tokenizer,
            peft_config=peft_config,
            quantization_config=get_quantization_config(model_config),
        )
        name_base(trainer.model, model_config.model_name_or_path)
        show_progress(trainer, f"reward {final.name}")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        is_main_process = trainer.accelerator.is_main_process
        del trainer  # before its model is read back a second time
        if is_main_process:
            remove_pickles(folder)
            reward_models.write_settings(folder, reward_models.Format(append_eos=True, max_length=training.max_length))
            accuracy = _accuracy(reward_models.load(str(folder)), test_pairs)
            write_record(folder, "reward", given, seed=training.seed, accuracy=accuracy, held_out_pairs=len(test_pairs))
    return final


def _pairs(config: PreferenceDataConfig, split: str):
    return data.load(
        config.dataset_name, "preferences", split, preference=config.preference, max_samples=config.max_samples
    )


def _accuracy(reward_model, pairs) -> float:
    """Return the share of pairs whose chosen completion scores higher; a tie counts as half."""
    chosen = reward_model.score(pairs["prompt"], pairs["chosen"])
    rejected = reward_model.score(pairs["prompt"], pairs["rejected"])
    return sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True)) / len(chosen)
