"""From specs and prompts to stored completions and scores: what is missing, in batches, shared by all processes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from reward_models import RewardModel
from rlhf_lines.completions import StopTexts, completion_texts
from rlhf_lines.distributed import Processes
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.origin import weights_text
from rlhf_lines.sampling import prompt_key
from rlhf_lines.scoring import Asked, score
from rlhf_lines.sweep.engines.protocol import Engine, Request, mixable
from rlhf_lines.sweep.finished.judged import added, counts_of
from rlhf_lines.sweep.forgetting import ForgettingText, measure_forgetting
from rlhf_lines.sweep.progress import Progress
from rlhf_lines.sweep.reuse import Reused, more_than_text
from rlhf_lines.sweep.store import Row, Store, StoredPoint
from rlhf_lines.sweep.trackers import Trackers


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # completions that are taken per commit


class Task(NamedTuple):
    """One completion that is missing: what to ask for, what reward models are shown, and its place in the store."""

    request: Request
    asked: Asked
    spec_id: int
    prompt_id: int


class Reading(NamedTuple):
    """Token ids of texts, and the spec under which each is read."""

    specs: list[MergeSpec]
    rows: list[Sequence[int]]


class Counting:
    """The job of telling what reward models have counted."""


class Worker:
    """What every process does: generate and score a batch, read texts, or tell what reward models have counted.

    Args:
        engine: generates.
        reward_models: score the completions.
        tokenizer: the SFT model's.
        stop: texts before which a completion ends.
    """

    def __init__(
        self,
        engine: Engine,
        reward_models: Sequence[RewardModel],
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
    ) -> None:
        self.engine, self.tokenizer, self._reward_models = engine, tokenizer, reward_models
        self._stop = StopTexts(tokenizer, stop)
        self._tried = self._counts()  # before any completion, on a row that was only tried

    def __call__(self, job: list[Task] | Reading | Counting) -> list[Row] | list[float] | dict[str, dict[str, int]]:
        """The rows of a batch of tasks, what `Engine.nll` says of texts, or counts by the name of a reward model.

        Raises:
            ValueError: a log-probability is not finite, or a reward model does not score as it should.
        """
        if isinstance(job, Counting):
            return {
                name: added(counts, {key: -count for key, count in self._tried[name].items()})
                for name, counts in self._counts().items()
            }
        if isinstance(job, Reading):
            values = self.engine.nll(*job)
            _check_finite(job.specs, values, "reads a text outside the task")
            return values
        return self._generate_and_score(job)

    @property
    def counts(self) -> bool:
        """Whether a reward model counts anything."""
        return bool(self._tried)

    def _counts(self) -> dict[str, dict[str, int]]:
        return {model.name: counts for model in self._reward_models if (counts := counts_of(model))}

    def _generate_and_score(self, tasks: list[Task]) -> list[Row]:
        completions = self.engine.complete([task.request for task in tasks])
        of_specs = [completion.kl for completion in completions]
        _check_finite([task.request.spec for task in tasks], of_specs, "writes a completion")
        token_ids = [completion.token_ids for completion in completions]
        texts = completion_texts(self.tokenizer, [task.request.prompt_ids for task in tasks], token_ids)
        texts = [self._stop.cut(text) for text in texts]
        asked = [task.asked for task in tasks]
        scores = {model.name: score(model, asked, texts, token_ids) for model in self._reward_models}
        return [
            Row(
                task.spec_id,
                task.prompt_id,
                task.request.sample,
                text,
                completion.token_ids,
                completion.kl,
                {name: values[i] for name, values in scores.items()},
            )
            for i, (task, text, completion) in enumerate(zip(tasks, texts, completions, strict=True))
        ]


def _check_finite(specs: Sequence[MergeSpec], values: Sequence[float], what: str) -> None:
    """Stop where a log-probability is none: the tokens that were drawn by it mean nothing, nor does a KL."""
    for spec, value in zip(specs, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"the {spec.rule} merge with weights {weights_text(spec.weights)}, alpha {spec.alpha} and beta "
                f"{spec.beta} {what} with a log-probability that is not finite: its numbers overflow, or a policy has "
                "diverged; choose dtype bfloat16 or float32 where it is float16, smaller scalings, or other policies, "
                "and start again: with --overwrite or, to keep what a sweep has stored in the same dtype, into another "
                "folder with --reuse"
            )


class Measurement:
    """Fills the store with what it does not hold yet; for the process that leads.

    Args:
        store: where completions and scores go.
        worker: what this process does, as the others do.
        processes: who shares the work.
        progress: is told of every completion.
        samples_per_prompt: completions per prompt and spec.
        reused: another sweep, whose completions are taken where they are the same.
        trackers: are told of every point that is done.
        route: from a spec and the tokens of a prompt, or of a text outside the task, to the spec that it is given to;
            see `Routes`.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        processes: Processes,
        progress: Progress,
        samples_per_prompt: int,
        reused: Reused | None = None,
        trackers: Trackers | None = None,
        route: Callable[[MergeSpec, Sequence[int]], MergeSpec] = lambda spec, row: spec,
    ) -> None:
        self._route = route
        self.store, self._worker, self._processes, self.progress = store, worker, processes, progress
        self._samples, self._reused, self._trackers = range(samples_per_prompt), reused, trackers or Trackers([])
        self._told: set[int] = set()  # ids of points
        self._steps = {point: step for step, point in enumerate(store.recall("told", []))}  # also of an earlier part
        self._judged = store.recall("judged", {})  # in an earlier part of this run

    def measure(
        self, split: str, groups: Mapping[str, Sequence[MergeSpec]], prompts: Mapping[str, Asked], *, phase: str
    ) -> list[StoredPoint]:
        """Sample and score every spec of every group on the prompts, and return their points.

        Args:
            split: what the prompts are of.
            groups: the specs by the name of their group.
            prompts: from what the policy reads to what reward models may be shown.
            phase: see `Progress.enter`.
        """
        points = [point for group, specs in groups.items() for point in self.store.add_points(split, group, specs)]
        specs = {point.spec_id: point.spec for point in points}  # two groups may share a spec
        prompt_ids = self._add_prompts(split, prompts)
        self.progress.enter(phase, len(specs))
        self._take_completions(specs, dict(zip(prompt_ids, prompts.items(), strict=True)))
        tasks = self._missing(specs, prompts, prompt_ids)
        left = Counter(task.spec_id for task in tasks)
        self._tell(split, [point for point in points if not left[point.spec_id]])
        for batches in self._rounds(tasks):
            for rows in self._processes.map(self._worker, batches):
                self.store.add(rows)
                self.progress.update(len(rows))
                left.subtract(row.spec for row in rows)
                done = {row.spec for row in rows if not left[row.spec]}
                self._tell(split, [point for point in points if point.spec_id in done])
        self._keep_counts()
        return points

    def _keep_counts(self) -> None:
        """Keep what the reward models of all processes have counted; nothing of one whose scores were all reused."""
        if not self._worker.counts:
            return
        judged = dict(self._judged)
        for counted in self._processes.map(self._worker, [Counting()] * self._processes.count):
            judged |= {name: added(judged.get(name, {}), counts) for name, counts in counted.items()}
        self.store.replace(judged={name: counts for name, counts in judged.items() if counts.get("graded") != 0})

    def _tell(self, split: str, points: Sequence[StoredPoint]) -> None:
        """Tell the trackers of points that are done, each once: a choice beyond an edge measures its group again.

        Steps only grow, as some trackers want it: points are not done in the order of their ids. A run that goes on
        tells all again, each with the step that it had.
        """
        new = [point for point in points if point.id not in self._told] if self._trackers else []
        if not new:
            return
        self._told.update(point.id for point in new)
        for point in new:
            self._steps.setdefault(point.id, len(self._steps))
        self.store.replace(told=list(self._steps))
        new.sort(key=lambda point: self._steps[point.id])
        names = self.store.recall("reward_names")
        for point in new:
            scores = self.store.scores(point.spec_id, split, names).mean(axis=0)
            kl = self.store.kl(point.spec_id, split).mean()
            values = {**dict(zip(names, scores.tolist(), strict=True)), "log_ratio": float(kl), "point": point.id}
            self._trackers.tell(split, point.group, point.spec.weights, values, self._steps[point.id])

    def forgetting(
        self,
        points: Sequence[StoredPoint],
        texts: Sequence[ForgettingText],
        *,
        phase: str | None = None,
        early: Sequence[StoredPoint] = (),
    ) -> None:
        """Let every spec of the points read the texts outside the task; see `measure_forgetting`.

        Args:
            points: whose specs read.
            texts: what they read.
            phase: begin it; left out where reading belongs to the phase that has begun.
            early: points whose specs have read in an earlier phase.
        """
        if phase is not None:
            specs = {point.spec_id for point in points} - {point.spec_id for point in early}
            self.progress.enter(phase, len(specs))
        known = None if self._reused is None else self._reused.nll
        measure_forgetting(self.store, self._nll, points, texts, known=known, advance=self.progress.update)

    def _nll(self, specs: Sequence[MergeSpec], rows: Sequence[Sequence[int]]) -> list[float]:
        """What `Engine.nll` does, the rows shared by all processes."""
        specs = [self._route(spec, row) for spec, row in zip(specs, rows, strict=True)]
        part = -(-len(rows) // self._processes.count)
        jobs = [Reading(list(specs[i : i + part]), list(rows[i : i + part])) for i in range(0, len(rows), part)]
        return [value for values in self._processes.map(self._worker, jobs) for value in values]

    def _add_prompts(self, split: str, prompts: Mapping[str, Asked]) -> list[int]:
        prompt_ids = self.store.add_prompts(split, {text: asked.text for text, asked in prompts.items()})
        self.store.add_shown(dict(zip(prompt_ids, map(more_than_text, prompts.values()), strict=True)))
        return prompt_ids

    def _take_completions(self, specs: Mapping[int, MergeSpec], prompts: Mapping[int, tuple[str, Asked]]) -> None:
        """Take what another sweep has of them."""
        if self._reused is None:
            return
        finished = self.store.finished()
        rows = (row for row in self._reused.completions(specs, prompts, self._samples) if row[:3] not in finished)
        while chunk := list(itertools.islice(rows, CHUNK)):
            self.store.add(chunk)
            self.progress.update(len(chunk))

    def _missing(
        self, specs: Mapping[int, MergeSpec], prompts: Mapping[str, Asked], prompt_ids: Sequence[int]
    ) -> list[Task]:
        """The tasks that are left: `mixable` specs together, the longest prompts first.

        The specs of one prompt stay together: they share their noise, and equal lengths need no padding.
        """
        finished = self.store.finished()
        tokens = [tuple(self._worker.tokenizer(text)["input_ids"]) for text in prompts]
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        asked = list(prompts.values())
        return [
            Task(
                Request(self._route(spec, tokens[i]), tokens[i], prompt_key(tokens[i]), sample),
                asked[i],
                spec_id,
                prompt_ids[i],
            )
            for together in mixable(specs)
            for i in order
            for sample in self._samples
            for spec_id, spec in together.items()
            if (spec_id, prompt_ids[i], sample) not in finished
        ]

    def _rounds(self, tasks: list[Task]) -> Iterator[list[list[Task]]]:
        """Yield a batch for every process, until no task is left."""
        start = 0
        while start < len(tasks):
            batches = []
            while start < len(tasks) and len(batches) < self._processes.count:
                stop = start + self._worker.engine.rows(len(tasks[start].request.prompt_ids))
                batches.append(tasks[start:stop])
                start = stop
            yield batches
