"""Completions of an earlier sweep, taken over by one that asks for more: prompts, samples, weights, groups, policies.

A completion depends on the SFT model, the policies that its spec mixes, the statistics of its rule, the prompt, the
sample and the settings of sampling, and on nothing else of a run: not on its groups, its other policies, or how many
prompts it has. Where these are the same it is taken as it is stored, with its scores and its KL, and only the rest is
generated. A sweep that was stopped has what it had stored by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines.merge import MergeSpec
from rlhf_lines.scoring import Asked
from rlhf_lines.sweep.completion_config import SAMPLING
from rlhf_lines.sweep.forgetting import ForgettingText
from rlhf_lines.sweep.store import RUN_STORE, Row, Store, open_stored


WAY_OUT = "give the same, or leave out reuse"


class Reused:
    """A sweep whose completions another one takes; a context manager.

    Args:
        folder: of the sweep, which is finished or was stopped.
        kept: what the other sweep keeps of itself, see `sweep.inputs.facts`.

    Raises:
        FileNotFoundError: there is no sweep.
        ValueError: its completions were sampled otherwise, or lack a score.
    """

    def __init__(self, folder: str | Path, kept: Mapping[str, Any]) -> None:
        self._store = open_stored(folder)
        try:
            self._check(Path(folder), kept)
        except BaseException:
            self._store.__exit__()
            raise
        self._rewards = kept["reward_names"]
        self._merged = _Merged.of(kept)
        theirs = _Merged.of({key: self._store.recall(key) for key in ("inputs_sha256", "statistics_sha256")})
        self._specs: dict[str, list[int]] = {}  # of an earlier version, several with beta 0 may be one merge
        for spec_id, spec in self._store.specs().items():
            self._specs.setdefault(theirs.key(spec), []).append(spec_id)
        shown = self._store.shown()
        self._prompts = {
            (prompt.text, prompt.scored_text, _written(shown.get(prompt_id, {}))): prompt_id
            for split in ("validation", "test")
            for prompt_id, prompt in self._store.prompts(split).items()
        }

    def __enter__(self) -> Reused:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.__exit__()

    def completions(
        self, specs: Mapping[int, MergeSpec], prompts: Mapping[int, tuple[str, Asked]], samples: Sequence[int]
    ) -> Iterator[Row]:
        """Yield what it has of these specs, prompts and samples, under the ids of the other store.

        Args:
            specs: by their ids there.
            prompts: by their ids there, what the policy reads and what reward models may be shown.
            samples: their numbers.
        """
        ours = {
            self._prompts.get((text, asked.text, _written(more_than_text(asked)))): prompt
            for prompt, (text, asked) in prompts.items()
        }
        for spec_id, spec in specs.items():
            taken = set()
            for row in (row for theirs in self._of(spec) for row in self._store.rows_of(theirs, self._rewards)):
                if (
                    row.prompt in ours
                    and row.sample in samples
                    and row.scores.keys() == set(self._rewards)
                    and row[1:3] not in taken
                ):
                    taken.add(row[1:3])
                    yield row._replace(spec=spec_id, prompt=ours[row.prompt])

    def nll(
        self, specs: Mapping[int, MergeSpec], texts: Mapping[int, ForgettingText]
    ) -> Iterator[tuple[int, int, float]]:
        """Yield the (spec, text, -log p in nats) that it has of these specs and texts, by the other store's ids."""
        ids = {(text.text, len(text.token_ids) - 1): text_id for text_id, text in texts.items()}
        names = {stored.id: ids.get((stored.text, stored.tokens)) for stored in self._store.forgetting_texts()}
        for spec_id, spec in specs.items():
            known = {}
            for theirs in self._of(spec):
                known = self._store.nll_by_text(theirs) | known
            for text, value in known.items():
                if names[text] is not None:
                    yield spec_id, names[text], value

    def _of(self, spec: MergeSpec) -> list[int]:
        """The ids, in its store, of the merge that a spec of the other store is."""
        return self._specs.get(self._merged.key(spec), [])

    def _check(self, folder: Path, kept: Mapping[str, Any]) -> None:
        _check_sampling(self._store, folder, kept)
        if _sft(self._store.recall("inputs_sha256", {})) != _sft(kept["inputs_sha256"]):
            raise ValueError(f"reuse: the sweep in {folder} is of another SFT model or tokenizer: {WAY_OUT}")
        known = self._store.recall("reward_models")
        for name in kept["reward_names"]:
            if name not in self._store.recall("reward_names"):
                raise ValueError(
                    f"reuse: the completions in {folder} have no score {name!r}: give them one first, by rlhf-lines "
                    f"score {folder} --rewards ..."
                )
            if known[name] != kept["reward_models"][name]:
                raise ValueError(f"reuse: the scores {name!r} in {folder} are of another reward model: {WAY_OUT}")


