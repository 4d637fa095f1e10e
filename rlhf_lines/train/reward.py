"""Stage `reward`: a reward model from pairs of a better and a worse completion."""

from __future__ import annotations

import copy
import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import trl
from datasets import Dataset
from trl import ModelConfig, RewardConfig, get_quantization_config

import reward_models
from reward_models.classifier import Classifier
from reward_models.conversation import CHAT
from reward_models.encoder import longest_input
from reward_models.files import open_tokenizer
from reward_models.format import SPECIAL_TOKENS
from rlhf_lines import skeleton
from rlhf_lines.artifact import refuse_replacing, remove_working_files, versions, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import PreferenceDataConfig
from rlhf_lines.distributed import from_leader, leads
from rlhf_lines.errors import about
from rlhf_lines.example import policy_reading, tell
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.models import describe_adapters, init_kwargs, keep_unpacked, load_config, local_folder, lora_config
from rlhf_lines.train.adapted import check_4bit
from rlhf_lines.train.card import OwnCard, reward_card
from rlhf_lines.train.checkpoints import WholeCheckpoints, training_folder
from rlhf_lines.train.config import RewardTextConfig
from rlhf_lines.train.finite import FiniteTraining
from rlhf_lines.train.history import history
from rlhf_lines.train.hub import upload_kept as upload_kept
from rlhf_lines.train.inputs import fingerprints
from rlhf_lines.train.progress import show_progress, tell_chosen
from rlhf_lines.train.settings import check_model
from rlhf_lines.train.told import ToldSettings


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIDES = ("chosen", "rejected")

logger = logging.getLogger(__name__)


class RewardTrainer(ToldSettings, WholeCheckpoints, OwnCard, FiniteTraining, trl.RewardTrainer):
    """TRL's, with checkpoints that are visible when complete."""


def run(
    run_config: RunConfig,
    data_config: PreferenceDataConfig,
    text_config: RewardTextConfig,
    training: RewardConfig,
    model_config: ModelConfig,
    given: dict,
) -> Path:
    """Train a sequence classifier with one label and return its folder; the record has its accuracy on held-out pairs.

    The accuracy is that of the saved folder, read back as any later stage reads it, in the dtype of the training: a
    head that was lost on the way would show. Training leaves out a pair with a text longer than `max_length` or than
    the base reads; of a held-out pair the prompt is cut instead. The record counts both.

    Raises:
        FileNotFoundError: the base does not exist.
        FileExistsError: `output_dir` exists.
        ValueError: the task has no such preference, or every training pair is too long.
    """
    check_model(model_config, given, causal=False)
    base = local_folder(model_config.model_name_or_path, revision=model_config.model_revision, what="base model")
    refuse_replacing(training.output_dir, [base, *data_config.sources])
    trust = {"trust_remote_code": training.trust_remote_code}
    config = load_config(base, **trust)
    check_labels(config, training, model_config.model_name_or_path)
    tokenizer = _load_tokenizer(base, model_config.model_name_or_path, **trust)
    peft_config = lora_config(model_config, config.model_type)
    if peft_config is not None:  # whatever lora_task_type says: for this task PEFT trains and saves the head, too
        peft_config.task_type = "SEQ_CLS"
        model = skeleton.adapt(skeleton.classifier(config, **trust), copy.copy(peft_config))
        check_4bit(model, model_config, training)
    _check_template(text_config, training, tokenizer)
    datasets = _datasets(data_config, text_config, training, tokenizer)
    train_pairs, test_pairs = datasets["train"], datasets["test"]
    found = from_leader(lambda: fingerprints(model_config.model_name_or_path, base, data_config.dataset_name, datasets))
    final = Path(training.output_dir)
    with training_folder(training, run_config, given, found) as folder:
        training.model_init_kwargs = init_kwargs(model_config, training)
        training.max_length = longest_input(config, tokenizer, wanted=training.max_length)
        special_tokens = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}

        def rows(pairs):
            return Dataset.from_list([text_config.row(pair, special_tokens) for pair in pairs])

        with about(f"{model_config.model_name_or_path} cannot be trained", ValueError, ImportError):
            trainer = RewardTrainer(
                model=str(base),
                args=training,
                train_dataset=rows(train_pairs),
                eval_dataset=rows(datasets["validation"]) if "validation" in datasets else None,
                processing_class=tokenizer,
                peft_config=peft_config,
                quantization_config=get_quantization_config(model_config),
            )
        used_pairs, name = len(trainer.train_dataset), data_config.dataset_name
        _tell_long_pairs(used_pairs, len(train_pairs), training.max_length, name)
        if trainer.eval_dataset is not None:
            whole = len(datasets["validation"])
            _tell_long_pairs(len(trainer.eval_dataset), whole, training.max_length, f"{name}, split validation")
        first = trainer.train_dataset[0]
        tell([policy_reading(tokenizer, first[f"{side}_ids"], f"reward model, {side}") for side in SIDES])
        keep_unpacked(trainer.model)
        describe_adapters(trainer.model, model_config.model_name_or_path)
        tell_chosen(training, model_config, trainer.model)
        show_progress(trainer, f"reward {final.name}")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        rows_of_steps, dtype = history(trainer.state.log_history), _read_back_in(training, trainer.model)
        # Its memory is needed for the model that is read back; under autocast it holds itself, by a method of its own.
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        if leads():
            reward_models.write_settings(folder, text_config.format(max_length=training.max_length))
            saved = reward_models.load(str(folder), dtype=dtype, trust_remote_code=training.trust_remote_code)
            accuracy, name = _accuracy(saved, test_pairs), model_config.model_name_or_path
            measured = {"accuracy": accuracy, "pairs": len(test_pairs)}
            (folder / "README.md").write_text(reward_card(name, versions(), lora=peft_config is not None, **measured))
            write_record(
                folder,
                "reward",
                given,
                seed=training.seed,
                train_pairs=used_pairs,
                train_pairs_left_out=len(train_pairs) - used_pairs,
                accuracy=accuracy,
                held_out_pairs=len(test_pairs),
                held_out_pairs_cut=_cut_pairs(saved, test_pairs),
                history=rows_of_steps,
                inputs_sha256=found,
            )
            remove_working_files(folder)
    return final


