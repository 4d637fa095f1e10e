"""The settings of learning."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.errors import Problems
from rlhf_lines.sweep.choices import grid_problems
from rlhf_lines.sweep.completion_config import CompletionConfig
from rlhf_lines.task_rewards import raw_score_problems


METHODS = ("evolution", "natural_niches", "adamerging", "atlas", "frank_wolfe", "reward_gradient", "grid")
PROPOSING = ("evolution", "natural_niches")  # many candidates
BY_ADAM = ("adamerging", "atlas", "reward_gradient")
STEPS = {**dict.fromkeys(BY_ADAM, 500), "frank_wolfe": 10}  # of methods along gradients, which end at one candidate
FROM_DEMONSTRATIONS = ("atlas", "frank_wolfe")
ARCHIVE = 20  # candidates of natural_niches, as in the paper
AIMS = ("utility", "hypervolume")
SPACES = ("profile", "coefficients", "policies")
NAMES = {"method": METHODS, "aim": AIMS, "space": SPACES}
LEAST = {
    "num_candidates": 2,
    "population": 2,
    "num_steps": 1,
    "soft_steps": 0,
    "step_prompts": 1,
    "num_weights": 2,
    "train_prompts": 2,
    "validation_prompts": 2,
}
# Of which methods a setting is; with others it would have no effect.
OF_METHODS = {
    "population": PROPOSING,
    "step": PROPOSING,
    "num_steps": tuple(STEPS),
    "learning_rate": (*BY_ADAM, "frank_wolfe"),
    "soft_steps": ("frank_wolfe",),
    "step_prompts": tuple(STEPS),
    "density": ("adamerging",),
    "kl_coef": ("reward_gradient",),
    "space": (*PROPOSING, *STEPS),
    "compare_grid": (*PROPOSING, *STEPS),
}


@dataclass
class LearnConfig(CompletionConfig):
    """What is learned, and how."""

    output_dir: str = field(metadata={"help": "The folder to make: factors.json, learned.json, run.sqlite."})
    method: str = field(
        default="evolution",
        metadata={
            "help": "By the rewards: evolution (CMA-ES), natural_niches, reward_gradient; by the entropy of the next "
            "tokens of prompts: adamerging; by demonstrations: atlas, frank_wolfe; or grid (LiNeS, as a comparison)."
        },
    )
    aim: str = field(
        default="utility",
        metadata={
            "help": "What a candidate is worth: the utility of its scores for a preference, or the hypervolume of the "
            "front that its factors give at num_weights weights per axis."
        },
    )
    preference: list[float] = field(
        default_factory=list,
        metadata={"help": "Of aim utility: a number per objective, 0.7 0.3; left out, all alike."},
    )
    space: str = field(
        default="profile",
        metadata={
            "help": "What is searched: profile (alpha, beta and a bend of each policy), coefficients (a factor for "
            "each policy and layer) or policies (one for each policy)."
        },
    )
    objectives: list[str] = field(
        default_factory=list, metadata={"help": "Names of the rewards that count, in this order; left out, all."}
    )
    num_candidates: int = field(default=200, metadata={"help": "How many candidates are measured, at most."})
    population: int | None = field(
        default=None,
        metadata={
            "help": "Of evolution, candidates of one generation; left out, 4 + 3 ln n in n dimensions. Of "
            "natural_niches, of the archive; left out, 20."
        },
    )
    step: float = field(
        default=0.3, metadata={"help": "First standard deviation of candidates, where 1 is the soup's factor."}
    )
    num_steps: int | None = field(
        default=None, metadata={"help": "Steps along gradients; left out, 500, and 10 of frank_wolfe."}
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Of these steps (Adam), where 1 is the soup's factor."}
    )
    soft_steps: int = field(
        default=0,
        metadata={
            "help": "Of frank_wolfe: steps of Adam among the policies chosen so far, after each of its own; 0 is the "
            "paper's hard form."
        },
    )
    density: float | None = field(
        default=None,
        metadata={
            "help": "Of adamerging: learn on residuals that TIES has trimmed to this share of their entries, where "
            "signs agree (AdaMerging++, 0.2 there); left out, on whole ones. Slower: merged weights are dense."
        },
    )
    step_prompts: int = field(default=16, metadata={"help": "Prompts of one such step."})
    kl_coef: float = field(
        default=0.01, metadata={"help": "Of reward_gradient: utility that a nat of KL to the SFT model costs."}
    )
    compare_grid: bool = field(
        default=True, metadata={"help": "Also measure LiNeS on a grid of as many candidates, and tell which is better."}
    )
    num_weights: int = field(default=5, metadata={"help": "Of aim hypervolume: weights per axis of the simplex."})
    train_prompts: int = field(default=64, metadata={"help": "Training prompts, on which every candidate is measured."})
    validation_prompts: int = field(
        default=100, metadata={"help": "Validation prompts, on which what was found is measured once more."}
    )

    def __post_init__(self) -> None:
        problems = Problems([*self.value_problems(LEAST, NAMES), *self._numbers()])
        with problems.collect():
            read_fields(self)
            Problems(
                [
                    *raw_score_problems(self.rewards),
                    *self._unused(),
                    *self._method_problems(),
                    *self.limit_problems(),
                    *self._preference_problems(),
                ]
            ).check()
        problems.check()

    @property
    def steps(self) -> int | None:
        """How many steps a method along gradients takes."""
        return self.num_steps or STEPS.get(self.method)

    @property
    def compares(self) -> bool:
        """Whether LiNeS on a grid is measured beside the method."""
        return self.compare_grid and self.method != "grid"

    def _numbers(self) -> Iterator[str]:
        if self.population is not None and self.num_candidates is not None and self.population >= self.num_candidates:
            yield f"population is {self.population}, but num_candidates {self.num_candidates}: give more candidates"
        if self.kl_coef is not None and not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
            yield f"kl_coef is {self.kl_coef}, expected a number of at least 0"
        for name in ("step", "learning_rate"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                yield f"{name} is {value}, expected a number above 0"
        if self.density is not None and not 0 < self.density <= 1:
            yield f"density is {self.density}, expected a number above 0 and at most 1"

    def _unused(self) -> Iterator[str]:
        """What is given and has no effect."""
        defaults = LearnConfig.__dataclass_fields__

        def is_given(name: str) -> bool:
            return getattr(self, name) != defaults[name].default

        for name, methods in OF_METHODS.items():
            if self.method not in methods and is_given(name):
                yield f"{name} is given, but method is {self.method}: leave it out"
        if self.method in STEPS and not self.compares and is_given("num_candidates"):
            yield f"num_candidates is given, but method {self.method} has one and compare_grid is false: leave it out"
        if self.method == "frank_wolfe" and not self.soft_steps and is_given("learning_rate"):
            yield "learning_rate is given, but soft_steps is 0: give steps of Adam, or leave it out"
        if self.aim == "hypervolume" and self.preference:
            yield "preference is given, but aim is hypervolume: leave it out, or use aim utility"
        if self.aim != "hypervolume" and is_given("num_weights"):
            yield "num_weights is given, but aim is utility: leave it out, or use aim hypervolume"
        if self.control and self.max_forgetting is None:
            yield "control is given, but no max_forgetting: give both, or leave it out"

    def _method_problems(self) -> Iterator[str]:
        """What a method, or an aim, cannot do."""
        if self.method == "frank_wolfe" and self.space == "profile":
            yield "space is profile, but frank_wolfe steps towards policies: give space coefficients, or policies"
        if self.method == "evolution" and importlib.util.find_spec("cma") is None:
            yield "method evolution needs the package cma: pip install cma"
        if self.density is not None and self.quantized:
            yield "density needs the weights of the SFT model: leave out load_in_8bit and load_in_4bit, or density"
        if self.method in ("natural_niches", "reward_gradient") and self.aim == "hypervolume":
            yield f"aim is hypervolume, but {self.method} needs what single prompts are worth: use aim utility"
        if self.method == "reward_gradient" and not (self.temperature == 1 and self.samples_policy):
            yield "reward_gradient needs completions drawn at temperature 1: leave out temperature, top_p and top_k"
        size = self.population or ARCHIVE
        if self.method == "natural_niches" and self.num_candidates <= size:
            yield f"num_candidates is {self.num_candidates}, expected more than the {size} of the first archive"
        if self.aim == "hypervolume":
            yield from grid_problems("num_weights", self.num_weights, self.policies)
            if len(self.policies) < 2:
                yield "aim is hypervolume, but a single policy has no front: use aim utility"

    def _preference_problems(self) -> Iterator[str]:
        if self.preference:
            count = len(self.objectives or self.rewards)
            numbers = all(math.isfinite(value) and value >= 0 for value in self.preference)
            if len(self.preference) != count or not numbers or not any(self.preference):
                yield f"preference is {self.preference}, expected {count} numbers of at least 0, one per objective"


LEARN = (RunConfig, PromptDataConfig, LearnConfig)
