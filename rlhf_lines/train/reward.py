"""Stage `reward`: a reward model from pairs of a better and a worse completion."""

from __future__ import annotations

import logging
from pathlib import Path

import trl
from trl import ModelConfig, RewardConfig, get_quantization_config

import reward_models
from reward_models.classifier import Classifier, longest_input
from rlhf_lines.artifact import remove_working_files, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import PreferenceDataConfig
from rlhf_lines.distributed import leads
from rlhf_lines.models import init_kwargs, local_folder, lora_config, name_base, named_targets
from rlhf_lines.train.checkpoints import WholeCheckpoints, training_folder
from rlhf_lines.train.progress import show_progress


logger = logging.getLogger(__name__)


class RewardTrainer(WholeCheckpoints, trl.RewardTrainer):
    """TRL's, with checkpoints that are visible when complete."""


def run(
    run_config: RunConfig,
    data_config: PreferenceDataConfig,
    training: RewardConfig,
    model_config: ModelConfig,
    given: dict,
) -> Path:
    """Train a sequence classifier with one label and return its folder; the record has its accuracy on held-out pairs.

    The accuracy is that of the saved folder, read back as any later stage reads it: a head that was lost on the way
    would show. Training leaves out a pair with a text longer than `max_length` or than the base reads; of a held-out
    pair the prompt is cut instead. The record counts both.

    Raises:
        FileNotFoundError: the base does not exist.
        FileExistsError: `output_dir` exists.
        ValueError: the task has no such preference, or every training pair is too long.
    """
    from transformers import AutoConfig, AutoTokenizer

    base = local_folder(model_config.model_name_or_path, revision=model_config.model_revision, what="base model")
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=training.trust_remote_code)
    if tokenizer.eos_token is None:  # encoders: the trainer ends every text with this token
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {model_config.model_name_or_path} has no end token, which every text ends with: give it "
            "an eos_token (tokenizer.eos_token = ...) and save it"
        )
    train_pairs, test_pairs = (data_config.load("preferences", split, tokenizer) for split in ("train", "test"))
    validate = training.eval_strategy != "no"
    final = Path(training.output_dir)
    with training_folder(training, run_config, given) as folder:
        training.model_init_kwargs = init_kwargs(model_config, training)
        config = AutoConfig.from_pretrained(base, trust_remote_code=training.trust_remote_code)
        training.max_length = longest_input(config, tokenizer, wanted=training.max_length)
        peft_config = lora_config(model_config)
        if peft_config is not None:  # whatever lora_task_type says: for this task PEFT trains and saves the head, too
            peft_config.task_type = "SEQ_CLS"
        with named_targets(model_config):
            trainer = RewardTrainer(
                model=str(base),
                args=training,
                train_dataset=train_pairs,
                eval_dataset=data_config.load("preferences", "validation", tokenizer) if validate else None,
                processing_class=tokenizer,
                peft_config=peft_config,
                quantization_config=get_quantization_config(model_config),
            )
        used_pairs = len(trainer.train_dataset)
        if not used_pairs:
            raise ValueError(
                f"each of the {len(train_pairs)} training pairs of {data_config.dataset_name} has a text of more than "
                f"{training.max_length} tokens: raise max_length, as far as the base reads, or shorten the texts"
            )
        if used_pairs < len(train_pairs):
            logger.warning(
                "%s: %d of %d pairs have a text of more than %d tokens: left out",
                data_config.dataset_name, len(train_pairs) - used_pairs, len(train_pairs), training.max_length,
            )  # fmt: skip
        name_base(trainer.model, model_config.model_name_or_path)
        show_progress(trainer, f"reward {final.name}")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        del trainer  # before its model is read back a second time
        if leads():
            reward_models.write_settings(folder, reward_models.Format(append_eos=True, max_length=training.max_length))
            saved = reward_models.load(str(folder), trust_remote_code=training.trust_remote_code)
            write_record(
                folder,
                "reward",
                given,
                seed=training.seed,
                train_pairs=used_pairs,
                train_pairs_left_out=len(train_pairs) - used_pairs,
                accuracy=_accuracy(saved, test_pairs),
                held_out_pairs=len(test_pairs),
                held_out_pairs_cut=_cut_pairs(saved, test_pairs),
            )
            remove_working_files(folder)
    return final


def _accuracy(reward_model, pairs) -> float:
    """The share of pairs whose chosen completion scores higher; a tie counts as half."""
    chosen = reward_model.score(pairs["prompt"], pairs["chosen"])
    rejected = reward_model.score(pairs["prompt"], pairs["rejected"])
    return sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True)) / len(chosen)


def _cut_pairs(reward_model: Classifier, pairs) -> int:
    """The number of pairs of which a text is longer than the reward model reads."""
    cut = 0
    for pair in pairs:
        before = reward_model.truncated
        for side in ("chosen", "rejected"):
            reward_model.encode(pair["prompt"], pair[side])
        cut += reward_model.truncated > before
    return cut
