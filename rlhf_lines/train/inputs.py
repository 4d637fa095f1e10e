"""What a training run reads, as hashes: kept with the run, and compared when it goes on or is asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lines.merge.inputs.fingerprints import (
    Fingerprint,
    model_fingerprint,
    reward_fingerprint,
    rows_fingerprint,
)
from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.task_rewards import RewardEntry


def fingerprints(
    model: str,
    folder: Path,
    dataset_name: str,
    datasets: Mapping[str, Iterable[Mapping[str, Any]]],
    rewards: Iterable[RewardEntry] = (),
) -> dict[str, Fingerprint]:
    """The fingerprint of every input by its name.

    Args:
        model: what the model that is trained further is called in the config.
        folder: where it is.
        dataset_name: as in the config.
        datasets: the rows that are read, by split.
        rewards: the reward models that are asked.
    """
    return {
        f"model {called(model)}": model_fingerprint(folder),
        **{f"{split} split of {called(dataset_name)}": rows_fingerprint(rows) for split, rows in datasets.items()},
        **{
            f"reward model {number} ({called(entry.model)})": reward_fingerprint(entry.model)
            for number, entry in enumerate(rewards, start=1)
        },
    }
