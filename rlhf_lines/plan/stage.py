"""The plan of one stage: its model, its memory in every phase, what it generates and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lines.artifact import is_complete, refuse_existing
from rlhf_lines.config import RunConfig
from rlhf_lines.plan.config import of_type, read_config, stage_of
from rlhf_lines.plan.memory import Phase
from rlhf_lines.stages import MODULES


@dataclass(frozen=True)
class Options:
    """What a plan is asked beside the config.

    Attributes:
        stage: the verb, where the config's keys fit several.
        base_model: whose shape a model has that does not exist yet.
        prompt_tokens: the longest prompt (of sft and reward: text), where the data set is not here or takes long.
        device: `cuda` or `cpu`; None is the GPU that there is, or that the config needs.
    """

    stage: str | None = None
    base_model: str | None = None
    prompt_tokens: int | None = None
    device: str | None = None


@dataclass
class Plan:
    """What a stage will take.

    Attributes:
        stage: the verb.
        device: `cuda` or `cpu`: whose memory the phases are in.
        models: (which, where its shape is from).
        parameters: of the model, without adapter.
        trainable: that the optimizer changes; 0 where nothing is trained.
        phases: parts of a step; they follow one another, so the largest is the peak.
        work: (what, how much), in words.
        read: files that are read, in bytes.
        disk: what is written, in bytes.
        notes: assumptions of this plan.
    """

    stage: str
    device: str
    parameters: int = 0
    trainable: int = 0
    models: list[tuple[str, str]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    work: list[tuple[str, str]] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan(arguments: list[str], options: Options | None = None) -> Plan:
    """The plan of the stage that a config is of, or refuse it as the stage would.

    Args:
        arguments: `--config FILE` and `--flag value` pairs, as for the stage.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the stage could not run; the message is one sentence.
    """
    from rlhf_lines.plan import merging, sweeping, training

    options = options or Options()
    path = Path(arguments[arguments.index("--config") + 1]) if "--config" in arguments[:-1] else None
    stage = options.stage or stage_of(arguments, path or Path("config"))
    plans = {
        "sft": training.plan_sft,
        "reward": training.plan_reward,
        "ppo": training.plan_ppo,
        "merge": merging.plan_merge,
        "sweep": sweeping.plan_sweep,
    }
    if stage in MODULES and stage not in plans:
        raise ValueError(f"stage {stage} has no plan, only {', '.join(plans)} have one")
    configs, given = read_config(stage, arguments)
    run_config = of_type(configs, RunConfig)
    output_dir = next(config.output_dir for config in configs.values() if hasattr(config, "output_dir"))
    # A merge looks at its folder itself: it has a record of its own.
    if stage != "merge" and not (run_config.resume and is_complete(output_dir)):
        refuse_existing(output_dir, overwrite=run_config.overwrite)
    return plans[stage](configs, given, path.parent if path else None, options)
