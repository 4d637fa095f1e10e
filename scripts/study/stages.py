"""What a study trains and measures: the stages of a task and a training seed, as configs of rlhf-lines' verbs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lines.artifact import is_complete
from rlhf_lines.shipped import shipped_configs


LAYERS = 30
MIXTURES = (0.25, 0.5, 0.75)
RIVALS = {"layerwise": {"layer_learning_rates": "linear"}, "frozen": {"frozen_layers": LAYERS // 2}}
PARTS = ("comparison", "thirds", "search", "learn")
RULES = ("ties", "slerp", "factor_average", "peft_linear")
HALF_TO_WHOLE = {"alpha": 0.5, "beta": 0.5}  # of LiNeS, for rules whose scaling is not chosen
SWEEP = {
    "validation_prompts": 200,
    "test_prompts": 400,
    "num_weights": 5,
    "validation_weights": 3,
    "edge_extensions": 0,
    "alphas": [0.5, 1.0],
    "betas": [0.5, 1.0],
    "groups": [
        {"name": "ties", "rule": "ties", "options": {"density": 0.2}, "alpha": 1.0},
        {"name": "ties with LiNeS", "rule": "ties", "options": {"density": 0.2}, **HALF_TO_WHOLE},
        {"name": "slerp", "rule": "slerp", "alpha": 1.0},
        {"name": "slerp with LiNeS", "rule": "slerp", **HALF_TO_WHOLE},
        {"name": "averaged factors", "rule": "factor_average", "alpha": 1.0},
        {"name": "PEFT linear", "rule": "peft_linear", "alpha": 1.0},
    ],
    "control_texts": 120,
    "control_tokens": 128,
}
THIRDS = ("first", "middle", "last")  # of the layers
LEVELS = (0.5, 1.0)  # of what each policy counts in a third: as much as in the soup at equal weights, or twice that
ONE_FACTOR = "one factor"
SEARCH = {  # LiNeS, one factor and the search each measure 24 merges on validation prompts
    "sampler": "search",
    "search_points": 24,
    "search_gain": 0.0,
    "alphas": [0.5, 1.0],
    "betas": [0.0, 0.5, 1.0, 2.0],
    "controls": False,
    "groups": [{"name": ONE_FACTOR, "rule": "linear", "alphas": [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]}],
    "validation_prompts": 100,
    "morlhf": [],
}
LEARNERS = {
    "evolution": {"num_candidates": 46},
    "atlas": {"num_steps": 40, "step_prompts": 8, "learning_rate": 0.05, "compare_grid": False},
    "adamerging": {"num_steps": 40, "step_prompts": 8, "learning_rate": 0.05, "compare_grid": False},
}
LEARNED_AS_SWEPT = (
    "rewards",
    "dataset_name",
    "dataset_path",
    "max_prompt_length",
    "dtype",
    "max_new_tokens",
    "temperature",
)
LEARNING = {"train_prompts": 64, "validation_prompts": 200}


class Task(NamedTuple):
    """A task.

    Attributes:
        configs: folder of its configs, below `configs`.
        policies: both, each with its `ppo_NAME.yaml`.
        before: verbs and configs of the stages before the first seed; their outputs lie where the configs say.
        other: the task whose texts tell what is forgotten; None of a task of which the search and `learn` are all.
    """

    configs: str
    policies: tuple[str, str]
    before: tuple[tuple[str, str], ...] = ()
    other: str | None = None

    def parts(self, asked: Sequence[str]) -> list[str]:
        """Those of the parts that are asked for which this task has."""
        return [part for part in asked if self.other is not None or part in ("search", "learn")]


TASKS = {
    "docstrings": Task("smollm2/docstrings", ("faithful", "readable"), other="hh"),
    "hh": Task("smollm2/hh", ("harmless", "relevant"), (("reward", "reward_minilm"),), other="docstrings"),
    "demo": Task(
        "demo", ("brief", "specific"), (("sft", "base"), ("reward", "reward_brief"), ("reward", "reward_specific"))
    ),
}


class Stage(NamedTuple):
    """A verb with its config."""

    verb: str
    name: str
    config: dict[str, Any]


class Choices(NamedTuple):
    """What of a study may be left out or be otherwise.

    Attributes:
        changes: of every stage, such as where the human pairs are.
        bf16: whether policies are trained and measured in bfloat16.
        parts: of `PARTS`, what is measured; MORLHF and the rivals are trained for the comparison alone.
        rivals: other ways to train both policies, of `RIVALS`.
        rules: rules that the sweep compares beside LiNeS, of `RULES`.
    """

    changes: dict[str, Any]
    bf16: bool = False
    parts: Sequence[str] = PARTS
    rivals: Sequence[str] = (*RIVALS,)
    rules: Sequence[str] = RULES

    @property
    def dtype(self) -> dict[str, Any]:
        """In which the SFT model of a policy, a sweep or a fit is loaded; without bf16, as in the configs."""
        return {"dtype": "bfloat16"} if self.bf16 else {}


def shipped(task: Task, name: str) -> dict[str, Any]:
    """A config of the task."""
    return yaml.safe_load((shipped_configs() / task.configs / f"{name}.yaml").read_text())


def before(task: Task, changes: dict[str, Any]) -> Iterator[Stage]:
    """Yield the stages before the first seed."""
    for verb, name in task.before:
        yield Stage(verb, name, shipped(task, name) | changes)


def stages(task: Task, seed: int, folder: Path, choices: Choices) -> Iterator[Stage]:
    """Yield the stages of one training seed in their order; their outputs lie below `folder`."""
    sft = {"output_dir": f"{folder}/sft", "seed": seed}
    yield Stage("sft", "sft", shipped(task, "sft") | sft | choices.changes)
    yield from _policies(task, seed, folder, choices)
    merged = {"sft_model": sft["output_dir"], "policies": [f"{folder}/{name}" for name in task.policies]}
    parts = task.parts(choices.parts)
    if "comparison" in parts:
        yield _comparison(task, folder, merged, choices)
    if "thirds" in parts:
        yield _by_thirds(task, folder, merged, choices)
    if "search" in parts:
        yield _search(task, folder, merged, choices)
    if "learn" in parts:
        yield from _learning(task, seed, folder, merged, choices)


def third_group(levels: Sequence[float]) -> dict[str, Any]:
    """The group of a sweep that gives each third of the depth its factor, the same for both policies."""
    rows = [[level for level in levels for _ in range(LAYERS // len(levels))]] * 2
    name = "thirds " + " ".join(f"{level:g}" for level in levels)
    return {"name": name, "rule": "layerwise", "alpha": 1.0, "options": {"factors": rows, "outside": [1.0, 1.0]}}


def _policies(task: Task, seed: int, folder: Path, choices: Choices) -> Iterator[Stage]:
    """Both policies, those for mixtures of both rewards, and the rivals."""
    trained = {"model_name_or_path": f"{folder}/sft", "seed": seed} | choices.changes
    trained |= choices.dtype | ({"bf16": True} if choices.bf16 else {})

    def ppo(config: str, name: str, **further: Any) -> Stage:
        return Stage("ppo", name, shipped(task, config) | trained | {"output_dir": f"{folder}/{name}"} | further)

    for name in task.policies:
        yield ppo(f"ppo_{name}", name)
    if "comparison" not in task.parts(choices.parts):
        return
    rewards = shipped(task, "ppo_morlhf")["rewards"]
    for share in MIXTURES:
        mixed = [reward | {"weight": weight} for reward, weight in zip(rewards, (share, 1.0 - share), strict=True)]
        yield ppo("ppo_morlhf", _mixture(share), rewards=mixed)
    for kind in choices.rivals:
        for name in task.policies:
            yield ppo(f"ppo_{name}", f"{name}_{kind}", **RIVALS[kind])


def _mixture(share: float) -> str:
    return f"morlhf_{share:g}_{1.0 - share:g}"


def _controlled(folder: Path) -> dict[str, Any]:
    """The texts outside the task, as a sweep reads them."""
    sizes = {key: SWEEP[key] for key in ("control_texts", "control_tokens")}
    return {"control": f"{folder.parent}/control.jsonl", **sizes}


def _comparison(task: Task, folder: Path, merged: dict[str, Any], choices: Choices) -> Stage:
    """The sweep that compares all groups."""
    compared = {
        "morlhf": [f"{folder}/{_mixture(share)}" for share in MIXTURES],
        "policy_sets": [
            {"name": kind, "policies": [f"{folder}/{name}_{kind}" for name in task.policies], "alpha": 1.0}
            for kind in choices.rivals
        ],
        "groups": [group for group in SWEEP["groups"] if group["rule"] in choices.rules],
        "output_dir": f"{folder}/sweep",
    }
    swept = shipped(task, "sweep") | SWEEP | merged | compared
    return Stage("sweep", "sweep", swept | choices.dtype | _controlled(folder) | choices.changes)


def _by_thirds(task: Task, folder: Path, merged: dict[str, Any], choices: Choices) -> Stage:
    """The sweep that gives every third of the depth a factor of its own."""
    by_third = {
        "output_dir": f"{folder}/thirds",
        "morlhf": [],
        "sampler": "list",
        "weights": ["0.5 0.5"],
        "scalings": ["1.0 0.0"],  # LiNeS as the soup: the groups are what is compared
        "controls": False,
        "groups": [third_group(levels) for levels in itertools.product(LEVELS, repeat=len(THIRDS))],
        "test_prompts": 200,
    }
    unused = {"num_weights", "alphas", "betas", "edge_extensions", "validation_prompts", "validation_weights"}
    swept = {key: value for key, value in shipped(task, "sweep").items() if key not in unused}
    given = choices.dtype | _controlled(folder) | choices.changes
    return Stage("sweep", "thirds", swept | merged | by_third | given)


def _search(task: Task, folder: Path, merged: dict[str, Any], choices: Choices) -> Stage:
    """The sweep that searches for a front, beside rules that are tuned at the same cost."""
    shared = ("test_prompts", "num_weights", "validation_weights", "edge_extensions")
    searched = {key: SWEEP[key] for key in shared} | {"output_dir": f"{folder}/search"}
    if "comparison" in task.parts(choices.parts) or is_complete(folder / "sweep"):
        searched["reuse"] = f"{folder}/sweep"
    left_out = ("control", "control_texts", "control_tokens")
    swept = {key: value for key, value in shipped(task, "sweep").items() if key not in left_out}
    return Stage("sweep", "search", swept | SEARCH | merged | searched | choices.dtype | choices.changes)


def _learning(task: Task, seed: int, folder: Path, merged: dict[str, Any], choices: Choices) -> Iterator[Stage]:
    """Factors for equal preferences, by every method."""
    swept = shipped(task, "sweep")
    shared = {key: swept[key] for key in LEARNED_AS_SWEPT if key in swept} | LEARNING | merged
    for method, options in LEARNERS.items():
        named = {"method": method, "output_dir": f"{folder}/learn_{method}", "seed": seed}
        yield Stage("learn", f"learn_{method}", shared | named | options | choices.dtype | choices.changes)
