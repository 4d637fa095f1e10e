"""Stage ``sweep``: merge, sample and score many specs, choose alpha and beta, and trace the fronts."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from rlhf_lines import data
from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import DataConfig, RunConfig
from rlhf_lines.judges import load_judges
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.checkpoint import checkpoint_sha256, sha256_of
from rlhf_lines.merge.residuals import WEIGHTS_FILE, check_same_base, load_adapter
from rlhf_lines.models import local_folder
from rlhf_lines.pareto import Point, hypervolume, paired_difference, reference_point
from rlhf_lines.sweep.front import measured_points, trace_front
from rlhf_lines.sweep.sampling import Request, sample
from rlhf_lines.sweep.store import Row, Store


SOUP, LINES, SFT = "rewarded_soup", "lines", "sft"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class SweepConfig:
    """What is swept, and how its points are sampled and scored."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders, one per policy."})
    reward_models: list[str] = field(
        metadata={"help": "Folders of the reward stage, presets, Hub ids, or module:function."}
    )
    output_dir: str = field(metadata={"help": "The folder to make: run.sqlite, front.json, front.png."})
    num_weights: int = field(
        default=11, metadata={"help": "Interpolation weights per axis of the simplex: 11 is 0, 0.1 .. 1."}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "LiNeS alphas to choose from on validation prompts."}
    )
    betas: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "LiNeS betas to choose from on validation prompts."}
    )
    validation_weights: int = field(default=5, metadata={"help": "Interpolation weights per axis while choosing."})
    validation_prompts: int = field(default=100, metadata={"help": "Prompts for choosing alpha and beta."})
    test_prompts: int = field(default=200, metadata={"help": "Prompts for everything that is reported."})
    samples_per_prompt: int = field(default=1, metadata={"help": "Completions per prompt and point."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    batch_size: int = field(default=256, metadata={"help": "Completions in one batch, of any specs."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise and of the bootstrap."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16, of the loaded SFT model."})

    def __post_init__(self) -> None:
        numbers = {
            "num_weights": (self.num_weights, 2),
            "validation_weights": (self.validation_weights, 2),
            "validation_prompts": (self.validation_prompts, 2),
            "test_prompts": (self.test_prompts, 2),
            "samples_per_prompt": (self.samples_per_prompt, 1),
            "max_new_tokens": (self.max_new_tokens, 1),
            "batch_size": (self.batch_size, 1),
        }
        problems = [
            f"{name} is {value}, expected at least {least}" for name, (value, least) in numbers.items() if value < least
        ]
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature is {self.temperature}, expected a number >= 0")
        for name, values in (("alphas", self.alphas), ("betas", self.betas)):
            if not values or not all(map(math.isfinite, values)):
                problems.append(f"{name} is {values}, expected one or more finite numbers")
            elif len(set(values)) < len(values):
                problems.append(f"{name} is {values}, expected every value once")
        if self.dtype not in DTYPES:
            problems.append(f"dtype is {self.dtype!r}, expected float32, bfloat16 or float16")
        if len(self.policies) < 2:
            problems.append(f"policies has {len(self.policies)} folder, expected two or more")
        if len(self.reward_models) < 2:
            problems.append(f"reward_models has {len(self.reward_models)}, expected two or more")
        if problems:
            raise ValueError("; ".join(problems))


CONFIGS = (RunConfig, DataConfig, SweepConfig)


def run(run_config: RunConfig, data_config: DataConfig, config: SweepConfig, given: dict) -> Path:
    """Sweep, and return the folder with the run store, ``front.json`` and ``front.png``.

    1. On validation prompts, every (alpha, beta) of the grid is sampled at a few weights; the pair whose front has the
       largest hypervolume is chosen.
    2. On test prompts, the SFT model, the rewarded soup (alpha 1, beta 0) and LiNeS with the chosen pair are sampled at
       all weights and scored by all reward models.

    With ``--resume`` a killed sweep goes on: finished completions are not sampled again.

    Raises:
        FileNotFoundError: a model, policy or reward model does not exist.
        FileExistsError: ``output_dir`` exists.
        ValueError: a policy belongs to another SFT model, or two reward models have one name.
    """
    sft = local_folder(config.sft_model, what="SFT model")
    adapters = [load_adapter(policy) for policy in config.policies]
    check_same_base(adapters, sft)
    judges = load_judges(config.reward_models, data_config.dataset_name, batch_size=config.batch_size)
    names = [judge.name for judge in judges]
    prompts = {
        split: _distinct(data.load(data_config.dataset_name, "prompts", split)["prompt"])[:count]
        for split, count in (("validation", config.validation_prompts), ("test", config.test_prompts))
    }
    with new_folder(
        config.output_dir, overwrite=run_config.overwrite, keep_partial=run_config.resume, leave_partial=True
    ) as folder:
        with Store(folder) as store:
            changeable = ("overwrite", "resume", "output_dir", "batch_size")
            settings = {key: value for key, value in vars(config).items() if key not in changeable}
            store.remember(
                **settings,
                dataset_name=data_config.dataset_name,
                rewards=names,
                prompts_sha256=hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
                sft_sha256=checkpoint_sha256(sft),
                policies_sha256=[sha256_of([Path(policy) / WEIGHTS_FILE]) for policy in config.policies],
            )
            sampler = _Sampler(config, sft, adapters, judges, store)
            alpha, beta, grid = _choose(sampler, prompts["validation"], names)
            _measure(sampler, prompts["test"], alpha, beta)
            gains = _gains(measured_points(store, "test"), names, config)
        trace_front(folder)
        write_record(folder, "sweep", given, seed=config.seed, alpha=alpha, beta=beta, validation=grid, gains=gains)
    return Path(config.output_dir)


def simplex(num_policies: int, num_weights: int) -> list[tuple[float, ...]]:
    """Return all weights >= 0 that sum to 1, in steps of 1 / (num_weights - 1) per axis, last policy first to grow.

    >>> simplex(2, 3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    steps = num_weights - 1
    counts = itertools.product(range(steps, -1, -1), repeat=num_policies)
    return [tuple(count / steps for count in row) for row in counts if sum(row) == steps]


class _Sampler:
    """Samples and scores what the store does not hold yet."""

    def __init__(self, config: SweepConfig, sft: Path, adapters, judges, store: Store) -> None:
        self.config, self.store, self.judges = config, store, judges
        self.num_policies = len(adapters)
        self._sft, self._adapters = sft, adapters
        self._mixture = self._tokenizer = None

    def points(
        self, split: str, groups: dict[str, Sequence[MergeSpec]], prompts: Sequence[str]
    ) -> list[tuple[int, str, MergeSpec]]:
        """Sample and score every spec of every group on the prompts, and return (id, group, spec) of each point."""
        points = [
            (point, group, spec)
            for group, specs in groups.items()
            for point, spec in self.store.add_points(split, group, specs)
        ]
        ids = self.store.add_prompts(split, prompts)
        finished = self.store.finished()
        samples = range(self.config.samples_per_prompt)
        # Prompt by prompt: the specs of one prompt share their noise, and equal lengths need no padding.
        todo = [
            (point, spec, prompt, text, sample_id)
            for prompt, text in sorted(zip(ids, prompts, strict=True), key=lambda pair: (len(pair[1]), pair[0]))
            for sample_id in samples
            for point, _, spec in points
            if (point, prompt, sample_id) not in finished
        ]
        total = len(points) * len(prompts) * len(samples)
        with tqdm(total=total, initial=total - len(todo), desc=f"sweep, {split} prompts", unit="completions") as bar:
            for chunk in _chunks(todo, self.config.batch_size):
                self.store.add(self._sample(chunk))
                bar.update(len(chunk))
        return points

    def _sample(self, chunk) -> Iterator[Row]:
        mixture, tokenizer = self._load()
        requests = [
            Request(spec, tuple(tokenizer(text)["input_ids"]), _key(text), sample_id)
            for _, spec, _, text, sample_id in chunk
        ]
        completions = sample(
            mixture,
            requests,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_token_ids=_eos_token_ids(mixture.model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            seed=self.config.seed,
        )
        texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
        asked = [text for *_, text, _ in chunk]
        scores = {judge.name: judge.score(asked, texts) for judge in self.judges}
        for i, ((point, _, prompt, _, sample_id), completion) in enumerate(zip(chunk, completions, strict=True)):
            of_row = {name: values[i] for name, values in scores.items()}
            yield Row(point, prompt, sample_id, texts[i], len(completion.token_ids), completion.kl, of_row)

    def _load(self):
        if self._mixture is None:
            from transformers import AutoModelForCausalLM

            from rlhf_lines.models import load_tokenizer
            from rlhf_lines.sweep.mixture import Mixture

            model = AutoModelForCausalLM.from_pretrained(self._sft, dtype=self.config.dtype).eval()
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            self._tokenizer = load_tokenizer(self._sft)
            self._mixture = Mixture(model, self._adapters)
        return self._mixture, self._tokenizer


def _choose(sampler: _Sampler, prompts: Sequence[str], names: list[str]) -> tuple[float, float, list[dict]]:
    """Return the (alpha, beta) of the largest validation hypervolume, and the hypervolume of every pair."""
    config = sampler.config
    weights = simplex(sampler.num_policies, config.validation_weights)
    pairs = list(itertools.product(config.alphas, config.betas))
    groups = {f"lines({a},{b})": [MergeSpec("linear", w, a, b) for w in weights] for a, b in pairs}
    points = sampler.points("validation", groups, prompts)
    means = {point: sampler.store.scores(point, names).mean(axis=0) for point, _, _ in points}
    reference = reference_point(np.stack(list(means.values())))
    grid = []
    for (alpha, beta), group in zip(pairs, groups, strict=True):
        scores = np.stack([means[point] for point, of_group, _ in points if of_group == group])
        grid.append({"alpha": alpha, "beta": beta, "hypervolume": hypervolume(scores, reference)})
    best = max(grid, key=lambda row: row["hypervolume"])
    return best["alpha"], best["beta"], grid


def _measure(sampler: _Sampler, prompts: Sequence[str], alpha: float, beta: float) -> None:
    """Sample and score the test points of the SFT model, the rewarded soup and LiNeS."""
    weights = simplex(sampler.num_policies, sampler.config.num_weights)
    groups = {
        SFT: [MergeSpec("linear", (0.0,) * sampler.num_policies)],
        SOUP: [MergeSpec("linear", w) for w in weights],
        LINES: [MergeSpec("linear", w, alpha, beta) for w in weights],
    }
    sampler.points("test", groups, prompts)


def _gains(points: list[Point], names: list[str], config: SweepConfig) -> list[dict]:
    """Return, for every policy and reward, the mean gain over the SFT model in its standard deviations."""
    sft = next(point for point in points if point.group == SFT)
    gains = []
    for k, policy in enumerate(config.policies):
        one_hot = [float(i == k) for i in range(len(config.policies))]
        point = next(p for p in points if p.group == SOUP and p.spec["weights"] == one_hot)
        for j, name in enumerate(names):
            scale = sft.scores[:, j].std() or 1.0  # a reward that is the same for all prompts has no spread
            gain = paired_difference(point.scores[:, j] / scale, sft.scores[:, j] / scale, seed=config.seed)
            gains.append({"policy": policy, "reward": name, "value": gain.value, "low": gain.low, "high": gain.high})
    return gains


def _eos_token_ids(model, tokenizer) -> list[int]:
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({i for i in (*declared, tokenizer.eos_token_id) if i is not None})


def _distinct(prompts: Iterable[str]) -> list[str]:
    """Return the prompts without repetitions, in their order: a prompt is one unit of the bootstrap."""
    return list(dict.fromkeys(prompts))


def _key(prompt: str) -> int:
    """Return a number that names a prompt by its text, so that its noise depends on nothing else."""
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:7], "big")


def _chunks(rows: list, size: int) -> Iterable[list]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
