"""The settings of a sweep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

from reward_models.base import is_number
from rlhf_lines.config import RunConfig, from_json, read_fields
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.errors import Problems
from rlhf_lines.merge.schedules import GROWING, schedules_without_effect
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.schema import LINES, REVERSED, SCALED, SEARCHED
from rlhf_lines.redaction import without_secrets
from rlhf_lines.sweep.choices import (
    Alpha,
    GroupEntry,
    Scaling,
    Tunable,
    distinct,
    grid,
    grid_problems,
    group_problems,
    growth_given,
    profile_problems,
    read_alpha,
    read_weights,
    scaling_problems,
    weights_problems,
)
from rlhf_lines.sweep.completion_config import SAMPLING, CompletionConfig
from rlhf_lines.sweep.policy_sets import PolicySet, all_policies, set_problems
from rlhf_lines.sweep.router import Router
from rlhf_lines.sweep.trackers import tracker_problems
from rlhf_lines.task_rewards import raw_score_problems


ENGINES = ("local", "vllm")
WISE_FT = "wise_ft"
SAMPLERS = ("grid", "list", "dirichlet", "map", "search")
# Arguments of vLLM by which it computes the same on other devices or in other batches: a resumed sweep may change them.
CAPACITY = {
    *("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size", "enable_expert_parallel"),
    *("data_parallel_size", "data_parallel_backend", "distributed_executor_backend", "nnodes", "block_size"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "swap_space", "cpu_offload_gb"),
    *("max_num_seqs", "max_num_batched_tokens", "max_loras", "max_cpu_loras", "fully_sharded_loras"),
    *("enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "async_scheduling"),
    *("download_dir", "disable_log_stats", "max_parallel_loading_workers", "disable_custom_all_reduce"),
}
OF_SAMPLER = {"map_points": "map", "search_points": "search", "search_gain": "search"}  # with others without effect


def _mapping(value: object) -> dict[str, Any]:
    """The arguments of vllm.LLM, from a mapping or the JSON of one."""
    value = from_json("vllm", value)
    if not isinstance(value, dict):
        raise ValueError(f"vllm holds {value!r}, expected a mapping")
    return value


def _bounds(value: object) -> dict[str, float]:
    """The lowest mean of each score that is named, from a mapping or the JSON of one."""
    value = from_json("minimum", value)
    if not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"minimum holds {value!r}, expected a mapping from names of scores: {{harmless: 0.5}}")
    for name, least in value.items():
        if not is_number(least):
            raise ValueError(f"minimum of {name} is {least!r}, expected a finite number")
    return {name: float(least) for name, least in value.items()}


@dataclass
class SweepConfig(CompletionConfig):
    """What is swept, how the scaling is chosen, and who generates."""

    output_dir: str = field(metadata={"help": "The folder to make: run.sqlite, front.json, figures, report.html."})
    objectives: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of the rewards that fronts are made of, in this order; left out, all. The others are "
            "metrics, which are measured and shown beside."
        },
    )
    reference_point: list[float] = field(
        default_factory=list,
        metadata={
            "help": "From where hypervolumes are measured, a number per objective, so that sweeps can share it; left "
            "out, a little below the SFT model and the single policies."
        },
    )
    morlhf: list[str] = field(
        default_factory=list,
        metadata={"help": "PEFT folders of runs on a weighted sum of rewards (MORLHF): each a point of its own."},
    )
    sampler: str = field(
        default="grid",
        metadata={
            "help": "Which interpolation weights: grid (on the simplex), list (weights), dirichlet (random), map (a "
            "few, then those that a quadratic fit predicts to be on the front), or search (grid, and a group of merges "
            "with factors of their own by policy and layer, found on validation prompts)."
        },
    )
    num_weights: int = field(
        default=11,
        metadata={
            "help": "Of grid: weights per axis of the simplex, 11 is 0, 0.1 .. 1. Of dirichlet: how many beside the "
            "single policies. Of map: how many before the fit."
        },
    )
    weights: list[tuple[float, ...]] = field(
        default_factory=list,
        metadata={"help": "Of list: one text per point, a number per policy: '0.3 0.7'.", "parse": read_weights},
    )
    map_points: int = field(default=4, metadata={"help": "Of map: how many predicted weights are measured."})
    search_points: int = field(
        default=100,
        metadata={
            "help": "Of search: how many merges it measures on validation prompts, at most; what it begins with is "
            "measured in any case."
        },
    )
    search_gain: float = field(
        default=0.005,
        metadata={"help": "Of search: two generations that add less than this share of hypervolume each end it."},
    )
    alphas: list[float | Literal["auto"]] = field(
        default_factory=lambda: ["0.5", "1.0"],
        metadata={"help": "LiNeS alphas to choose from on validation prompts: numbers, or auto.", "parse": read_alpha},
    )
    betas: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "LiNeS betas to choose from on validation prompts."}
    )
    schedules: list[str] = field(
        default_factory=lambda: ["linear"],
        metadata={"help": f"Schedules to choose from on validation prompts: {', '.join(GROWING)}."},
    )
    scalings: list[Scaling] = field(
        default_factory=list,
        metadata={
            "help": "In place of alphas, betas and schedules, what to choose from: '1.0 0.5 linear' each.",
            "parse": Scaling.of,
        },
    )
    controls: bool = field(
        default=True,
        metadata={
            "help": "Also sweep one factor for all layers, and LiNeS upside down, each chosen as LiNeS is and among as "
            "many candidates."
        },
    )
    scaled_alphas: list[float | Literal["auto"]] = field(
        default_factory=list,
        metadata={
            "help": "The factors for all layers that the control, and groups and policy_sets without an alpha, choose "
            "from; left out, as many as LiNeS has candidates, evenly from the smallest to the largest of their mean "
            "factors.",
            "parse": read_alpha,
        },
    )
    edge_extensions: int = field(
        default=6,
        metadata={
            "help": "How many more candidates a group gets where its best one has the largest or smallest alpha or "
            "beta, one step beyond; 0 only says so."
        },
    )
    minimum: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "Choose among candidates whose every point has at least these mean scores on validation prompts, "
            "of rewards by their names, as a mapping: {harmless: 0.5}.",
            "parse": _bounds,
        },
    )
    groups: list[GroupEntry] = field(
        default_factory=list,
        metadata={
            "help": "Further groups to compare: mappings with name, rule, and options, alpha, beta, schedule, "
            "statistics as a merge has them, or router; with lists alphas, betas, schedules or scalings they are "
            "chosen from. An alpha that is left out is chosen among scaled_alphas.",
            "parse": GroupEntry.of,
        },
    )
    policy_sets: list[PolicySet] = field(
        default_factory=list,
        metadata={
            "help": "Other policies to compare, each set a group of its own: mappings with name, policies and, for "
            "Bone Soup, mixing: the reward weights that each of them was trained on; with alpha, one factor for all "
            "layers, or alphas to choose it from. An alpha that is left out is chosen among scaled_alphas.",
            "parse": PolicySet.of,
        },
    )
    wise_ft: bool = field(
        default=False,
        metadata={
            "help": "Also sweep each policy alone, from the SFT model (0) to the policy (1) in num_weights steps; a "
            "single policy is anyway."
        },
    )
    validation_weights: int = field(default=5, metadata={"help": "Interpolation weights per axis while choosing."})
    validation_prompts: int = field(default=100, metadata={"help": "Prompts for choosing alpha, beta and schedule."})
    test_prompts: int = field(default=200, metadata={"help": "Prompts for everything that is reported."})
    report_to: list[str] = field(
        default_factory=list,
        metadata={"help": "Trackers that get points as they finish: trackio, wandb, tensorboard, mlflow, ..."},
    )
    reuse: str | None = field(
        default=None,
        metadata={
            "help": "A sweep, finished or stopped, to which this one adds prompts, samples, weights, groups or "
            "policies: of its completions, those that would be the same are taken over."
        },
    )
    engine: str = field(default="local", metadata={"help": "Who generates: local, or vllm."})
    vllm: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Arguments of vllm.LLM, as a mapping: {tensor_parallel_size: 2}.", "parse": _mapping},
    )
    # What was given, as in the file: the run store keeps it. `dataclasses.replace` passes on what its source was given.
    given: InitVar[dict[str, Any] | None] = None

    def __post_init__(self, given: dict[str, Any] | None) -> None:
        # An empty value is left to read_fields, which says so of every key.
        names = {"engine": ENGINES, "sampler": SAMPLERS}
        problems = Problems([*self.value_problems(self._least(), names), *self._conflicts()])
        with problems.collect():
            self.given = read_fields(self, given)
            Problems(self._choices()).check()
        problems.check()

    @property
    def sampling(self) -> dict[str, Any]:
        """What completions and their KL depend on, beside models, prompts and specs: the settings of `SAMPLING`.

        Of the arguments of vLLM they are those that are not of `CAPACITY`; a secret among them is left out.
        """
        written = without_secrets({name: value for name, value in (self.vllm or {}).items() if name not in CAPACITY})
        return without_secrets({key: self.given[key] for key in SAMPLING}) | {"vllm": written or None}

    @property
    def candidates(self) -> list[Scaling]:
        """The scalings of LiNeS to choose from: those of the list, or, without one, of the grid; each merge once."""
        return distinct(self.scalings) or grid(self.alphas, self.betas, self.schedules)

    @property
    def candidate_counts(self) -> dict[str, int]:
        """How many scalings there are to choose from, by group; groups that have one given are left out."""
        count, factors = len(self.candidates), self._factors
        controls = {SCALED: len(factors), REVERSED: count} if self.controls else {}
        return {LINES: count, **controls, **{entry.name: len(entry.candidates(factors)) for entry in self.tuned}}

    @property
    def merge_counts(self) -> dict[str, int]:
        """How many of `candidate_counts` are merges that LiNeS has not, as far as it is known which factors there are.

        With beta 0 LiNeS is one factor for all layers, and nothing is upside down.
        """
        factors = {scaling.alpha for scaling in self.candidates if not scaling.beta}
        shared = {REVERSED: len(factors), SCALED: len(factors.intersection(self.scaled_alphas))}
        return {name: count - shared.get(name, 0) for name, count in self.candidate_counts.items()}

    @property
    def most_extensions(self) -> int:
        """How many more scalings there may be to choose from, beyond edges, over all groups."""
        return self.edge_extensions * sum(count > 1 for count in self.candidate_counts.values())

    @property
    def tuned(self) -> list[Tunable]:
        """The further groups, and sets of policies, whose scaling is chosen on validation prompts."""
        return [entry for entry in (*self.groups, *self.policy_sets) if entry.is_tuned(self._factors)]

    @property
    def _factors(self) -> list[Alpha]:
        """As many numbers as there are factors for all layers to choose from, each once, and `auto` where it is one.

        Which numbers they are, where `scaled_alphas` is left out, is a matter of the layers: see `factors_of`.
        """
        if self.scaled_alphas:
            return self.scaled_alphas
        count = len(self.candidates)
        auto = ["auto"] if count > 1 and any(scaling.alpha == "auto" for scaling in self.candidates) else []
        return [*auto, *map(float, range(1, 1 + count - len(auto)))]

    @property
    def _of_auto(self) -> list[str]:
        """The groups whose alpha is `auto`, or may be chosen so."""
        alphas = {LINES: [scaling.alpha for scaling in self.candidates], SCALED: self._factors if self.controls else []}
        for entry in (*self.groups, *self.policy_sets):
            alphas[entry.name] = [scaling.alpha for scaling in entry.candidates(self._factors)]
        return [name for name, tried in alphas.items() if "auto" in tried]

    @property
    def chooses(self) -> bool:
        """Whether validation prompts are measured: a group has several candidates, or there is a limit to keep."""
        limits = self.max_kl is not None or self.max_forgetting is not None or self.minimum
        return bool(limits) or self.searches or max(self.candidate_counts.values()) > 1

    @property
    def without_effect(self) -> list[str]:
        """Sentences on what is given and has no effect: told, not refused, as a flag takes no key of a file back."""
        found = []
        if self.sampler == "list" and not self.wise_ft_names and self.is_given("num_weights"):
            found.append(f"num_weights {self.num_weights} has no effect: sampler list has the weights that are given")
        if not self.chooses and (names := [*filter(self.is_given, ("validation_weights", "validation_prompts"))]):
            found.append(
                f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} no effect: no group has several scalings "
                "to choose from, and there is no limit to keep"
            )
        found += schedules_without_effect(growth_given(self.scalings, self.betas, self.schedules))
        for entry in self.groups:
            if entry.router is None:  # its scaling is the router's
                growth = growth_given(entry.scalings, entry.betas or [entry.beta], entry.schedules or [entry.schedule])
                found += [f"groups: {entry.name}: {sentence}" for sentence in schedules_without_effect(growth)]
        return found

    @property
    def searches(self) -> bool:
        """Whether a front is searched for on validation prompts."""
        return self.sampler == "search"

    @property
    def wise_ft_names(self) -> dict[str, int]:
        """The groups that sweep one policy alone, and which one each does."""
        if len(self.policies) == 1:
            return {WISE_FT: 0}
        names = policy_names(self.policies) if self.wise_ft else []
        numbered = len(set(names)) < len(names)
        return {f"{WISE_FT} {name}{f' {k + 1}' if numbered else ''}": k for k, name in enumerate(names)}

    @property
    def listed_policies(self) -> list[str]:
        """Every policy, in the order of the specs' weights."""
        return all_policies(self.policies, self.morlhf, self.policy_sets)

    def _least(self) -> dict[str, int]:
        """The least that a number may be."""
        return {
            "num_weights": 1 if self.sampler == "dirichlet" else 2,  # the single policies come beside random ones
            "map_points": 1,
            "search_points": 1,
            "validation_weights": 2,
            "validation_prompts": 2,
            "test_prompts": 2,
            "edge_extensions": 0,
        }

    def _conflicts(self) -> Iterator[str]:
        """What is wrong with search_gain, and between samplers, weights, engines and policies."""
        if self.search_gain is not None and not (math.isfinite(self.search_gain) and self.search_gain >= 0):
            yield f"search_gain is {self.search_gain}, expected a number of at least 0"
        if self.sampler is not None and (self.sampler == "list") != bool(self.weights):
            yield (
                "sampler is list, but no weights are given"
                if self.sampler == "list"
                else f"weights are given, but sampler is {self.sampler}: use sampler list, or leave them out"
            )
        if self.engine != "vllm" and self.vllm is not None:
            yield f"vllm is given, but engine is {self.engine}: leave it out, or use engine vllm"
        if self.engine == "vllm" and self.quantized:
            yield "load_in_8bit and load_in_4bit are of engine local: give vllm {quantization: ...} instead"
        if self.wise_ft and self.sampler == "dirichlet" and self.num_weights == 1:
            yield (
                "num_weights is 1, but wise_ft goes from the SFT model to each policy in as many steps: give 2 or "
                "more, or leave wise_ft out"
            )
        if len(self.policies) == 1 and self.sampler in ("dirichlet", "map"):
            yield f"sampler is {self.sampler}, but a single policy has no mixtures: use grid, or list"

    def _of_sampler(self) -> Iterator[str]:
        """What is given of another sampler, and has no effect."""
        for name, sampler in OF_SAMPLER.items():
            if self.sampler != sampler and self.is_given(name):
                yield f"{name} is given, but sampler is {self.sampler}: use sampler {sampler}, or leave it out"

    def _grid_problems(self) -> Iterator[str]:
        """What is wrong with the grids of weights."""
        if self.sampler in ("grid", "search"):
            yield from grid_problems("num_weights", self.num_weights, self.policies, ", or sampler dirichlet")
        if self.chooses:
            yield from grid_problems("validation_weights", self.validation_weights, self.policies)

    def _limits(self) -> Iterator[str]:
        """What is wrong with the controls and the limits within which is chosen."""
        if len(set(self.scaled_alphas)) < len(self.scaled_alphas):
            yield f"scaled_alphas is {self.scaled_alphas}, expected every value once"
        takes_factors = any(entry.leaves_alpha_out for entry in (*self.groups, *self.policy_sets))
        if self.scaled_alphas and not (self.controls or takes_factors):
            yield "scaled_alphas is given, but controls is false: leave it out, or leave controls on"
        yield from self.limit_problems()

    def _choices(self) -> list[str]:
        problems = [
            *raw_score_problems(self.rewards),
            *scaling_problems(self.scalings, self.alphas, self.betas, self.schedules, given=self.given["scalings"]),
            *weights_problems(self.weights, len(self.policies), given=self.given["weights"], auto=self._of_auto),
            *group_problems(self.groups),
            *profile_problems(self.groups, policies=len(self.policies)),
            *set_problems(self.policy_sets, len(self.policies), groups=[entry.name for entry in self.groups]),
            *self._limits(),
            *self._grid_problems(),
            *self._of_sampler(),
            *tracker_problems(self.report_to),
        ]
        names = {entry.name for entry in (*self.groups, *self.policy_sets)}
        if self.searches and SEARCHED in names:
            problems.append(f"groups: {SEARCHED!r} is the name of the group of sampler search: choose another one")
        taken = {entry.name for entry in self.groups} & self.wise_ft_names.keys()
        problems += [f"groups: {name!r} is the name of a group of wise_ft: choose another one" for name in taken]
        for entry in self.groups:
            problems += self._of_router(entry) if entry.router is not None else []
            if entry.is_linear:
                continue
            if self.engine == "vllm":
                problems.append(f"group {entry.name} has rule {entry.rule}, which no adapter holds: use engine local")
            if self.quantized:
                problems.append(
                    f"group {entry.name} has rule {entry.rule}, which needs the weights of the SFT model: leave out "
                    "load_in_8bit and load_in_4bit, or the group"
                )
        return problems

    def _of_router(self, entry: GroupEntry) -> Iterator[str]:
        """What is wrong with a group whose weights depend on the prompt."""
        routed = len(Router.read(entry.router).points[0])
        if routed != len(self.policies):
            yield f"group {entry.name} has a router for {routed} policies, but {len(self.policies)} are merged"
        if self.engine == "vllm":
            yield (
                f"group {entry.name} has weights that depend on the prompt, for which vLLM would need an adapter per "
                "prompt: use engine local"
            )
        if any(min(row) < 0 or sum(row) <= 0 for row in self.weights):
            yield f"group {entry.name} takes weights as a preference: give weights of at least 0, one of them above"


SWEEP = (RunConfig, PromptDataConfig, SweepConfig)
