"""What every process does while learning, and how the leader shares it out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rlhf_lines.distributed import Processes
from rlhf_lines.learn.config import STEPS, LearnConfig
from rlhf_lines.learn.elected import ElectedDifferentiated
from rlhf_lines.learn.gradient import Differentiated, RowLoss, Slope
from rlhf_lines.learn.inputs import Inputs
from rlhf_lines.merge.space import Space, Vector
from rlhf_lines.models import keep_unpacked
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Pair
from rlhf_lines.sweep.measure import Counting, Reading, Task, Worker
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Row


class Pass(NamedTuple):
    """Rows of one forward and backward pass; see `Differentiated`."""

    vector: tuple[float, ...]
    pairs: list[Pair]
    loss: RowLoss
    weights: list[float]


class LearnWorker(Worker):
    """What every process does: what `Worker` does, or differentiate.

    Args:
        engine: the base with the policies.
        inputs: what is learned from.
        config: the settings.
        merges: of the policies.
        space: of the vectors.
    """

    def __init__(self, engine: LocalEngine, inputs: Inputs, config: LearnConfig, merges: Merges, space: Space) -> None:
        super().__init__(engine, inputs.reward_models, inputs.tokenizer, config.stop)
        self._merges, self._density = merges, config.density
        self._space, self._num_policies = space, len(inputs.adapters)
        if config.method in STEPS:  # before anything is sampled
            keep_unpacked(engine.multi_lora.model)

    @cached_property
    def slope(self) -> Differentiated | ElectedDifferentiated:
        """Losses and their derivatives by the numbers of the space."""
        pad, count = self.tokenizer.pad_token_id, self._num_policies
        if self._density is None:
            return Differentiated(self.engine.multi_lora, self._space, count, pad)
        return ElectedDifferentiated(self.engine, self._merges, self._space, count, self._density, pad)

    def __call__(
        self, job: list[Task] | Reading | Counting | Pass
    ) -> list[Row] | list[float] | dict[str, dict[str, int]] | Slope:
        """What `Worker` makes of a job, or the slope of a pass."""
        return self.slope(*job) if isinstance(job, Pass) else super().__call__(job)


class Workers:
    """All processes at work, for the leader.

    Args:
        processes: who shares the work.
        worker: what each of them does.
    """

    def __init__(self, processes: Processes, worker: LearnWorker) -> None:
        self._processes, self._worker = processes, worker

    def rows(self, tasks: Sequence[Task]) -> list[Row]:
        """The tasks, generated and scored, in their order: as many by each process, in batches of its size."""
        longest = max(len(task.request.prompt_ids) for task in tasks)
        part = min(-(-len(tasks) // self._processes.count), self._worker.engine.rows(longest))
        jobs = [list(tasks[start : start + part]) for start in range(0, len(tasks), part)]
        rounds = (jobs[start : start + self._processes.count] for start in range(0, len(jobs), self._processes.count))
        return [row for some in rounds for rows in self._processes.map(self._worker, some) for row in rows]

    def slope(self, vector: Vector, pairs: Sequence[Pair], loss: RowLoss, weights: Sequence[float]) -> Slope:
        """See `Differentiated`: its passes, one by each process at a time, added up in the order of one process."""
        numbers = tuple(map(float, vector))
        passes = [
            Pass(numbers, [pairs[i] for i in rows], loss, [weights[i] for i in rows])
            for rows in self._worker.slope.passes(pairs)
        ]
        total, derivatives, count = 0.0, np.zeros(len(numbers)), self._processes.count
        for start in range(0, len(passes), count):
            for value, part in self._processes.map(self._worker, passes[start : start + count]):
                total, derivatives = total + value, derivatives + part
        return total, derivatives
