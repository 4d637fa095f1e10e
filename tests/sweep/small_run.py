"""A finished sweep as small as can be: what the stage would have left, written without models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_lines.artifact import write_record
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.fingerprints import reward_identity
from rlhf_lines.sweep.finished.front import trace_front
from rlhf_lines.sweep.store import Row, Store
from rlhf_lines.task_rewards import load_reward_models, reward_entries


SOUP = [MergeSpec("linear", (1 - w, w)) for w in (0.0, 0.25, 1.0)]
GROUPS = {
    "test": {
        "sft": [MergeSpec("linear", (0.0, 0.0))],
        "rewarded_soup": SOUP,
        "lines": [MergeSpec("linear", spec.weights, 0.5, 1.0, "sqrt") for spec in SOUP],
        "ties": [MergeSpec("ties", SOUP[1].weights, alpha="auto", options={"density": 0.3})],
        "morlhf": [MergeSpec("linear", (0.0, 0.0, 1.0))],
    },
    "validation": {"lines(1,0)": SOUP[:2]},
}
PROMPTS = {"test": ["ab", "cd", "=1+1"], "validation": ["ef", 'g "h", i']}
SAMPLES = 2
SPECS = {"test": 9, "validation": 2}  # the soup is measured once on each split, whatever groups it is in
ROWS = sum(SPECS[split] * len(PROMPTS[split]) * SAMPLES for split in SPECS)
HOSTILE = [
    "=SUM(A1)",
    'a "b", c',
    "two\r\nlines\n",
    "lone\rreturn",
    "a NUL \0 here",
    "",
    " ünï \U0001f600 \u2028",
    "+-@",
]


def shown(prompt: str) -> str:
    """What reward models are shown of a prompt."""
    return f"<{prompt}>"


def completion(spec: int, prompt: int, sample: int) -> Row:
    """A completion that no other row has, around a text that files find hard to hold."""
    number = 100 * spec + 10 * prompt + sample
    text = HOSTILE[number % len(HOSTILE)]
    tokens = tuple(range(number, number + 1 + number % 5))
    return Row(spec, prompt, sample, f"{text}{number}" if text else "", tokens, (number + 0.1) / 3, {})


def write_run(
    folder: Path,
    rewards: Sequence[str | dict],
    objectives: Sequence[str] | None = None,
    *,
    groups: Mapping[str, Mapping[str, Sequence[MergeSpec]]] = GROUPS,
    **settings: object,
) -> Path:
    """Write a finished sweep with the scores of these reward models, of which `objectives` make the front, or all."""
    entries = reward_entries(rewards)
    models = load_reward_models(entries)
    folder.mkdir(parents=True)
    with Store(folder) as store:
        names = [model.name for model in models]
        facts = {
            "reward_names": names,
            "objectives": names if objectives is None else list(objectives),
            "reference_point": None,
            "reward_models": {name: reward_identity(entry) for name, entry in zip(names, entries, strict=True)},
            "samples_per_prompt": SAMPLES,
            "seed": 3,
            "sft_model": "sft",
            "policies": ["a", "b"],
            "morlhf": ["c"],
            "validation": None,
            "surrogate": None,
            "control": "texts.txt",
        }
        store.remember(**{**facts, **settings})
        for split, of_split in groups.items():
            points = [point for group, specs in of_split.items() for point in store.add_points(split, group, specs)]
            prompts = store.add_prompts(split, {prompt: shown(prompt) for prompt in PROMPTS[split]})
            for spec in sorted({point.spec_id for point in points}):
                for prompt, text in zip(prompts, PROMPTS[split], strict=True):
                    rows = [completion(spec, prompt, sample) for sample in range(SAMPLES)]
                    scores = [model.score([shown(text)] * SAMPLES, [row.text for row in rows]) for model in models]
                    of_rows = [dict(zip(names, values, strict=True)) for values in zip(*scores, strict=True)]
                    store.add(row._replace(scores=values) for row, values in zip(rows, of_rows, strict=True))
    trace_front(folder)
    write_record(folder, "sweep", {"seed": 3})
    return folder
