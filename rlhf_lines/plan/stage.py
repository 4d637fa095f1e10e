"""From the arguments of a stage to its plan, or to the refusal that the stage would give."""

from __future__ import annotations

import importlib

from rlhf_lines.arguments import config_path
from rlhf_lines.artifact import is_complete, refuse_existing
from rlhf_lines.config import RunConfig
from rlhf_lines.errors import unknown_name
from rlhf_lines.plan.config import of_type, read_config, stage_of
from rlhf_lines.plan.plan import Options, Plan, note_existing
from rlhf_lines.stages import MODULES


# By stage, the module with `plan_STAGE`. Each imports what its stage imports, which takes seconds: only one does.
PLANS = {
    **dict.fromkeys(("sft", "reward", "ppo"), "rlhf_lines.plan.training"),
    "merge": "rlhf_lines.plan.merging",
    **dict.fromkeys(("basis", "rebuild"), "rlhf_lines.plan.basis"),
    "sweep": "rlhf_lines.plan.sweeping",
    "learn": "rlhf_lines.plan.learning",
}


def plan(arguments: list[str], options: Options | None = None) -> Plan:
    """The plan of the stage that a config is of; what the stage would refuse is refused.

    Args:
        arguments: `--config FILE` and `--flag value` pairs, as for the stage.
        options: what is asked beside the config.

    Raises:
        ValueError, FileNotFoundError: the stage could not run; the message is one sentence. That its `output_dir`
            exists is a note of the plan, which writes nothing.
    """
    options = options or Options()
    path = config_path(arguments)
    stage = options.stage or stage_of(arguments, path)
    if stage not in PLANS:
        none = f"stage {stage} has no plan, only {', '.join(PLANS)} have one"
        raise ValueError(none if stage in MODULES else unknown_name("stage", stage, PLANS))
    configs, given = read_config(stage, arguments)
    run_config = of_type(configs, RunConfig)
    output_dir = next(config.output_dir for config in configs.values() if hasattr(config, "output_dir"))
    # A merge looks at its folder itself: it has a record of its own.
    notes = []
    if stage != "merge" and not (run_config.resume and is_complete(output_dir)):
        overwrite = run_config.overwrite
        notes = note_existing(lambda: refuse_existing(output_dir, overwrite=overwrite), overwrite=overwrite)
    plan_stage = getattr(importlib.import_module(PLANS[stage]), f"plan_{stage}")
    made = plan_stage(configs, given, path.parent if path else None, options)
    made.notes += notes
    return made
