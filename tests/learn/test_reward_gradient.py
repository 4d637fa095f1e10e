"""Baselines by hand, and an expectation that the gradient keeps."""

from __future__ import annotations

import numpy as np

from rlhf_lines.learn.reward_gradient import advantages


def test_of_several_samples_the_others_of_the_prompt_are_the_baseline():
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    assert advantages([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_of_one_sample_the_other_prompts_are():
    assert advantages([[1.0], [2.0], [6.0]]).tolist() == [[-3.0], [-1.5], [4.5]]
    assert advantages([[4.0]]).tolist() == [[0.0]]


def test_the_estimate_is_unbiased():
    """Of a Bernoulli policy with logit x and reward 1 for a success: d/dx p = p (1 - p)."""
    draws = np.random.default_rng(0)
    p = 0.3
    drawn = (draws.random((200_000, 3)) < p).astype(float)
    estimates = (advantages(drawn) * (drawn - p)).mean(axis=1)  # d log p(y) / dx = y - p
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - p * (1 - p)) < 4 * error
