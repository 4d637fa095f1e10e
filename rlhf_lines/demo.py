"""`rlhf-lines demo`: the whole pipeline on a tiny model, by the same stages and configs as a real run.

Only the start differs: where a real run downloads a base and reward models, the demo writes untrained ones and trains
the base too. A stage that is complete is skipped, so a killed demo goes on where it was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import is_complete
from rlhf_lines.config_file import read_settings
from rlhf_lines.demo_models import ROOT, write_untrained_models
from rlhf_lines.shipped import shipped_configs
from rlhf_lines.stages import run_stage
from rlhf_lines.summary import summary


STAGES = (
    ("sft", "base"),
    ("sft", "sft"),
    ("reward", "reward_brief"),
    ("reward", "reward_specific"),
    ("ppo", "ppo_brief"),
    ("ppo", "ppo_specific"),
    ("sweep", "sweep"),
)
_PATH = re.compile(rf"(?<![\w./-]){ROOT}(?=/|$)")


def run(output_dir: str = ROOT, config_dir: str | Path | None = None) -> Iterator[str]:
    """Run all stages into `output_dir` and yield what each one came to, as a text.

    Args:
        output_dir: the folder of the demo.
        config_dir: the folder of `base.yaml` ... `sweep.yaml`; None is the one that comes with the package.

    Raises:
        FileNotFoundError: a config is missing.
    """
    configs = Path(config_dir) if config_dir is not None else shipped_configs() / "demo"
    start = time.monotonic()
    untrained = Path(output_dir) / "untrained"
    if not is_complete(untrained):
        write_untrained_models(untrained)
    for number, (verb, name) in enumerate(STAGES, 1):
        config = configs / f"{name}.yaml"
        before = time.monotonic()
        folder = run_stage(verb, ["--config", str(config), *_moved(config, output_dir), "--resume", "true"])
        seconds = time.monotonic() - before
        yield f"[{number}/{len(STAGES)}] {name}, {seconds:.0f} s: {summary(verb, folder)}"
    yield f"whole demo: {time.monotonic() - start:.0f} s"


def _moved(config: Path, output_dir: str) -> list[str]:
    """The flags that move every path of a config, at any depth, from `outputs/demo` to `output_dir`."""
    if output_dir == ROOT:
        return []
    flags = []
    for key, value in read_settings(config).items():
        if (moved := _elsewhere(value, output_dir)) != value:
            values = moved if isinstance(moved, list) else [moved]
            flags += [f"--{key}", *(item if isinstance(item, str) else json.dumps(item) for item in values)]
    return flags


def _elsewhere(value: Any, output_dir: str) -> Any:
    if isinstance(value, dict):
        return {key: _elsewhere(held, output_dir) for key, held in value.items()}
    if isinstance(value, list):
        return [_elsewhere(item, output_dir) for item in value]
    if isinstance(value, str):  # also behind what kind of reward model it is, or in a mapping in the form of a flag
        return _PATH.sub(lambda _: output_dir, value)
    return value
