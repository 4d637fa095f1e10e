"""What both sides of `search_cost.py` share: the task, its candidates and prompts, and what a side writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.side import SideTask, Tokens, peak_mib
from rlhf_lines import data
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.space import bent_lines
from rlhf_lines.models import load_tokenizer


T = TypeVar("T")
STEP = 0.3  # of the search's first generation


@dataclass(frozen=True)
class Task(SideTask):
    """What both sides are given; completions are greedy.

    Attributes:
        num_layers: of the SFT model.
        num_candidates: how many.
    """

    num_layers: int
    num_candidates: int

    def candidates(self) -> list[MergeSpec]:
        """Normal draws around the soup, as the first generation of a search."""
        count = len(self.policies)
        space = bent_lines(count, self.num_layers)
        draws = np.random.Generator(np.random.PCG64(0))
        vectors = space.start + STEP * draws.standard_normal((self.num_candidates, len(space.start)))
        weights = (1 / count,) * count
        return [MergeSpec("layerwise", weights, options=space.profile(row).to_options()) for row in vectors]

    def prompts(self) -> list[Tokens]:
        """The token ids of the first training prompts, the longest first."""
        tokenizer = load_tokenizer(self.sft_model)
        texts = data.load("docstrings", "prompts", "train", tokenizer=tokenizer)["prompt"]
        found = dict.fromkeys(tuple(tokenizer(text)["input_ids"]) for text in texts)
        return sorted(list(found)[: self.num_prompts], key=len, reverse=True)

    def config(self) -> LearnConfig:
        """The config of the search."""
        return LearnConfig(
            sft_model=self.sft_model,
            policies=self.policies,
            rewards=["rule:length", "rule:lexical"],
            output_dir="unused",
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            dtype=self.dtype,
            batch_size=self.batch_size,
        )


class Meter:
    """Seconds by part, of the clock and of the processor."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._cpu: dict[str, float] = {}

    def timed(self, part: str, work: Callable[[], T]) -> T:
        """Do the work and add its seconds to a part."""
        start, cpu = time.perf_counter(), time.process_time()
        done = work()
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start
        self._cpu[part] = self._cpu.get(part, 0.0) + time.process_time() - cpu
        return done

    def write(self, path: str, completions: list[list[Tokens]], **results: object) -> None:
        """Write what was measured as JSON, with the completions by candidate and prompt."""
        measured = {"seconds": self._seconds, "cpu_seconds": self._cpu, "peak_mib": peak_mib()}
        Path(path).write_text(json.dumps({**measured, "completions": completions, **results}))
