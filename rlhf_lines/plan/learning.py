"""The plan of learning: one base and all adapters in memory, a candidate a row of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

from rlhf_lines.data.config import DataConfig
from rlhf_lines.learn.config import STEPS, LearnConfig
from rlhf_lines.learn.counts import completions_of_steps, generation, specs_of_splits, specs_per_candidate
from rlhf_lines.learn.evolution import check_generations
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.plan import Options, Plan
from rlhf_lines.plan.shapes import find_shape
from rlhf_lines.plan.sweeping import Work, plan_completions
from rlhf_lines.sweep.completion_config import CompletionConfig
from rlhf_lines.sweep.config import SweepConfig


LIMITS = ("max_kl", "max_forgetting")  # which choose, and cost nothing


def plan_learn(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of learning, which samples as a sweep does."""
    config = of_type(configs, LearnConfig)
    elected = [] if config.density is None else [{"name": "elected", "rule": "ties", "alpha": 1}]  # merged as densely
    same = {entry.name: getattr(config, entry.name) for entry in fields(CompletionConfig) if entry.name not in LIMITS}
    sweep = SweepConfig(
        **same, objectives=config.objectives, controls=False, scalings=["1 0"], groups=elected, num_weights=2
    )
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    num_layers = shape.config.get_text_config().num_hidden_layers
    if config.method == "evolution":
        check_generations(config.num_candidates, generation(config, num_layers))
    work = partial(_work, config, num_layers)
    counts = {"validation": config.validation_prompts, "train": config.train_prompts}
    plan = plan_completions("learn", sweep, of_type(configs, DataConfig), counts, work, beside, options)
    if config.method in STEPS:
        plan.notes.append(f"the passes of method {config.method} along gradients are not in memory and time")
    return plan


def _work(config: LearnConfig, num_layers: int, prompts: Mapping[str, int], texts: int) -> Work:
    """How much learning does; texts outside the task are read once by each candidate."""
    specs = specs_of_splits(config, num_layers)
    completions = config.samples_per_prompt * sum(specs[split] * count for split, count in prompts.items())
    completions += completions_of_steps(config, prompts["train"])
    points = f"{specs['train']:,} on train prompts, {specs['validation']:,} on validation prompts"
    together = (
        specs["train"] if config.method == "grid" else generation(config, num_layers) * specs_per_candidate(config)
    )
    read = texts * specs["train"] if config.control else 0
    alone = 0 if config.density is None else config.steps + 2 * specs_per_candidate(config)
    return Work(points, completions, together, read, alone)
