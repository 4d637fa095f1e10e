"""Methods by name: each proposes candidates, and has them measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.learn.adamerging import entropy
from rlhf_lines.learn.atlas import negative_log_likelihood
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.counts import archive_size, children, grid_of
from rlhf_lines.learn.evolution import evolve
from rlhf_lines.learn.frank_wolfe import frank_wolfe
from rlhf_lines.learn.gradient import RowLoss, Slope, descend
from rlhf_lines.learn.grid import lines_profile
from rlhf_lines.learn.inputs import Inputs
from rlhf_lines.learn.natural_niches import evolve_niches
from rlhf_lines.learn.reward_gradient import advantages
from rlhf_lines.learn.trials import Options, Trial, Trials
from rlhf_lines.learn.workers import Workers
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.space import Space, Vector
from rlhf_lines.pareto import utilities
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.engines.protocol import Pair, Request
from rlhf_lines.sweep.groups import one_hot
from rlhf_lines.sweep.measure import Task


NEXT_TO_0 = 1e-6  # of a utility
OfStep = Callable[[NDArray[np.float64], int], Slope]


@dataclass
class Search:
    """What a method works with.

    Attributes:
        config: the settings.
        inputs: what is learned from.
        workers: the processes, which sample, score and differentiate.
        trials: the ends from which scores count, and the preference.
        space: where candidates come from.
        measure: from vectors and their factors to what each is worth; the best of all that were measured is learned.
        advance: is told of completions that are sampled beside those of `measure`.
        losses: of a method that goes along gradients, the loss before each step.
    """

    config: LearnConfig
    inputs: Inputs
    workers: Workers
    trials: Trials
    space: Space
    measure: Callable[[Sequence[Vector], Sequence[Options]], list[Trial]]
    advance: Callable[[int], None]
    losses: list[float] = field(default_factory=list)

    def tried(self, vectors: Sequence[Vector]) -> list[Trial]:
        """Vectors of the space, measured."""
        further = {} if self.config.density is None else {"density": self.config.density}
        return self.measure(vectors, [self.space.profile(vector).to_options() | further for vector in vectors])


def by_evolution(search: Search) -> None:
    """See `evolution`."""
    config = search.config
    options = {"count": config.num_candidates, "population": config.population, "seed": config.seed}

    def values(vectors: Sequence[Vector]) -> list[float]:
        return [trial.fitness for trial in search.tried(vectors)]

    evolve(values, search.space.start, step=config.step, **options)


def by_natural_niches(search: Search) -> None:
    """See `natural_niches`; the first archive are the soup, the policies alone, and normal draws around the soup."""
    config, start = search.config, np.array(search.space.start)
    size, count = archive_size(config), len(search.inputs.adapters)
    draws = np.random.Generator(np.random.PCG64(config.seed))
    own = start.reshape(count, -1)
    first = [start, *((count * np.array(row)[:, None] * own).ravel() for row in one_hot(count))]
    first += [start + config.step * draws.standard_normal(len(start)) for _ in range(size - len(first))]

    def by_prompt(vectors: Sequence[Vector]) -> list[NDArray[np.float64]]:
        """Utilities, of which those below the reference point count as 0.

        Beyond a limit every prompt is worth next to nothing, and less the further beyond: no utility counts there.
        """
        return [
            np.maximum(one.by_prompt, 0.0) if one.within_limits else np.full_like(one.by_prompt, NEXT_TO_0 / one.excess)
            for one in search.tried(vectors)
        ]

    options = {"count": config.num_candidates, "size": size, "children": children(config), "seed": config.seed}
    evolve_niches(by_prompt, first[:size], **options)


def by_adamerging(search: Search) -> None:
    """See `adamerging`; as in the paper factors stay between 0 and 1 where each is a number of its own."""
    tokenizer = search.inputs.tokenizer
    prompts = [(tuple(tokenizer(text)["input_ids"]), ()) for text in search.inputs.prompts["train"]]
    most = float(len(search.inputs.adapters))
    options = {} if search.config.space == "profile" else {"project": lambda numbers: numbers.clip(0.0, most)}
    of_step = _over(search, prompts, entropy, lambda pairs: [1 / len(pairs)] * len(pairs))
    _descended(search, of_step, **options)


def by_atlas(search: Search) -> None:
    """See `atlas`."""
    _descended(search, _over(search, search.inputs.demonstrations, negative_log_likelihood, _per_token))


def by_frank_wolfe(search: Search) -> None:
    """See `frank_wolfe`; the loss is that of atlas."""
    of_step = _over(search, search.inputs.demonstrations, negative_log_likelihood, _per_token)
    config, count = search.config, len(search.inputs.adapters)
    vector, search.losses = frank_wolfe(
        of_step,
        search.space.start,
        steps=config.steps,
        num_policies=count,
        soft_steps=config.soft_steps,
        learning_rate=config.learning_rate,
    )
    search.tried([vector])


def by_reward_gradient(search: Search) -> None:
    """See `reward_gradient`: each step samples completions of the next prompts with noise of its own.

    r = p . u(scores) - kl_coef KL, and the loss is -1/n sum_i A_i log p(completion_i | prompt_i).
    """
    config, workers = search.config, search.workers
    samples, ends = config.samples_per_prompt, search.trials.ends("train")
    prompts = list(search.inputs.prompts["train"].items())
    count = len(search.inputs.adapters)

    def of_step(vector: NDArray[np.float64], step: int) -> Slope:
        spec = MergeSpec("layerwise", (1 / count,) * count, options=search.space.profile(vector).to_options())
        tasks = []
        for text, asked in in_turn(prompts, step, config.step_prompts):
            ids = tuple(search.inputs.tokenizer(text)["input_ids"])
            numbers = range(step * samples, (step + 1) * samples)
            tasks += [Task(Request(spec, ids, prompt_key(ids), number), asked, 0, 0) for number in numbers]
        rows = workers.rows(tasks)
        search.advance(len(rows))
        scores = np.array([[row.scores[name] for name in search.inputs.objectives] for row in rows])
        worth = utilities(scores, *ends) @ search.trials.preference
        rewards = worth - config.kl_coef * np.array([row.kl for row in rows])
        weights = advantages(rewards.reshape(-1, samples)).ravel() / len(rows)
        pairs = [(task.request.prompt_ids, row.token_ids) for task, row in zip(tasks, rows, strict=True)]
        _, derivatives = workers.slope(vector, pairs, negative_log_likelihood, weights.tolist())
        return -rewards.mean().item(), derivatives

    _descended(search, of_step)


def by_grid(search: Search) -> None:
    """See `grid`."""
    points = grid_of(search.config)
    search.measure(points, [lines_profile(point, search.inputs.num_layers).to_options() for point in points])


def in_turn(rows: Sequence, step: int, count: int) -> list:
    """The rows of a step: the next so many, from the first again after the last.

    >>> in_turn("abcde", 1, 3)
    ['d', 'e', 'a']
    """
    count = min(count, len(rows))
    return [rows[(step * count + i) % len(rows)] for i in range(count)]


def _over(
    search: Search, rows: Sequence[Pair], loss: RowLoss, weigh: Callable[[Sequence[Pair]], list[float]]
) -> OfStep:
    """The loss of the rows of each step, and its derivatives."""

    def of_step(vector: NDArray[np.float64], step: int) -> Slope:
        pairs = in_turn(rows, step, search.config.step_prompts)
        return search.workers.slope(vector, pairs, loss, weigh(pairs))

    return of_step


def _per_token(pairs: Sequence[Pair]) -> list[float]:
    """Weights that make of sums over the tokens of completions the mean over all."""
    return [1 / sum(len(after) for _, after in pairs)] * len(pairs)


def _descended(search: Search, of_step: OfStep, **options: object) -> None:
    """Descend from the soup, and measure where that ends."""
    rates = {"steps": search.config.steps, "learning_rate": search.config.learning_rate}
    vector, search.losses = descend(of_step, search.space.start, **rates, **options)
    search.tried([vector])


METHODS: dict[str, Callable[[Search], None]] = {
    "evolution": by_evolution,
    "natural_niches": by_natural_niches,
    "adamerging": by_adamerging,
    "atlas": by_atlas,
    "frank_wolfe": by_frank_wolfe,
    "reward_gradient": by_reward_gradient,
    "grid": by_grid,
}
