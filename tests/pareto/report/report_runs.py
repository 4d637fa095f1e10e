"""Synthetic sweeps for the report: fronts with every key, completions, and texts that try to get out of their place."""

from __future__ import annotations

import numpy as np

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.report import Completions


WEIGHTS = tuple((i / 10, (10 - i) / 10) for i in range(11))
MINUS = "\u2212"
GAINS = {"rewarded_soup": 1.0, "lines": 1.25, "scaled": 1.1, "reversed": 0.8}
WORDS = ["rain", "fell", "over", "hills", "while", "people", "in", "town", "went", "on", "with", "their", "work"]
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2">',
    "<!--<script>",
    "&amp; &lt;b&gt; \"double\" 'single' `back`",
    "<b>bold</b> <a href='javascript:window.hacked=3'>link</a>",
    "\u202eright to left\u202c שלום 😀 \x00 \u2028 end",
    "{{script}} %{text} $x^2$ ${state.x}",
)


def make_front(
    rewards=("brief", "faithful"), weights=WEIGHTS, prompts=24, groups=tuple(GAINS), rename=lambda group: group
):
    """Returns a front with every key that a report can show."""
    generator = np.random.default_rng(5)
    base = generator.normal(size=(prompts, len(rewards)))

    def point(group, weights, gain):
        shares = np.array([*weights, *[0.2] * (len(rewards) - len(weights))][: len(rewards)])
        spec = {"rule": "linear", "weights": list(weights), "alpha": 1.0, "schedule": "linear", "options": {}}
        spec["beta"] = 1.0 if group == "lines" else 0.0
        noise = 0.15 * generator.normal(size=(prompts, len(rewards)))
        scores = base + gain * np.sqrt(shares) + noise
        return {"group": rename(group), "spec": spec, "scores": scores, "kl": generator.gamma(2.0, size=prompts)}

    points = [point("sft", (0.0, 0.0), 0.0)]
    points += [point(group, w, GAINS.get(group, 0.9)) for group in groups for w in WEIGHTS]
    points = [{"id": 3 * i, **fields} for i, fields in enumerate(points)]
    front = build_front(
        rewards=rewards,
        split="test",
        seed=0,
        points=points,
        resamples=50,
        sft_model="outputs/sft",
        policies=[f"outputs/ppo-{name}" for name in ("first", "second")],
        forgetting={"texts": 50, "tokens": 2048, "source": "notes.txt"},
    )
    add_validation(front)
    for point in front["points"]:
        centre = 5 + 0.4 * GAINS.get(point["group"], 0.0) * sum(w**2 for w in point["spec"]["weights"])
        point["perplexity"] = {"mean": centre, "low": centre - 0.05, "high": centre + 0.06}
    quadratic = {"monomials": ["w1^2", "w1", "1"], "coefficients": {reward: [-1.0, 1.0, 0.5] for reward in rewards}}
    front["surrogate"] = {
        group: {"sampled": [0, 3, 6], "predicted": [_predicted(point, rewards) for point in points[:3]]}
        | {**quadratic, "r2": dict.fromkeys(rewards, 1.0)}
        for group in front["fronts"]
        for points in [[point for point in front["points"] if point["group"] == group]]
    }
    return front


def _predicted(point, rewards):
    measured = {reward: point["scores"][reward]["mean"] for reward in rewards}
    return {"id": point["id"], "measured": measured, "predicted": {r: value + 0.05 for r, value in measured.items()}}


def add_validation(front):
    """Adds a map over (alpha, beta) whose best cell is alpha 1, beta 1."""
    grid = [
        {"alpha": alpha, "beta": beta, "schedule": "linear"}
        | {"hypervolume": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        | {"kl": 3.0 + beta, "forgetting": None, "lowest": {}, "within_limits": True}
        for alpha in (0.5, 1.0, "auto")
        for beta in (0.0, 0.5, 1.0)
        for value in [2.0 + beta - (0.3 if alpha == 0.5 else 0.1 if alpha == "auto" else 0.0)]
    ]
    chosen = {"alpha": 1.0, "beta": 1.0, "schedule": "linear"}
    front["validation"] = {"prompts": 16, "weights": 3, "reference_point": [0.0] * len(front["rewards"])}
    front["validation"] |= {"grid": grid, "chosen": chosen, "at_edge": True, "max_kl": None, "max_forgetting": None}
    front["validation"] |= {"minimum": {}, "groups": {}}


def make_completions(front, prompts=24, samples=1, length=60, hostile=False):
    """Returns completions of every point of a front; every prompt and completion says which one it is."""
    generator = np.random.default_rng(6)

    def text(number):
        words = " ".join(generator.choice(WORDS, size=40))[:length]
        return f"{words} {HOSTILE[number % len(HOSTILE)]}" if hostile else words

    ids = [point["id"] for point in front["points"]]

    def values():
        return {spec: generator.normal(size=(prompts, samples)).tolist() for spec in ids}

    return Completions(
        prompts=[f"prompt {p}: {text(p)}" for p in range(prompts)],
        total=prompts,
        spec_of={i: i for i in ids},
        texts={i: [[f"{i}.{p}.{s} {text(p + s)}" for s in range(samples)] for p in range(prompts)] for i in ids},
        kl=values(),
        scores={reward: values() for reward in front["rewards"]},
    )


MADE = {
    "title": "demo",
    "facts": [["seed", "0"], ["reference point", "lowest mean score"]],
    "run": "outputs/demo/sweep",
    "merges": {"3": "rlhf-lines merge --output_dir outputs/demo/sweep/point_3"},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "commands": [["Sweep again", "rlhf-lines sweep --config outputs/demo/sweep/config.yaml"]],
    "config": "seed: 0\nrewards: [brief, faithful]\n",
}
