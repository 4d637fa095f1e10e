"""A plan as text."""

from __future__ import annotations

from pathlib import Path

from rlhf_lines.plan.memory import LIBRARIES_PART, peak
from rlhf_lines.plan.stage import Plan


DEVICES = {"cuda": "GPU", "cpu": "CPU process"}


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
    if plan.read:
        lines += _files("to be read", plan.read)
    lines += _files("to be written", plan.disk)
    return "\n".join([*lines, *(["", *plan.notes] if plan.notes else [])])


def _files(title: str, sizes: dict[str, int]) -> list[str]:
    return [
        "",
        f"{title}: {_size(sum(sizes.values()))}",
        *(f"  {name:<32}{'' if len(name) < 32 else '  '}{_size(size)}" for name, size in sizes.items()),
    ]


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
