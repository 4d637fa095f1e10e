"""Fronts whose policies are damaged in known shares of their completions."""

from __future__ import annotations

import numpy as np

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.behaviour import Behaviour


P, MOST, END = 200, 32, 99
ENDS = {"rewarded_soup": 1.0, "lines": 2.0}


def texts_of(*, empty=0, cut=0, tokens=16, repeated=0, distinct=P):
    """Returns texts and token ids of P prompts: the first are empty, the last cut, `repeated` of them one token."""
    texts, ids = [], []
    for p in range(P):
        written = list(range(100 * p + 100, 100 * p + 100 + tokens - 1))
        if p < empty:
            texts.append([""])
            ids.append([[END]])
            continue
        if 60 <= p < 60 + repeated:
            written = [7] * (tokens - 1)
        texts.append([f"text {p % distinct}"])
        ids.append([[*range(MOST)] if p >= P - cut else [*written, END]])
    return texts, ids


def front_of(changed=None, scores=None):
    """Returns a front of two groups and the SFT model; `changed` says by (group, weights) what is otherwise."""
    generator = np.random.default_rng(2)
    base = generator.normal(size=(P, 2))

    def point(i, group, weights, gain, **texts):
        values = (scores or {}).get((group, weights), base + gain)
        behaviour = Behaviour.of(*texts_of(**texts), values[:, None], max_new_tokens=MOST, end_tokens=[END])
        spec = {"rule": "linear", "weights": list(weights), "alpha": gain[0] + gain[1], "beta": 0.0}
        spec |= {"schedule": "linear", "options": {}}
        return {"id": i, "group": group, "spec": spec, "scores": values, "behaviour": behaviour}

    points = [point(0, "sft", (0.0, 0.0), np.zeros(2), **(changed or {}).get(("sft", None), {}))]
    for group, size in ENDS.items():
        for weights in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
            gain = size * np.sqrt(weights)
            points.append(point(len(points), group, weights, gain, **(changed or {}).get((group, weights), {})))
    return build_front(rewards=["a", "b"], split="test", seed=1, points=points, resamples=200)


# The demo's: 22.5 % empty at one end of the winning front, 29 % cut at the other.
DEMO = {
    ("sft", None): {"empty": 2, "cut": 6},
    ("lines", (1.0, 0.0)): {"empty": 45, "cut": 6},
    ("lines", (0.0, 1.0)): {"empty": 2, "cut": 58},
    ("rewarded_soup", (1.0, 0.0)): {"empty": 20, "cut": 6},
}
