"""The local engine of a sweep: every missing completion, in batches of any specs, sampled and scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from reward_models import RewardModel
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.residuals import Adapter
from rlhf_lines.models import end_token_ids, load_tokenizer
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.mixture import Mixture, check_mixable
from rlhf_lines.sweep.sampling import Request, sample
from rlhf_lines.sweep.store import Row, Store


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LocalEngine:
    """Samples and scores, with one base in memory, what the store does not hold yet.

    Args:
        config: how to sample.
        sft: folder of the SFT model; it is loaded when the first completion is missing.
        adapters: the policies, in the order of the specs' weights.
        reward_models: score the completions.
        store: where completions and scores go.
    """

    def __init__(
        self,
        config: SweepConfig,
        sft: Path,
        adapters: Sequence[Adapter],
        reward_models: Sequence[RewardModel],
        store: Store,
    ) -> None:
        self.config, self.store, self.reward_models = config, store, reward_models
        self.num_policies = len(adapters)
        self._sft, self._adapters = sft, adapters
        self._mixture = self._tokenizer = None

    def points(
        self, split: str, groups: dict[str, Sequence[MergeSpec]], prompts: Mapping[str, str]
    ) -> list[tuple[int, str, MergeSpec]]:
        """Sample and score every spec of every group on the prompts, and return (id, group, spec) of each point.

        Args:
            split: what the prompts are of.
            groups: the specs by the name of their group.
            prompts: from what the policy reads to what reward models are shown.

        Raises:
            ValueError: a spec that a sweep cannot mix; nothing is stored then.
        """
        for specs in groups.values():
            for spec in specs:
                check_mixable(spec)
        points = [
            (point, group, spec)
            for group, specs in groups.items()
            for point, spec in self.store.add_points(split, group, specs)
        ]
        ids = self.store.add_prompts(split, list(prompts))
        finished = self.store.finished()
        samples = range(self.config.samples_per_prompt)
        # Prompt by prompt: the specs of one prompt share their noise, and equal lengths need no padding.
        todo = [
            (point, spec, prompt, text, prompts[text], sample_id)
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
        tokens = {text: tuple(tokenizer(text)["input_ids"]) for _, _, _, text, _, _ in chunk}
        requests = [
            Request(spec, tokens[text], prompt_key(tokens[text]), sample_id) for _, spec, _, text, _, sample_id in chunk
        ]
        completions = sample(
            mixture,
            requests,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            eos_token_ids=end_token_ids(mixture.model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            seed=self.config.seed,
        )
        texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
        asked = [scored_prompt for *_, scored_prompt, _ in chunk]
        scores = {model.name: model.score(asked, texts) for model in self.reward_models}
        for i, ((point, _, prompt, _, _, sample_id), completion) in enumerate(zip(chunk, completions, strict=True)):
            of_row = {name: values[i] for name, values in scores.items()}
            yield Row(point, prompt, sample_id, texts[i], len(completion.token_ids), completion.kl, of_row)

    def _load(self) -> tuple[Mixture, PreTrainedTokenizerBase]:
        if self._mixture is None:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(self._sft, dtype=self.config.dtype).eval()
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            self._tokenizer = load_tokenizer(self._sft)
            self._mixture = Mixture(model, self._adapters)
        return self._mixture, self._tokenizer


def _chunks(rows: list, size: int) -> Iterable[list]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
