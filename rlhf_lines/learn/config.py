"""The settings of learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf_lines.completions import samples_policy
from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.errors import Problems, alternatives
from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.sweep.sampling_settings import limit_problems, sampling_problems
from rlhf_lines.task_rewards import RewardEntry, raw_score_problems


METHODS = ("evolution", "natural_niches", "adamerging", "atlas", "frank_wolfe", "reward_gradient", "grid")
PROPOSING = ("evolution", "natural_niches")  # many candidates
BY_ADAM = ("adamerging", "atlas", "reward_gradient")
STEPS = {**dict.fromkeys(BY_ADAM, 500), "frank_wolfe": 10}  # of methods along gradients, which end at one candidate
FROM_DEMONSTRATIONS = ("atlas", "frank_wolfe")
ARCHIVE = 20  # candidates of natural_niches, as in the paper
AIMS = ("utility", "hypervolume")
SPACES = ("profile", "coefficients", "policies")
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
class LearnConfig:
    """What is learned from which rewards, and how completions are sampled and scored."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders, one per policy."})
    rewards: list[RewardEntry] = field(
        metadata={"help": "Reward models, as a sweep has them.", "parse": RewardEntry.of}
    )
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
    max_kl: float | None = field(
        default=None,
        metadata={
            "help": "Choose among candidates whose every point has at most this mean KL to the SFT model (nats)."
        },
    )
    max_forgetting: float | None = field(
        default=None,
        metadata={
            "help": "Choose among candidates whose every point has at most this times the SFT model's perplexity on "
            "the texts of control."
        },
    )
    control: str | None = field(
        default=None,
        metadata={
            "help": "Texts outside the task that max_forgetting is about: a task, a file, a folder or a Hub id, with a "
            "column text."
        },
    )
    control_texts: int = field(default=100, metadata={"help": "How many of these texts."})
    control_tokens: int = field(default=256, metadata={"help": "Tokens of each that are read."})
    train_prompts: int = field(default=64, metadata={"help": "Training prompts, on which every candidate is measured."})
    validation_prompts: int = field(
        default=100, metadata={"help": "Validation prompts, on which what was found is measured once more."}
    )
    samples_per_prompt: int = field(default=1, metadata={"help": "Completions per prompt and point."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    top_p: float | None = field(
        default=None,
        metadata={"help": "Draw among the most likely tokens that together have this probability; left out, all."},
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw among so many of the most likely tokens; left out, all."}
    )
    stop: list[str] = field(
        default_factory=list, metadata={"help": "Texts that end a completion, which are no part of what is scored."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Completions in one batch; left out, what free memory and a CPU allow."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise and of the search."})
    dtype: str = field(default="float32", metadata={"help": f"{alternatives(LOAD_DTYPES)}, of the loaded SFT model."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the SFT model in 8 bits (bitsandbytes)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the SFT model in 4 bits (bitsandbytes)."})
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The adapters were trained on this very SFT model under another name: its Hub id, a revision, "
            "a folder that has moved. What they call it is not compared; hashes, shapes and tokenizers are."
        },
    )

    def __post_init__(self) -> None:
        problems = Problems([*self._numbers(), *self._names()])
        with problems.collect():
            read_fields(self)
            Problems([*raw_score_problems(self.rewards), *self._aim_problems()]).check()
        problems.check()

    @property
    def steps(self) -> int | None:
        """How many steps a method along gradients takes."""
        return self.num_steps or STEPS.get(self.method)

    @property
    def compares(self) -> bool:
        """Whether LiNeS on a grid is measured beside the method."""
        return self.compare_grid and self.method != "grid"

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in 8 or 4 bits."""
        return self.load_in_8bit or self.load_in_4bit

    @property
    def samples_policy(self) -> bool:
        """Whether completions are drawn from softmax(logits / temperature), so that their log-ratios estimate a KL."""
        return samples_policy(self.temperature, self.top_k, self.top_p)

    def _numbers(self) -> Iterator[str]:
        least = {
            "num_candidates": 2,
            "population": 2,
            "num_steps": 1,
            "soft_steps": 0,
            "step_prompts": 1,
            "num_weights": 2,
            "train_prompts": 2,
            "validation_prompts": 2,
            "samples_per_prompt": 1,
            "control_texts": 2,
            "control_tokens": 2,
            "max_new_tokens": 1,
            "batch_size": 1,
            "top_k": 1,
        }
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                yield f"{name} is {value}, expected at least {low}"
        if self.population is not None and self.num_candidates is not None and self.population > self.num_candidates:
            yield f"population is {self.population}, but num_candidates {self.num_candidates}: give more candidates"
        if self.kl_coef is not None and not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
            yield f"kl_coef is {self.kl_coef}, expected a number of at least 0"
        for name in ("step", "learning_rate"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                yield f"{name} is {value}, expected a number above 0"
        if self.density is not None and not 0 < self.density <= 1:
            yield f"density is {self.density}, expected a number above 0 and at most 1"
        yield from sampling_problems(self)

    def _names(self) -> Iterator[str]:
        for name, known in (("method", METHODS), ("aim", AIMS), ("space", SPACES), ("dtype", LOAD_DTYPES)):
            if (value := getattr(self, name)) is not None and value not in known:
                yield f"{name} is {value!r}, expected {alternatives(known)}"
        for name in ("policies", "rewards"):
            if getattr(self, name) == []:
                yield f"{name} is empty, expected one or more"

    def _aim_problems(self) -> Iterator[str]:
        """What is given and has no effect, and what of a preference is wrong."""
        defaults = LearnConfig.__dataclass_fields__
        for name, methods in OF_METHODS.items():
            if self.method not in methods and getattr(self, name) != defaults[name].default:
                yield f"{name} is given, but method is {self.method}: leave it out"
        many = self.num_candidates != defaults["num_candidates"].default
        if self.method in STEPS and not self.compares and many:
            yield f"num_candidates is given, but method {self.method} has one and compare_grid is false: leave it out"
        if self.method == "frank_wolfe" and self.space == "profile":
            yield "space is profile, but frank_wolfe steps towards policies: give space coefficients, or policies"
        if self.density is not None and self.quantized:
            yield "density needs the weights of the SFT model: leave out load_in_8bit and load_in_4bit, or density"
        unlike_default = self.learning_rate != defaults["learning_rate"].default
        if self.method == "frank_wolfe" and not self.soft_steps and unlike_default:
            yield "learning_rate is given, but soft_steps is 0: give steps of Adam, or leave it out"
        if self.method in ("natural_niches", "reward_gradient") and self.aim == "hypervolume":
            yield f"aim is hypervolume, but {self.method} needs what single prompts are worth: use aim utility"
        if self.method == "reward_gradient" and not (self.temperature == 1 and self.samples_policy):
            yield "reward_gradient needs completions drawn at temperature 1: leave out temperature, top_p and top_k"
        size = self.population or ARCHIVE
        if self.method == "natural_niches" and self.num_candidates <= size:
            yield f"num_candidates is {self.num_candidates}, expected more than the {size} of the first archive"
        if self.aim == "hypervolume":
            if self.preference:
                yield "preference is given, but aim is hypervolume: leave it out, or use aim utility"
        elif self.num_weights != defaults["num_weights"].default:
            yield "num_weights is given, but aim is utility: leave it out, or use aim hypervolume"
        if self.aim == "hypervolume" and len(self.policies) < 2:
            yield "aim is hypervolume, but a single policy has no front: use aim utility"
        yield from limit_problems(self)
        if self.control and self.max_forgetting is None:
            yield "control is given, but no max_forgetting: give both, or leave it out"
        if self.preference:
            count = len(self.objectives or self.rewards)
            numbers = all(math.isfinite(value) and value >= 0 for value in self.preference)
            if len(self.preference) != count or not numbers or not any(self.preference):
                yield f"preference is {self.preference}, expected {count} numbers of at least 0, one per objective"


LEARN = (RunConfig, PromptDataConfig, LearnConfig)
