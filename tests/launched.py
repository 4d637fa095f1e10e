"""What ``accelerate launch --config_file FILE`` hands to the processes that it starts."""

from __future__ import annotations

from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
PREFIXES = ("ACCELERATE_", "FSDP_")


def launched(file: str) -> tuple[dict[str, str], set[str]]:
    """Return the environment variables for accelerate and FSDP, and the keys of plugins that accelerate does not know.

    Raises:
        ValueError: accelerate refuses the file: it has another key that is unknown.
    """
    parser = launch_command_parser()
    known = set(vars(parser.parse_args(["script.py"])))
    args, config, _ = _validate_launch_command(parser.parse_args(["--config_file", str(CONFIGS / file), "script.py"]))
    args.deepspeed_fields_from_accelerate_config = list(config.deepspeed_config)  # as launch_command does
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    settings = {name: value for name, value in environment.items() if name.startswith(PREFIXES)}
    return settings, {*config.fsdp_config, *config.deepspeed_config} - known
