"""Candidates as rows of one loaded base, as a search measures them; the KL to the SFT model included."""

from __future__ import annotations

from pathlib import Path

from common import Meter, Task

from benchmarks.side import arguments
from rlhf_lines.merge.inputs.provenance import load_adapters
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.merges import Merges


def main() -> None:
    options = arguments("search_cost.py")
    task, meter = Task.read(options.task), Meter()
    sft, policies = Path(task.sft_model), [Path(policy) for policy in task.policies]
    prompts, candidates = task.prompts(), task.candidates()
    adapters = meter.timed("load once", lambda: load_adapters(policies, sft)[0])
    engine = LocalEngine(task.config(), Merges(sft, adapters), adapters)
    size = meter.timed("load once", lambda: engine.rows(len(prompts[0])))
    todo = [Request(spec, prompt, prompt_key(prompt)) for prompt in prompts for spec in candidates]
    found = {}
    for start in range(0, len(todo), size):
        part = todo[start : start + size]
        completions = meter.timed("generate", lambda part=part: engine.complete(part))
        found |= {(r.spec, r.prompt_ids): c.token_ids for r, c in zip(part, completions, strict=True)}
    meter.write(options.output, [[found[spec, prompt] for prompt in prompts] for spec in candidates], batch_size=size)


if __name__ == "__main__":
    main()
