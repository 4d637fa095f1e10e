"""A sweep's generation of all points: with KL, scores and the run store, or (`--bare 1`) the completions alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from common import LONGEST_PROMPT, Meter, Task

from benchmarks.side import arguments
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.distributed import Processes
from rlhf_lines.sampling import sample_tokens
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Completion, Request
from rlhf_lines.sweep.inputs import read_inputs
from rlhf_lines.sweep.measure import Measurement, Worker
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store


class Silent:
    """The progress of a benchmark, which nobody sees."""

    def enter(self, *_: object) -> None:
        """Do nothing."""

    update = enter


class Bare(LocalEngine):
    """A local engine that leaves the KL out."""

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions alone."""
        multi_lora, config = self.multi_lora, self._config
        with multi_lora.rows([request.spec for request in requests]):
            tokens, lengths, _ = sample_tokens(
                multi_lora.model,
                [request.prompt_ids for request in requests],
                [(request.prompt_key, request.sample) for request in requests],
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                eos_token_ids=self._ends,
                pad_token_id=self._tokenizer.pad_token_id,
                seed=config.seed,
                choose_rows=multi_lora.select_rows,
            )
        rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
        return [Completion(tuple(row[:length]), 0.0) for row, length in rows]


def main() -> None:
    options = arguments("sweep.py", "bare")
    task = Task.read(options.task)
    config = task.config()
    inputs = read_inputs(PromptDataConfig("docstring_sentences", max_prompt_length=LONGEST_PROMPT), config)
    engine = (Bare if options.bare else LocalEngine)(config, Merges(inputs.sft, inputs.adapters), inputs.adapters)
    size = engine.rows(LONGEST_PROMPT)  # loads the model
    rewards = [] if options.bare else inputs.reward_models
    worker, groups, prompts = Worker(engine, rewards, inputs.tokenizer), task.groups(), inputs.prompts["test"]
    with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        store.remember(reward_names=[model.name for model in rewards])
        meter = Meter()
        Measurement(store, worker, Processes(), Silent(), 1).measure("test", groups, prompts, phase="test")
        rows = list(store.rows("test", ()))
        meter.write(
            options.output, tokens=sum(len(row.token_ids) for row in rows), completions=len(rows), batch_size=size
        )


if __name__ == "__main__":
    main()
