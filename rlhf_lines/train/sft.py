"""Stage `sft`: supervised fine-tuning, with LoRA merged into a dense checkpoint, or in full."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import trl
from trl import ModelConfig, get_quantization_config

from rlhf_lines import skeleton
from rlhf_lines.artifact import refuse_replacing, remove_working_files, versions, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import TrainingDataConfig
from rlhf_lines.distributed import from_leader, leads
from rlhf_lines.errors import about
from rlhf_lines.example import policy_reading, tell
from rlhf_lines.limits import check_writes, position_table
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.models import describe_adapters, init_kwargs, keep_unpacked, load_config, load_tokenizer, local_folder
from rlhf_lines.train.adapted import check_adapter, merge_into
from rlhf_lines.train.card import OwnCard, adapter_card, sft_card
from rlhf_lines.train.checkpoints import WholeCheckpoints, training_folder
from rlhf_lines.train.finite import FiniteTraining
from rlhf_lines.train.history import history
from rlhf_lines.train.hub import upload_kept as upload_kept
from rlhf_lines.train.inputs import fingerprints
from rlhf_lines.train.kept_rows import tell_long_rows
from rlhf_lines.train.layerwise import LayerLearningRates, check_depth, freeze_first_layers
from rlhf_lines.train.progress import show_progress, tell_chosen
from rlhf_lines.train.settings import SFTSettings, check_model
from rlhf_lines.train.told import ToldSettings


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ADAPTER = "adapter"


class SFTTrainer(LayerLearningRates, ToldSettings, WholeCheckpoints, OwnCard, FiniteTraining, trl.SFTTrainer):
    """TRL's, with checkpoints that are visible when complete."""


def run(
    run_config: RunConfig,
    data_config: TrainingDataConfig,
    training: SFTSettings,
    model_config: ModelConfig,
    given: dict,
) -> Path:
    """Train theta_SFT, from which all policies start, and return its folder: a dense checkpoint.

    Rows with `prompt` and `completion` are trained on the completion only, in the tokenizer's chat template where
    it has one. With `use_peft` the adapter is kept in `adapter/` and merged into the unquantised base in float32
    (one cast at the end, to `dtype`), also when training held the base in 8 or 4 bits. A data set of `text` rows is
    trained on as plain text.

    Raises:
        FileNotFoundError: the base does not exist.
        FileExistsError: `output_dir` exists.
        ValueError: `chat_template_path` is given: the chat template is the tokenizer's. Or the adapter could not be
            merged.
    """
    check_model(model_config, given, causal=True)
    base = local_folder(model_config.model_name_or_path, revision=model_config.model_revision, what="base model")
    refuse_replacing(training.output_dir, [base, *data_config.sources])
    if training.chat_template_path is not None:
        raise ValueError(
            f"chat_template_path is {training.chat_template_path}, but the rows are written before it is read: save "
            "the chat template with the tokenizer of the base"
        )
    trust = {"trust_remote_code": training.trust_remote_code}
    config = load_config(base, **trust)
    peft_config = None
    if model_config.use_peft:
        peft_config = check_adapter(config, model_config, base, stage="sft", training=training, **trust)
    elif getattr(config, "quantization_config", None):
        raise ValueError(
            f"{model_config.model_name_or_path} is quantised (quantization_config in config.json), and such weights "
            "are not trained: give the unquantised model, with use_peft and load_in_4bit where memory is short"
        )
    elif training.layer_learning_rates or training.frozen_layers:
        whole = skeleton.causal_lm(config, dtype=model_config.dtype, trust_remote_code=training.trust_remote_code)
        check_depth(whole, policy=training.layer_learning_rates, frozen=training.frozen_layers)
    if (training.metric_for_best_model or "").endswith("aux_loss") and not _balances_experts(config, training):
        raise ValueError(
            f"metric_for_best_model is {training.metric_for_best_model}, which only a mixture of experts has, if "
            "router_aux_loss_coef is not 0: take loss"
        )
    tokenizer = load_tokenizer(base, **trust)
    check_writes(config, tokenizer)
    datasets = _datasets(data_config, training, tokenizer)
    found = from_leader(lambda: fingerprints(model_config.model_name_or_path, base, data_config.dataset_name, datasets))
    final = Path(training.output_dir)
    trained = ADAPTER if model_config.use_peft else "."
    with training_folder(training, run_config, given, found, trained=trained) as folder:
        training.model_init_kwargs = init_kwargs(model_config, training)
        with about(f"{model_config.model_name_or_path} cannot be trained", ValueError, ImportError):
            trainer = SFTTrainer(
                model=str(base),
                args=training,
                train_dataset=datasets["train"],
                eval_dataset=datasets.get("validation"),
                processing_class=tokenizer,
                peft_config=peft_config,
                quantization_config=get_quantization_config(model_config),
            )
        if peft_config is None:
            freeze_first_layers(trainer.model, training.frozen_layers)
            if training.frozen_layers and training.gradient_checkpointing:  # which may look at its input alone
                trainer.model.enable_input_require_grads()
        _check_positions(trainer)
        keep_unpacked(trainer.model)
        describe_adapters(trainer.model, model_config.model_name_or_path)
        tell_chosen(training, model_config, trainer.model)
        counts = {}
        if not training.packing:
            limits = {"max_length": training.max_length, "end": tokenizer.eos_token_id}
            name = data_config.dataset_name
            counts = tell_long_rows(trainer.train_dataset, len(datasets["train"]), source=name, **limits)
            if trainer.eval_dataset is not None:
                whole = len(datasets["validation"])
                tell_long_rows(trainer.eval_dataset, whole, source=f"{name}, split validation", **limits)
        first = trainer.train_dataset[0]
        learned = [label for label in first["labels"] if label != -100]
        readings = [("policy", first["input_ids"])]
        if learned != first["input_ids"]:
            readings.append(("it learns", learned))
        tell([policy_reading(tokenizer, ids, reader) for reader, ids in readings])
        show_progress(trainer, f"sft {final.name}")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        end = trainer.save_end() if model_config.use_peft else None
        if leads():
            lost = _merge(base, folder, model_config.dtype) if model_config.use_peft else None
            tokenizer.save_pretrained(folder)
            losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
            name = model_config.model_name_or_path
            (folder / "README.md").write_text(sft_card(name, versions(), lora=model_config.use_peft))
            if model_config.use_peft:
                (folder / ADAPTER / "README.md").write_text(adapter_card(name, versions()))
            facts = {"seed": training.seed, "base_model": name, "loss": losses, "lost_residual": lost, **counts}
            write_record(folder, "sft", given, **facts, history=history(trainer.state.log_history), inputs_sha256=found)
            remove_working_files(folder)
            if end is not None and training.save_strategy == "no":  # nobody asked for it
                shutil.rmtree(end)
    return final


