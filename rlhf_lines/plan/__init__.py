"""`rlhf-lines plan`: what a stage will take, before it takes it. No weights are loaded."""

from __future__ import annotations

from rlhf_lines.plan.stage import Options, Plan, plan
from rlhf_lines.plan.table import plan_table


__all__ = ["Options", "Plan", "plan", "plan_table"]
