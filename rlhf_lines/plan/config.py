"""From a config file to the stage that it is of, and its filled dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from rlhf_lines.arguments import given_keys
from rlhf_lines.errors import unknown_name
from rlhf_lines.stages import MODULES, configs_of, read_stage


def stage_of(arguments: list[str], path: Path) -> str:
    """The stage whose keys the config and the flags are; of several, the one that the file is named after.

    Raises:
        ValueError: no stage has all keys, or several have them and the file's name does not decide.
    """
    known = {stage: _fields(stage) for stage in MODULES}
    given = {stage: given_keys(arguments, configs_of(stage)) for stage in MODULES}
    missing = {stage: {k for k, required in known[stage].items() if required} - given[stage] for stage in MODULES}
    unknown = {stage: given[stage] - known[stage].keys() for stage in MODULES}
    fitting = [stage for stage in MODULES if not missing[stage] and not unknown[stage]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = [stage for stage in fitting if path.stem.split("_")[0] == stage]
        if not named:
            raise ValueError(f"config file {path} fits the stages {', '.join(fitting)}: say which with --stage")
        return named[0]
    nearest = max(known, key=lambda stage: len(given[stage] & known[stage].keys()))
    what, keys = ("unknown there", unknown) if unknown[nearest] else ("missing", missing)
    reason = f"{what}: {', '.join(sorted(keys[nearest]))}"
    raise ValueError(
        f"config file {path} fits no stage; the nearest is {nearest} ({reason}); say which with --stage, and give "
        "what is missing by flags"
    )


def read_config(stage: str, arguments: list[str]) -> tuple[dict[type, object], dict]:
    """The dataclasses of a stage by their type, and what was given.

    A config for a GPU can be planned where there is none: transformers then accepts `bf16` only for a CPU, which
    changes nothing else here.

    Raises:
        ValueError: the stage is unknown, or its parser refuses a value.
    """
    import torch

    if stage not in MODULES:
        raise ValueError(unknown_name("stage", stage, MODULES))
    elsewhere = not torch.cuda.is_available() and "use_cpu" in _fields(stage) and "use_cpu" not in given_keys(arguments)
    _, configs, given = read_stage(stage, [*arguments, *(["--use_cpu", "true"] if elsewhere else [])])
    if elsewhere:
        given.pop("use_cpu")
    return {type(config): config for config in configs}, given


def of_type(configs: dict[type, object], wanted: type):
    """The config of a type or of a subclass of it, or None."""
    return next((config for kind, config in configs.items() if issubclass(kind, wanted)), None)


def _fields(stage: str) -> dict[str, bool]:
    """The keys of a stage, and whether they are required."""
    return {
        entry.name: entry.default is MISSING and entry.default_factory is MISSING
        for config in configs_of(stage)
        for entry in fields(config)
        if entry.init
    }