def inputs(
    run_config: RunConfig, data_config: TrainingDataConfig, training: SFTSettings, model_config: ModelConfig
) -> dict[str, Fingerprint]:
    """What a run with these settings would read, as its record holds it."""
    name = model_config.model_name_or_path
    base = local_folder(name, revision=model_config.model_revision, what="base model")
    tokenizer = load_tokenizer(base, trust_remote_code=training.trust_remote_code)
    return fingerprints(name, base, data_config.dataset_name, _datasets(data_config, training, tokenizer))


def _balances_experts(config: PreTrainedConfig, training: SFTSettings) -> bool:
    """Whether training has a loss that balances experts, as `aux_loss_enabled` of TRL's trainer says later."""
    text, coefficient = config.get_text_config(), training.router_aux_loss_coef
    if coefficient is None:
        coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    return hasattr(text, "output_router_logits") and coefficient != 0


def _datasets(data_config: TrainingDataConfig, training: SFTSettings, tokenizer) -> dict:
    kind = "text" if training.packing else "demonstrations"
    splits = ("train", *(["validation"] if training.eval_strategy != "no" else []))
    return {split: data_config.load(kind, split, tokenizer) for split in splits}


def _check_positions(trainer: SFTTrainer) -> None:
    """Stop where a row is longer than the model's table of positions, which training would find out at that row."""
    table, limit = position_table(trainer.model), trainer.args.max_length
    for rows in filter(None, (trainer.train_dataset, trainer.eval_dataset)):
        longest = max((len(ids) for ids in rows["input_ids"]), default=0)
        longest = min(longest, limit or longest)
        if table is not None and longest > table:
            raise ValueError(
                f"a row has {longest} tokens, but {trainer.model.config.name_or_path} has {table} positions: set "
                f"max_length to {table}, or leave out what is longer"
            )


def _merge(base: Path, folder: Path, dtype: str) -> dict:
    """Write base + adapter as a dense checkpoint into `folder`; return what the cast to the dtype lost."""
    for left in folder.glob("*.safetensors"):  # by a run that was stopped while it merged
        left.unlink()
    with Checkpoint(base) as theta:
        merge = merge_into(theta, load_adapter(folder / ADAPTER))
        return dataclasses.asdict(merge.write(folder, dtype=None if dtype == "auto" else dtype))