def inputs(
    run_config: RunConfig,
    data_config: PreferenceDataConfig,
    text_config: RewardTextConfig,
    training: RewardConfig,
    model_config: ModelConfig,
) -> dict[str, Fingerprint]:
    """What a run with these settings would read, as its record holds it."""
    name = model_config.model_name_or_path
    base = local_folder(name, revision=model_config.model_revision, what="base model")
    tokenizer = _load_tokenizer(base, name, trust_remote_code=training.trust_remote_code)
    datasets = _datasets(data_config, text_config, training, tokenizer)
    return fingerprints(name, base, data_config.dataset_name, datasets)


def check_labels(config: PreTrainedConfig, training: RewardConfig, name: str) -> None:
    """Stop where the base is a classifier whose head has no place in a model of one score.

    Args:
        config: of the base.
        training: settings of the stage.
        name: of the base.

    Raises:
        ValueError: it has another number of labels.
    """
    is_classifier = any("ForSequenceClassification" in architecture for architecture in config.architectures or ())
    new_head = (training.model_init_kwargs or {}).get("ignore_mismatched_sizes")
    if is_classifier and config.num_labels != 1 and not new_head:
        raise ValueError(
            f"{name} is a classifier of {config.num_labels} labels, expected one of 1, which is the score, or a model "
            "without a head: take another base, or give this one a new head "
            "(model_init_kwargs: {ignore_mismatched_sizes: true})"
        )


def _load_tokenizer(base: Path, name: str, *, trust_remote_code: bool):
    """The tokenizer of the base, which is called `name`, with the token that the trainer ends every text with."""
    with about(f"tokenizer of {name} cannot be loaded"):
        tokenizer = open_tokenizer(base, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None:  # of an encoder
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no end token, which every text ends with: give it an eos_token "
            "(tokenizer.eos_token = ...) and save it"
        )
    return tokenizer


def _datasets(data_config: PreferenceDataConfig, text_config: RewardTextConfig, training: RewardConfig, tokenizer):
    splits = ("train", "test", *(["validation"] if training.eval_strategy != "no" else []))
    settings = {"tokenizer": tokenizer, "with_turns": text_config.template == CHAT}
    return {split: data_config.load("preferences", split, **settings) for split in splits}


def _check_template(text_config: RewardTextConfig, training: RewardConfig, tokenizer) -> None:
    """Refuse a chat template that is missing, or that would not be read."""
    if text_config.template != CHAT and training.chat_template_path is not None:
        raise ValueError(
            f"chat_template_path is {training.chat_template_path}, but the template is {text_config.template!r}, which "
            "does not read it: set template: chat, or leave it out"
        )
    if text_config.template == CHAT and training.chat_template_path is None and tokenizer.chat_template is None:
        raise ValueError(
            "template is chat, but the tokenizer of the base has no chat template: give chat_template_path, or a text "
            "with {prompt} and {completion}"
        )


def _read_back_in(training: RewardConfig, model) -> torch.dtype:
    """The dtype of the trained weights, or of a base in 8 or 4 bits that in which its products were computed."""
    if getattr(model, "is_quantized", False) and (training.bf16 or training.fp16):
        return torch.bfloat16 if training.bf16 else torch.float16
    return model.dtype


def _tell_long_pairs(kept: int, total: int, longest: int | None, source: str) -> None:
    """Log how many pairs the trainer left out because a text of theirs is too long; stop where none is kept."""
    if not kept:
        raise ValueError(
            f"each of the {total} pairs of {source} has a text of more than {longest} tokens: raise max_length, as far "
            "as the base reads, or shorten the texts"
        )
    if kept < total:
        logger.warning(
            "%s: %d of %d pairs have a text of more than %d tokens: left out", source, total - kept, total, longest
        )


def _accuracy(reward_model, pairs) -> float:
    """The share of pairs whose chosen completion scores higher; a tie counts as half."""
    prompts = pairs["conversation" if reward_model.reads_turns else "prompt"]
    chosen, rejected = (reward_model.score(prompts, pairs[side]) for side in SIDES)
    return sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True)) / len(chosen)


def _cut_pairs(reward_model: Classifier, pairs) -> int:
    """The number of pairs of which a text is longer than the reward model reads."""
    cut = 0
    for pair in pairs:
        before = reward_model.truncated
        for side in SIDES:
            reward_model.encode(pair["conversation" if reward_model.reads_turns else "prompt"], pair[side])
        cut += reward_model.truncated > before
    return cut
