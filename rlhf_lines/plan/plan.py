"""A plan as a value, and as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lines.plan.device import machine
from rlhf_lines.plan.memory import LIBRARIES_PART, Phase, peak
from rlhf_lines.plan.time import in_words


DEVICES = {"cuda": "GPU", "cpu": "CPU process"}


@dataclass(frozen=True)
class Options:
    """What a plan is asked beside the config.

    Attributes:
        stage: the verb, where the config's keys fit several.
        base_model: whose shape a model has that does not exist yet.
        prompt_tokens: the longest prompt (of sft and reward: text), where the data set is not here or takes long.
        device: `cuda` or `cpu`; None is that of this machine, or the GPU that the stage cannot do without.
        timed: whether passes are run on this machine, for a few seconds, to tell how long the stage takes.
    """

    stage: str | None = None
    base_model: str | None = None
    prompt_tokens: int | None = None
    device: str | None = None
    timed: bool = False


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
        seconds: how long the parts of the stage take on this machine; empty where that is not told.
        untimed: what is not in `seconds`, or why there are none.
        notes: assumptions of this plan.
        example: how the first row is read, as lines of text; empty where nothing can be shown.
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
    seconds: dict[str, float] = field(default_factory=dict)
    untimed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    example: str = ""


def note_existing(check: Callable[[], object], *, overwrite: bool) -> list[str]:
    """The note that the folder to be made exists, which stops the stage and no plan.

    Args:
        check: of the folder, by the stage; what else it raises passes.
        overwrite: the folder may be replaced, so that nothing is raised for its existence alone.
    """
    try:
        check()
    except FileExistsError as error:
        if overwrite:
            raise
        return [f"the stage will not start as it is: {error}"]
    return []


def plan_table(plan: Plan, config: str | Path | None = None) -> str:
    """The plan as a table: models, memory by part and phase, work, disk."""
    lines = [f"plan of stage {plan.stage}" + (f", {config}" if config else ""), ""]
    lines += [f"  {name}: {source}" for name, source in plan.models]
    lines.append(f"  parameters            {plan.parameters:>16,}")
    if plan.trainable:
        lines.append(f"  trainable parameters  {plan.trainable:>16,}  ({plan.trainable / plan.parameters:.2%})")
    top = peak(plan.phases)
    beside = plan.device == "cpu" and LIBRARIES_PART not in top.parts
    what = DEVICES[plan.device] + (", beside Python and its libraries" if beside else "")
    lines += ["", f"estimated memory of one {what}", ""]
    lines += _memory(plan)
    lines += ["", f"  peak: {_size(top.total)}, during {top.name}"]
    if plan.work:
        lines += ["", *(f"  {what:<32}{much}" for what, much in plan.work)]
    lines += _time(plan)
    if plan.read:
        lines += _files("to be read", plan.read)
    lines += _files("to be written", plan.disk)
    lines += ["", plan.example] if plan.example else []
    return "\n".join([*lines, *(["", *plan.notes] if plan.notes else [])])


def _files(title: str, sizes: dict[str, int]) -> list[str]:
    return [
        "",
        f"{title}: {_size(sum(sizes.values()))}",
        *(f"  {name:<32}{'' if len(name) < 32 else '  '}{_size(size)}" for name, size in sizes.items()),
    ]


def _time(plan: Plan) -> list[str]:
    untimed = f"  not counted: {', '.join(plan.untimed)}"
    if not plan.seconds:
        return ["", f"time: not told, {', '.join(plan.untimed)}"] if plan.untimed else []
    total = in_words(sum(plan.seconds.values()))
    parts = [f"  {name:<32}{in_words(seconds)}" for name, seconds in plan.seconds.items()]
    return ["", f"time: about {total} on this machine ({machine(plan.device)})", *parts, untimed]


def _memory(plan: Plan) -> list[str]:
    names = list(dict.fromkeys(name for phase in plan.phases for name in phase.parts))
    widths = [max(len(phase.name), 9) for phase in plan.phases]
    first = max(len(name) for name in [*names, "total"])
    unit, divisor = _unit(peak(plan.phases).total)

    def row(label: str, cells: list[str]) -> str:
        return f"  {label:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = [row(unit, [phase.name for phase in plan.phases])]
    for name in names:
        lines.append(row(name, [f"{phase.parts.get(name, 0) / divisor:,.2f}" for phase in plan.phases]))
    return [*lines, row("total", [f"{phase.total / divisor:,.2f}" for phase in plan.phases])]


def _size(size: int) -> str:
    unit, divisor = _unit(size)
    return f"{size / divisor:,.2f} {unit}"


def _unit(size: int) -> tuple[str, int]:
    return ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20) if size >= 2**20 else ("KiB", 2**10)
