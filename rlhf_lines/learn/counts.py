"""How many specs are measured while learning: for its bar and its plan."""

from __future__ import annotations

from rlhf_lines.learn.config import ARCHIVE, STEPS, LearnConfig
from rlhf_lines.learn.evolution import default_population
from rlhf_lines.learn.grid import Point, lines_grid
from rlhf_lines.merge.space import make_space
from rlhf_lines.sweep.groups import simplex


def specs_of_splits(config: LearnConfig, num_layers: int) -> dict[str, int]:
    """By split, the specs that are measured: the SFT model, the policies, the candidates and the soup; what is told."""
    anchors, per = 1 + len(config.policies), specs_per_candidate(config)
    of_grid = len(grid_of(config)) if config.compares or config.method == "grid" else 0
    candidates = 0 if config.method == "grid" else 1 if config.method in STEPS else config.num_candidates
    if config.method == "evolution":  # whole generations, and their mean
        population = generation(config, num_layers)
        candidates = (config.num_candidates - 1) // population * population + 1
    return {
        "train": anchors + per * (candidates + of_grid + 1),
        "validation": anchors + per * (3 if config.compares else 2),
    }


def specs_per_candidate(config: LearnConfig) -> int:
    """The weights at which a candidate is measured."""
    return 1 if config.aim == "utility" else len(simplex(len(config.policies), config.num_weights))


def generation(config: LearnConfig, num_layers: int) -> int:
    """The candidates that are measured together."""
    if config.method in STEPS:
        return 1
    if config.method == "natural_niches":
        return children(config)
    numbers = len(make_space(config.space, len(config.policies), num_layers).start)
    return config.population or default_population(numbers)


def completions_of_steps(config: LearnConfig, prompts: int) -> int:
    """The completions that are sampled along gradients of the rewards, beside those of candidates."""
    if config.method != "reward_gradient":
        return 0
    return config.steps * min(config.step_prompts, prompts) * config.samples_per_prompt


def archive_size(config: LearnConfig) -> int:
    """The candidates in the archive of natural niches."""
    return config.population or ARCHIVE


def children(config: LearnConfig) -> int:
    """How many are made of one archive: half as many as it holds."""
    return max(archive_size(config) // 2, 1)


def grid_of(config: LearnConfig) -> list[Point]:
    """The points of LiNeS that are measured, with weights where those are chosen too."""
    return lines_grid(len(config.policies), config.num_candidates, with_weights=config.aim == "utility")
