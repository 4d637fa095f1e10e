"""Scales of the rewards: measured once on samples of the SFT model, kept with the run, never fitted again."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainerState

from reward_models import RewardModel
from reward_models.normalize import Normalization
from rlhf_lines.artifact import write_whole
from rlhf_lines.completions import completion_texts
from rlhf_lines.distributed import from_leader, leads
from rlhf_lines.sampling import prompt_key, sample_numbers
from rlhf_lines.scoring import Asked, score
from rlhf_lines.task_rewards import RewardEntry
from rlhf_lines.train.adapters import use_adapter
from rlhf_lines.train.ppo_trainer import PPOTrainer


FILE = "normalization.json"
SAMPLES = "samples"  # of a reward in that file: how many completions it was measured on
SAMPLE = -(2**32)  # its noise is that of no rollout and no evaluation

logger = logging.getLogger(__name__)


def normalizations(
    trainer: PPOTrainer, entries: Sequence[RewardEntry], models: Sequence[RewardModel], folder: Path
) -> list[Normalization]:
    """What the scores of each reward go through before they are weighed and added.

    The first `normalization_samples` prompts of the training data are completed by the SFT model and scored. The
    result is kept in `normalization.json` of the run, with the number of `samples`, from which a resumed run reads it.
    That there are fewer prompts is told.

    Raises:
        ValueError: all samples have one score under a reward model.
    """
    wanted = [(entry, model) for entry, model in zip(entries, models, strict=True) if entry.normalize]
    if wanted and trainer.is_sharded:
        raise ValueError(
            "rewards are normalised on samples of the SFT model, which no process holds whole under FSDP and "
            "DeepSpeed: leave out normalize, or run without them"
        )
    measured = {}
    if wanted:
        path = folder / FILE
        measured = from_leader(lambda: json.loads(path.read_text()) if path.is_file() else None)
        if measured is None:
            samples = _sft_samples(trainer)
            measured = from_leader(lambda: _measure(wanted, *samples, trainer.state, path))
    scales = {name: {key: of[key] for key in of if key != SAMPLES} for name, of in measured.items()}
    return [
        Normalization.from_dict(scales[model.name]) if entry.normalize else Normalization(clip=entry.clip)
        for entry, model in zip(entries, models, strict=True)
    ]


def _measure(
    wanted: Sequence[tuple[RewardEntry, RewardModel]],
    asked: list[Asked],
    completions: list[str],
    completion_ids: list[list[int]],
    state: TrainerState,
    path: Path,
) -> dict[str, dict]:
    """The normalisation of every reward model by its name, as the file holds them after this."""
    measured = {}
    for entry, model in wanted:
        scores = score(model, asked, completions, completion_ids, trainer_state=state)
        found = Normalization.measure(scores, name=model.name, clip=entry.clip)
        measured[model.name] = {**found.to_dict(), SAMPLES: len(scores)}
    write_whole(path, json.dumps(measured, indent=2) + "\n")
    return measured


def _sft_samples(trainer: PPOTrainer) -> tuple[list[Asked], list[str], list[list[int]]]:
    """What reward models are shown as prompts, and texts and tokens of completions, of all processes in data order."""
    rows = trainer.train_dataset[: trainer.args.normalization_samples]
    prompts = rows["prompt"]
    asked = [Asked.of({name: rows[name][i] for name in rows}) for i in range(len(prompts))]
    if leads() and len(prompts) < trainer.args.normalization_samples:
        logger.warning(
            "the scales of rewards are measured on %d completions, not on normalization_samples (%d): the training "
            "data has no more prompts",
            len(prompts), trainer.args.normalization_samples,
        )  # fmt: skip
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    size = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation  # what fits in a rollout
    own, completions = prompts[rank::processes], []
    keys = [prompt_key(ids) for ids in trainer._tokenize_prompts(prompts)[0]]
    numbers = sample_numbers(keys, Counter(), count=1, first=SAMPLE)
    with use_adapter(trainer.accelerator.unwrap_model(trainer.model), None):
        for start in range(0, len(own), size):
            ids = trainer._tokenize_prompts(own[start : start + size])[0]
            tokens = trainer.sample(ids, numbers[rank::processes][start : start + size])
            completions += zip(completion_texts(trainer.processing_class, ids, tokens), tokens, strict=True)
    found = sorted(gather_object([(rank + i * processes, *sample) for i, sample in enumerate(completions)]))
    return asked, [text for _, text, _ in found], [tokens for _, _, tokens in found]
