"""From a verb and its arguments to a finished folder: the same for the command line, the scripts and the demo."""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path
from types import ModuleType

from rlhf_lines import distributed
from rlhf_lines.arguments import OFF, parse, read_config
from rlhf_lines.artifact import (
    check_same_config,
    finish_folder,
    is_complete,
    partial_folder,
    read_record,
    refuse_existing,
)
from rlhf_lines.config import RunConfig
from rlhf_lines.lock import only_run


logger = logging.getLogger(__name__)

# Each module has run(*configs, given) -> folder; one that has finish(folder) writes there what a killed run may not
# have written after the folder got its name; inputs(*configs) is what it reads, as hashes, which its record keeps;
# upload_kept(configs, given) uploads a folder that is complete already, where it is asked to;
# is_kept(*configs), whether it leaves a finished folder by a comparison of its own.
MODULES = {
    "sft": "rlhf_lines.train.sft",
    "reward": "rlhf_lines.train.reward",
    "ppo": "rlhf_lines.train.ppo",
    "fisher": "rlhf_lines.statistics.fisher",
    "gram": "rlhf_lines.statistics.gram",
    "merge": "rlhf_lines.merge.stage",
    "basis": "rlhf_lines.merge.basis",
    "rebuild": "rlhf_lines.merge.rebuild",
    "sweep": "rlhf_lines.sweep.run",
    "learn": "rlhf_lines.learn.stage",
    "router": "rlhf_lines.learn.router",
}
# Where the dataclasses are that a stage is configured by, under its name in capitals: apart from what it runs, which
# takes seconds to import. Neither --help nor a mistake in a config waits for it.
CONFIGS = {
    **dict.fromkeys(("sft", "reward", "ppo"), "rlhf_lines.train.config"),
    **dict.fromkeys(("fisher", "gram"), "rlhf_lines.statistics.config"),
    "merge": "rlhf_lines.merge.config",
    **dict.fromkeys(("basis", "rebuild"), "rlhf_lines.merge.basis_config"),
    "sweep": "rlhf_lines.sweep.config",
    "learn": "rlhf_lines.learn.config",
    "router": "rlhf_lines.learn.router_config",
}
GOES_ON_FROM = ("checkpoint-*", "run.sqlite")  # what a stopped run has left: of training, of a sweep or of learning
SWITCHES = ("overwrite", "resume", "plan")  # with which an output_dir may exist
UNFINISHED, UNNAMED, COMPLETE = "unfinished", "unnamed", "complete"  # an output_dir, to a run that resumes


def run_stage(verb: str, arguments: list[str]) -> Path:
    """Run one stage and return the folder it made, or that was complete already (`--resume`).

    Args:
        verb: a key of `MODULES`.
        arguments: `--config FILE` and `--flag value` pairs.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the input is wrong; the message is one sentence.
    """
    refuse_taken(arguments)
    return run_configured(*read_stage(verb, arguments))[0]


def run_configured(module: ModuleType, configs: tuple, given: dict) -> tuple[Path, bool]:
    """As `run_stage`, of what `read_stage` returned; and whether the folder was complete already."""
    run_config = next(config for config in configs if isinstance(config, RunConfig))
    output_dir = next(config.output_dir for config in configs if hasattr(config, "output_dir"))
    distributed.start()  # one locks and renames a folder, the others wait; training has started them by now
    with only_run(output_dir):
        return _run(module, run_config, output_dir, configs, given)


def _run(module: ModuleType, run_config: RunConfig, output_dir: str, configs: tuple, given: dict) -> tuple[Path, bool]:
    if run_config.resume and _is_done(module, configs, Path(output_dir), given, overwrite=run_config.overwrite):
        if hasattr(module, "finish") and distributed.leads():  # the others may not have the folder
            module.finish(Path(output_dir))
        if hasattr(module, "upload_kept"):  # the run may have been stopped before, or during, its upload
            module.upload_kept(configs, given)
        return Path(output_dir), True
    is_kept = hasattr(module, "is_kept") and module.is_kept(*configs)
    folder = module.run(*configs, given)
    if is_kept and run_config.overwrite:
        _tell_kept(output_dir)
    return folder, is_kept


