"""From a config file to the stage that it is of, and its filled dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from rlhf_lines.arguments import given_keys
from rlhf_lines.errors import closest
from rlhf_lines.stages import MODULES, configs_of, read_configs


def stage_of(arguments: list[str], path: Path | None) -> str:
    """The stage whose keys the config and the flags are; of several, the one that the file is named after.

    Raises:
        ValueError: no stage has all keys, or several have them and the file's name does not decide.
    """
    if path is None and not arguments:
        raise ValueError(
            "nothing to plan: give --config FILE, or a stage and its flags, as in rlhf-lines plan ppo --rewards ..."
        )
    what = f"config file {path}" if path else "what the flags say"
    known = {stage: _fields(stage) for stage in MODULES}
    given = {stage: given_keys(arguments, configs_of(stage)) for stage in MODULES}
    missing = {
        stage: {key for key, required in known[stage].items() if required} - given[stage] - {"output_dir"}
        for stage in MODULES
    }
    unknown = {stage: given[stage] - known[stage].keys() for stage in MODULES}
    fitting = [stage for stage in MODULES if not missing[stage] and not unknown[stage]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = [stage for stage in fitting if path and path.stem.split("_")[0] == stage]
        if not named:
            raise ValueError(f"{what} fits the stages {', '.join(fitting)}: say which with --stage")
        return named[0]
    nearest = max(known, key=lambda stage: len(given[stage] & known[stage].keys()))
    if 0 < len(unknown[nearest]) < len(given[nearest] & known[nearest].keys()) and all(
        closest(key, known[nearest]) for key in unknown[nearest]
    ):
        return nearest  # whose parser says what was meant
    wrong, keys = ("unknown there", unknown) if unknown[nearest] else ("missing", missing)
    reason = f"{wrong}: {', '.join(sorted(keys[nearest]))}"
    raise ValueError(
        f"{what} fits no stage; the nearest is {nearest} ({reason}); say which with --stage, and give "
        "what is missing by flags"
    )


def read_config(stage: str, arguments: list[str]) -> tuple[dict[type, object], dict]:
    """The dataclasses of a stage by their type, and what was given.

    A config for a GPU can be planned where there is none: transformers then accepts `bf16` only for a CPU, which
    changes nothing else here.

    Raises:
        ValueError: the parser of the stage refuses a value.
    """
    import torch

    known, said = _fields(stage), given_keys(arguments, configs_of(stage))
    added = {"output_dir": f"{stage}_output"}  # a plan writes nothing: it does not ask for a folder
    if not torch.cuda.is_available() and "use_cpu" in known:
        added["use_cpu"] = "true"
    added = {key: value for key, value in added.items() if key not in said}
    configs, given = read_configs(stage, [*arguments, *(f"--{key}={value}" for key, value in added.items())])
    given = {key: value for key, value in given.items() if key not in added}
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
