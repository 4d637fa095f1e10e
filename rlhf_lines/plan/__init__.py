"""`rlhf-lines plan`: what a stage will take, before it takes it. No weights are loaded."""

from __future__ import annotations

from rlhf_lines.plan.plan import Options, Plan, plan_table
from rlhf_lines.plan.stage import plan


__all__ = ["Options", "Plan", "plan", "plan_table"]