def _tell_kept(output_dir: str | Path) -> None:
    """Say that `--overwrite` had no effect: told, not refused, as the same command has gone on with a run before."""
    logger.warning(
        "overwrite has no effect beside resume: %s is complete, and no stopped run was to replace it, so it is kept; "
        "to make it again, leave --resume out",
        output_dir,
    )


def _is_done(module: ModuleType, configs: tuple, output_dir: Path, given: dict, *, overwrite: bool) -> bool:
    """Whether `--resume` has nothing left to run; a folder that only lacked its name gets it.

    Raises:
        ValueError: the folder is of other settings, or of inputs that have changed since.
        FileExistsError: it is complete, and a run that was to replace it can go on, but may not replace it.
    """

    def find_out() -> str:
        state = _state(output_dir, given, overwrite=overwrite)
        if state != UNFINISHED and hasattr(module, "inputs"):
            made = partial_folder(output_dir) if state == UNNAMED else output_dir
            before = read_record(made).get("inputs_sha256") or {}
            from rlhf_lines.merge.inputs.fingerprints import check_unchanged

            way_out = "restore it, choose another folder, or replace this one with --overwrite in place of --resume"
            if before:
                check_unchanged(before, module.inputs(*configs), since=f"{output_dir} was made", way_out=way_out)
        return state

    state = distributed.from_leader(find_out)
    if state == UNNAMED:
        finish_folder(output_dir, overwrite=overwrite)
    if state == COMPLETE and overwrite:
        _tell_kept(output_dir)
    return state != UNFINISHED


def _state(output_dir: Path, given: dict, *, overwrite: bool) -> str:
    partial = partial_folder(output_dir)
    if is_complete(partial):  # killed between its record and its name
        check_same_config(partial, given, name=output_dir)
        return UNNAMED
    if not is_complete(output_dir):
        return UNFINISHED
    begun = next((path for left in GOES_ON_FROM for path in partial.glob(f"**/{left}")), None)
    if begun is not None and not overwrite:
        raise FileExistsError(
            f"output_dir {output_dir} is complete, and a run that was to replace it stopped after {begun.name}: add "
            "--overwrite to --resume to go on with that run"
        )
    if begun is None:
        check_same_config(output_dir, given)
    return COMPLETE if begun is None else UNFINISHED


def configs_of(verb: str) -> tuple[type, ...]:
    """The dataclasses that a stage is configured by."""
    return getattr(importlib.import_module(CONFIGS[verb]), verb.upper())


def refuse_taken(arguments: list[str]) -> None:
    """Stop where the folder to be made exists, before the imports of a stage, which take many seconds.

    Where `--resume` may keep it, or a stopped run was to replace it, the stage decides.

    Raises:
        FileExistsError: it exists, and is not to be replaced.
        ValueError: it is no name that a folder can have, or the config file cannot be read.
    """
    given = read_config(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("output_dir", *SWITCHES):
        dashed = [f"--{name}"] + [f"--{name.replace('_', '-')}"] * ("_" in name)
        parser.add_argument(*dashed, **({"nargs": "?", "const": True} if name in SWITCHES else {}))
    try:
        flags, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the parser of the stage says it better
        return
    said = {**given, **{name: value for name, value in vars(flags).items() if value is not None}}
    output_dir = said.get("output_dir")
    may_exist = any(str(said.get(name, False)).lower() not in OFF for name in SWITCHES)
    if not isinstance(output_dir, str) or not Path(output_dir).name or may_exist or {"-h", "--help"} & set(arguments):
        return
    if not partial_folder(output_dir).exists():
        refuse_existing(output_dir, overwrite=False)


def read_stage(verb: str, arguments: list[str]) -> tuple[ModuleType, tuple, dict]:
    """The module of a stage, its filled dataclasses, and the mapping of everything that was given.

    Raises:
        ValueError, FileNotFoundError: the input is wrong; the message is one sentence.
    """
    configs, given = read_configs(verb, arguments)
    return importlib.import_module(MODULES[verb]), configs, given


def read_configs(verb: str, arguments: list[str]) -> tuple[tuple, dict]:
    """What `read_stage` reads, without the module, whose import takes seconds."""
    configs, given = parse(configs_of(verb), arguments, prog=f"rlhf-lines {verb}")
    if not given.get("output_dir"):  # transformers would fall back to a folder of its own choice
        raise ValueError("output_dir is missing: name the folder to make")
    return configs, given