class _Merged(NamedTuple):
    """What a run merges.

    Attributes:
        policies: what tells them apart, in the order of the specs' weights.
        statistics: hashes by rule.
    """

    policies: list[str]
    statistics: Mapping[str, list[str]]

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> _Merged:
        """What a run merges that keeps this of itself."""
        return cls(_policies(kept["inputs_sha256"]), kept["statistics_sha256"])

    def key(self, spec: MergeSpec) -> str:
        """What makes a merged policy the same in two runs: settings, statistics, and which policy has which weight.

        Rule `linear` gives the same with a policy more that has weight 0; other rules count their policies. With beta 0
        no schedule matters.
        """
        mixed = list(zip(self.policies, spec.weights, strict=False))
        if spec.rule == "linear":
            mixed = sorted((policy, weight) for policy, weight in mixed if weight)
        schedule = spec.schedule if spec.beta else None
        of_rule = self.statistics.get(spec.rule, [])
        settings = {**spec.to_dict(), "schedule": schedule, "weights": None, "statistics": of_rule}
        return json.dumps([settings, mixed], sort_keys=True)


def check_sampling(folder: str | Path, given: Mapping[str, Any], output_dir: str | Path) -> None:
    """Stop where completions were sampled otherwise, which shows before a model is loaded.

    Args:
        folder: of the sweep, which is finished or was stopped.
        given: the settings of the other one, see `SweepConfig.sampling`.
        output_dir: of the other one.

    Raises:
        FileNotFoundError: there is no sweep.
        ValueError: a setting that completions depend on is another one, or the other would be made in the place of one
            that was stopped.
    """
    finished = (Path(folder) / RUN_STORE).is_file()
    if not finished and Path(folder).resolve() == Path(output_dir).resolve():
        raise ValueError(f"reuse: {folder} is also the output_dir, and no finished sweep: choose another output_dir")
    with open_stored(folder) as store:
        _check_sampling(store, Path(folder), given)


def check_reusable(folder: str | Path, kept: Mapping[str, Any]) -> None:
    """Raise as `Reused` does, and leave nothing open."""
    with Reused(folder, kept):
        pass


def _check_sampling(store: Store, folder: Path, given: Mapping[str, Any]) -> None:
    for key in SAMPLING:
        before = store.recall(key, None)
        if before != given[key]:
            raise ValueError(f"reuse: the sweep in {folder} has {key} {before}, and now it is {given[key]}: {WAY_OUT}")


def more_than_text(asked: Asked) -> dict[str, Any]:
    """What reward models may be shown of a prompt beside its text, as a store keeps it."""
    return {"conversation": asked.conversation, "columns": dict(asked.columns), "blank": asked.blank}


def _written(shown: Mapping[str, Any]) -> str:
    return json.dumps(shown, sort_keys=True)


def _sft(inputs: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in inputs.items() if name.startswith("SFT model ")]


def _policies(inputs: Mapping[str, Any]) -> list[str]:
    """What tells the policies of a run apart, in the order of the specs' weights."""
    found = []
    for place, what in enumerate(("policy", "MORLHF run", "policy of a set")):
        numbered = ((re.fullmatch(rf"{what} (\d+) \(.*\)", name, re.DOTALL), value) for name, value in inputs.items())
        found += [(place, int(match[1]), _written(value)) for match, value in numbered if match]
    return [value for _, _, value in sorted(found)]
