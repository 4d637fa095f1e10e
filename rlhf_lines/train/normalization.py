"""Scales of the rewards: measured once on samples of the SFT model, kept with the run, never fitted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from reward_models import RewardModel
from reward_models.normalize import Normalization
from rlhf_lines.task_rewards import RewardEntry
from rlhf_lines.train.adapters import use_adapter
from rlhf_lines.train.ppo_trainer import PPOTrainer


FILE = "normalization.json"
SAMPLE = -(2**32)  # its noise is that of no rollout and no evaluation


def normalizations(
    trainer: PPOTrainer, entries: Sequence[RewardEntry], models: Sequence[RewardModel], folder: Path
) -> list[Normalization]:
    """What the scores of each reward go through before they are weighed and added.

    The first `normalization_samples` prompts of the training data are completed by the SFT model and scored. The
    result is kept in `normalization.json` of the run, from which a resumed run reads it.

    Raises:
        ValueError: all samples have one score under a reward model.
    """
    fixed = {model.name: Normalization(clip=entry.clip) for entry, model in zip(entries, models, strict=True)}
    if trainer.is_sharded and any(entry.normalize for entry in entries):
        raise ValueError(
            "rewards are normalised on samples of the SFT model, which no process holds whole under FSDP and "
            "DeepSpeed: leave out normalize, or run without them"
        )
    wanted = [(entry, model) for entry, model in zip(entries, models, strict=True) if entry.normalize]
    path = folder / FILE
    if wanted and path.is_file():
        saved = json.loads(path.read_text())
        fixed |= {name: Normalization.from_dict(values) for name, values in saved.items()}
    elif wanted:
        prompts, completions = _sft_samples(trainer)
        measured = [None]
        if trainer.accelerator.is_main_process:
            measured = [
                {
                    model.name: Normalization.measure(
                        model.score(prompts, completions), name=model.name, clip=entry.clip
                    ).to_dict()
                    for entry, model in wanted
                }
            ]
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(measured[0], indent=2) + "\n")
            unfinished.replace(path)
        (saved,) = broadcast_object_list(measured)
        fixed |= {name: Normalization.from_dict(values) for name, values in saved.items()}
    return [fixed[model.name] for model in models]


def _sft_samples(trainer: PPOTrainer) -> tuple[list[str], list[str]]:
    """What reward models are shown as prompts and the completions, of all processes, in the data's order."""
    rows = trainer.train_dataset[: trainer.args.normalization_samples]
    prompts = rows["prompt"]
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    size = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation  # what fits in a rollout
    own, completions = prompts[rank::processes], []
    with use_adapter(trainer.accelerator.unwrap_model(trainer.model), None):
        for start in range(0, len(own), size):
            ids = trainer._tokenize_prompts(own[start : start + size])[0]
            tokens = trainer.sample(ids, [SAMPLE] * len(ids))
            completions += trainer.processing_class.batch_decode(tokens, skip_special_tokens=True)
    pairs = sorted(gather_object([(rank + i * processes, text) for i, text in enumerate(completions)]))
    return rows.get("scored_prompt", prompts), [text for _, text in pairs]
