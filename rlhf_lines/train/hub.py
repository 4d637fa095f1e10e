"""What a training run and the Hub have to do with each other: a token, and one upload at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import TrainingArguments

from rlhf_lines.distributed import leads
from rlhf_lines.merge.output.hub import check_hub, upload
from rlhf_lines.redaction import without_secrets


OF_SEVERAL = ("hub_strategy", "hub_always_push", "hub_revision")  # settings of a trainer that uploads while it works


@contextlib.contextmanager
def token_in_environment(training: TrainingArguments) -> Iterator[None]:
    """Inside, the library of the Hub finds the token itself, and the settings, which the trainer saves, have none."""
    token, training.hub_token = training.hub_token, None
    if isinstance(kwargs := training.model_init_kwargs, Mapping):
        training.model_init_kwargs = without_secrets(kwargs)
        token = token or next((kwargs[key] for key in kwargs.keys() - training.model_init_kwargs.keys()), None)
    before = os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if before is not None:
            os.environ["HF_TOKEN"] = before
        elif token:
            del os.environ["HF_TOKEN"]


def upload_kept(configs: Sequence[object], given: Mapping[str, Any]) -> None:
    """Upload a folder that `--resume` found complete, where the settings ask for it; what is there already stays.

    Raises:
        ValueError: as `uploaded`.
    """
    training = next(config for config in configs if isinstance(config, TrainingArguments))
    with token_in_environment(training), uploaded(training, given):
        pass


@contextlib.contextmanager
def uploaded(training: TrainingArguments, given: Mapping[str, Any]) -> Iterator[None]:
    """Upload what the block makes, once, when it is complete; the trainer would upload what it works on, paths and all.

    Raises:
        ValueError: the upload cannot succeed, or a setting asks for more of them.
    """
    final, wanted = training.output_dir, training.push_to_hub
    training.push_to_hub = False
    for key in OF_SEVERAL:
        if wanted and key in given:
            raise ValueError(
                f"{key} is {given[key]}, but the folder is uploaded once, when it is complete: leave it out"
            )
    if wanted and leads():
        check_hub(training.hub_model_id)
    yield
    if wanted and leads():
        upload(final, training.hub_model_id, private=training.hub_private_repo)
