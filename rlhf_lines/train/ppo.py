"""Stage `ppo`: one LoRA policy from the SFT model, against one reward model or a weighted sum of several."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState
from trl import get_quantization_config

from rlhf_lines.artifact import refuse_replacing, remove_working_files, versions, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import TrainingDataConfig
from rlhf_lines.distributed import from_leader, leads
from rlhf_lines.errors import about
from rlhf_lines.example import try_rewards
from rlhf_lines.limits import check_prompts, check_writes, token_ids
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.models import describe_adapters, init_kwargs, load_config, load_tokenizer, local_folder
from rlhf_lines.scoring import Asked
from rlhf_lines.task_rewards import load_reward_models, reward_folders, reward_weights
from rlhf_lines.train.adapted import check_adapter
from rlhf_lines.train.card import policy_card
from rlhf_lines.train.checkpoints import training_folder
from rlhf_lines.train.config import RewardsConfig
from rlhf_lines.train.history import history
from rlhf_lines.train.hub import upload_kept as upload_kept
from rlhf_lines.train.inputs import fingerprints
from rlhf_lines.train.normalization import normalizations
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from rlhf_lines.train.progress import show_progress, tell_chosen
from rlhf_lines.train.settings import PolicyModelConfig, check_model


def run(
    run_config: RunConfig,
    data_config: TrainingDataConfig,
    rewards_config: RewardsConfig,
    training: PPOConfig,
    model_config: PolicyModelConfig,
    given: dict,
) -> Path:
    """Train the policy and return its folder: a PEFT adapter, the value head, the tokenizer, and how it was made.

    Raises:
        FileNotFoundError: the SFT model or a reward model does not exist.
        FileExistsError: `output_dir` exists.
        ValueError: the number of reward weights does not match, `use_peft` is false, or the policy could not be used.
    """
    training.check_policy(model_config.use_peft)
    check_model(model_config, given, causal=True)
    sft = local_folder(model_config.model_name_or_path, revision=model_config.model_revision, what="SFT model")
    entries = rewards_config.rewards
    refuse_replacing(training.output_dir, [sft, *data_config.sources, *reward_folders(entries)])
    training.reward_weights = reward_weights(entries, training.reward_weights)
    reward_models = load_reward_models(entries, trust_remote_code=training.trust_remote_code)
    training.check_metric([model.name for model in reward_models])
    trust = {"trust_remote_code": training.trust_remote_code}
    config = load_config(sft, **trust)
    peft_config = check_adapter(config, model_config, sft, stage="ppo", training=training, **trust)
    tokenizer = load_tokenizer(sft, **trust)
    final, datasets = Path(training.output_dir), _datasets(data_config, training, tokenizer)
    training.fit(len(datasets["train"]))
    check_writes(config, tokenizer)
    check_prompts(
        config,
        token_ids(tokenizer, (prompt for rows in datasets.values() for prompt in rows["prompt"])),
        dataset=data_config.dataset_name,
        max_completion_length=training.max_completion_length,
    )
    sft_sha256 = checkpoint_sha256(sft)
    first = datasets["train"][0]
    try_rewards(tokenizer, first["prompt"], Asked.of(first), reward_models, trainer_state=TrainerState())
    found = from_leader(
        lambda: fingerprints(model_config.model_name_or_path, sft, data_config.dataset_name, datasets, entries)
    )
    # Noise is placed by position: no process has a random state that counts.
    with training_folder(training, run_config, given, found, any_processes=True) as folder:
        training.model_init_kwargs = init_kwargs(model_config, training)
        with about(f"{model_config.model_name_or_path} cannot be trained", ValueError, ImportError):
            trainer = PPOTrainer(
                model=str(sft),
                reward_models=reward_models,
                args=training,
                train_dataset=datasets["train"],
                eval_dataset=datasets.get("validation"),
                processing_class=tokenizer,
                peft_config=peft_config,
                quantization_config=get_quantization_config(model_config),
            )
        describe_adapters(trainer.model, model_config.model_name_or_path)
        tell_chosen(training, model_config, trainer.model)
        trainer.normalizations = normalizations(trainer, entries, reward_models, folder)
        show_progress(trainer, f"ppo {final.name}")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        if leads():
            card = policy_card(model_config.model_name_or_path, entries, training.reward_weights, versions())
            (folder / "README.md").write_text(card)
            write_record(
                folder,
                "ppo",
                given,
                seed=training.seed,
                sft_model=model_config.model_name_or_path,
                sft_sha256=sft_sha256,
                processes=trainer.accelerator.num_processes,
                updates=trainer.state.global_step,
                truncated={model.name: trainer.counted[f"rewards/{model.name}/truncated"] for model in reward_models},
                history=history(trainer.state.log_history),
                inputs_sha256=found,
            )
            remove_working_files(folder)
    return final


def inputs(
    run_config: RunConfig,
    data_config: TrainingDataConfig,
    rewards_config: RewardsConfig,
    training: PPOConfig,
    model_config: PolicyModelConfig,
) -> dict[str, Fingerprint]:
    """What a run with these settings would read, as its record holds it."""
    name = model_config.model_name_or_path
    sft = local_folder(name, revision=model_config.model_revision, what="SFT model")
    tokenizer = load_tokenizer(sft, trust_remote_code=training.trust_remote_code)
    datasets = _datasets(data_config, training, tokenizer)
    return fingerprints(name, sft, data_config.dataset_name, datasets, rewards_config.rewards)


def _datasets(data_config: TrainingDataConfig, training: PPOConfig, tokenizer) -> dict:
    splits = ("train", *(["validation"] if training.eval_strategy != "no" else []))
    settings = {"tokenizer": tokenizer, "chat_template_kwargs": training.chat_template_kwargs}
    return {split: data_config.load("prompts", split, **settings) for split in splits}
