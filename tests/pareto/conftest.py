"""Synthetic points: two groups of five on the same prompts, and the SFT model."""

from __future__ import annotations

import numpy as np
import pytest


WEIGHTS = ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0))


@pytest.fixture
def make_points():
    """Returns a maker of points as mappings; the point in the middle of ``lines`` is far inside its own front."""

    def make(prompts=40, rewards=2, seed=3):
        generator = np.random.default_rng(seed)
        base = generator.normal(size=(prompts, rewards))

        def point(i, group, weights, gain, beta):
            weights = np.array([*weights, *[0.2] * (rewards - 2)])
            scores = base + gain * np.sqrt(weights) + 0.2 * generator.normal(size=(prompts, rewards))
            spec = {"rule": "linear", "weights": [float(w) for w in weights], "alpha": 1.0, "beta": beta}
            spec |= {"schedule": "linear", "options": {}}
            return {"id": i, "group": group, "spec": spec, "scores": scores, "samples_per_prompt": 2}

        points = [point(0, "sft", [0.0, 0.0], 0.0, 0.0)]
        for w in WEIGHTS:
            points.append(point(len(points), "rewarded_soup", w, 1.0, 0.0))
        for w in WEIGHTS:
            gain = 0.1 if w == (0.5, 0.5) else 1.5
            points.append(point(len(points), "lines", w, gain, 1.0))
            points[-1]["kl"] = generator.gamma(2.0, size=prompts)
        return points

    return make
