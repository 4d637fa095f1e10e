"""Prompts, demonstrations and preferences, by task name, local file or Hub id."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.data import docstrings, files, tldr


TASKS = {"docstrings": docstrings, "tldr": tldr}
KINDS = tuple(files.COLUMNS)


def load(dataset_name: str, kind: str, split: str, *, preference: str | None = None, max_samples: int | None = None):
    """Return the ``datasets.Dataset`` of one kind of rows of one split.

    The prompts of preferences are what reward models are shown (see ``scored_prompts``): that is what they train on.

    Args:
        dataset_name: a task of this package (``docstrings``, ``tldr``), a local file or folder, or a Hub id.
        kind: ``"text"``, ``"demonstrations"``, ``"prompts"`` or ``"preferences"``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        preference: which preference of the task, for kind ``"preferences"``; None where a source has only one.
        max_samples: keep the first so many rows; None keeps all.

    Raises:
        FileNotFoundError: a local source does not exist.
        ValueError: the task has no such rows or no such preference, or no row is left.
    """
    from datasets import Dataset

    task = TASKS.get(dataset_name)
    if task is None:
        if preference is not None:
            raise ValueError(f"preference {preference!r} was given, but {dataset_name} is a plain source of pairs")
        dataset = files.rows(dataset_name, kind, split)
    else:
        if not hasattr(task, kind):
            raise ValueError(f"the {dataset_name} task has no {kind}; it has {', '.join(_kinds_of(task))}")
        dataset = task.preferences(split, preference) if kind == "preferences" else getattr(task, kind)(split)
        if isinstance(dataset, list):
            dataset = Dataset.from_list(dataset)
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    if kind == "preferences" and hasattr(task, "scored_prompt"):
        dataset = dataset.map(lambda row: {"prompt": task.scored_prompt(row["prompt"])})
    if len(dataset) == 0:
        raise ValueError(f"dataset {dataset_name} has no {kind} in its {split} split")
    return dataset


def scored_prompts(dataset_name: str, prompts: Sequence[str]) -> list[str]:
    """Return what reward models are shown in place of the prompts, where the task says so; else the prompts."""
    scored_prompt = getattr(TASKS.get(dataset_name), "scored_prompt", None)
    return [scored_prompt(prompt) for prompt in prompts] if scored_prompt else list(prompts)


def _kinds_of(task) -> list[str]:
    return [kind for kind in KINDS if hasattr(task, kind)]
