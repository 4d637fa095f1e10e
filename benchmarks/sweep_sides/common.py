"""What the sides of `sweep.py --model smollm2` share: the task, the points, and what a side writes."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side import SideTask, peak_mib
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.merge import MergeSpec
from rlhf_lines.models import load_tokenizer
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.groups import simplex


GROUPS = {"rewarded_soup": (1.0, 0.0), "lines": (1.0, 1.0), "scaled": (1.5, 0.0), "reversed": (1.0, 1.0, "reversed")}
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
LONGEST_PROMPT = 88  # tokens: as configs/smollm2/docstrings/sweep.yaml


@dataclass(frozen=True)
class Task(SideTask):
    """What every side is given, of two policies.

    Attributes:
        encoder: folder of the sentence encoder, one of the two reward models.
        num_weights: of every group.
    """

    encoder: str
    num_weights: int

    def groups(self) -> dict[str, list[MergeSpec]]:
        """The points by group."""
        weights = simplex(len(self.policies), self.num_weights)
        return {name: [MergeSpec("linear", row, *scaling) for row in weights] for name, scaling in GROUPS.items()}

    def specs(self) -> list[MergeSpec]:
        """Every point; groups may share one."""
        return list(dict.fromkeys(spec for specs in self.groups().values() for spec in specs))

    def config(self, **settings: object) -> SweepConfig:
        """The config of the sweep."""
        given = {
            "sft_model": self.sft_model,
            "policies": self.policies,
            "rewards": [
                {"model": f"similarity:{self.encoder}", "name": "faithful", "options": {"source": "docstring"}},
                {"model": "rule:readability", "name": "readable", "options": {"target": 4}},
            ],
            "output_dir": "unused",
            "test_prompts": self.num_prompts,
            "max_new_tokens": self.max_new_tokens,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "alphas": [1.0],
            "betas": [1.0],
            "controls": False,  # nothing is chosen, so no validation prompts are read
        }
        return SweepConfig(**given | settings)


def test_prompts(sft_model: str, count: int) -> list[list[int]]:
    """The token ids of the first prompts that a sweep reads."""
    tokenizer = load_tokenizer(sft_model)
    config = PromptDataConfig("docstring_sentences", max_prompt_length=LONGEST_PROMPT)
    texts = dict.fromkeys(config.load("prompts", "test", tokenizer)["prompt"])
    return [tokenizer(text)["input_ids"] for text in itertools.islice(texts, count)]


class Meter:
    """Seconds (of the clock, and of the processor) and memory of one side, from where it has loaded what it needs."""

    def __init__(self) -> None:
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def write(self, path: str, **results: object) -> None:
        """Write what was measured, and what else the side found, as JSON."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        Path(path).write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_mib(), **results}))
