"""What a config of learning may not say, each in one sentence."""

from __future__ import annotations

import importlib.util

import pytest

from rlhf_lines.learn import methods
from rlhf_lines.learn.config import METHODS, LearnConfig


NEEDED = {"sft_model": "sft", "policies": ["a", "b"], "rewards": ["rule:length", "m:f"], "output_dir": "out"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "evolve"}, "method is 'evolve', expected evolution, natural_niches, adamerging, atlas"),
        ({"aim": "front"}, "aim is 'front', expected utility or hypervolume"),
        ({"space": "all"}, "space is 'all', expected profile, coefficients or policies"),
        ({"policies": []}, "policies is empty"),
        ({"num_candidates": 1}, "num_candidates is 1, expected at least 2"),
        ({"population": 200}, "population is 200, but num_candidates 200: give more candidates"),
        (
            {"aim": "hypervolume", "num_weights": 99, "policies": [*"abcdef"]},
            "num_weights 99 with 6 policies makes 87,541,245 points, expected at most 100,000: give a smaller one$",
        ),
        ({"step": 0.0}, "step is 0.0, expected a number above 0"),
        ({"max_kl": -1.0}, "max_kl is -1.0, expected a number above 0"),
        ({"max_forgetting": 0.0, "control": "docstrings"}, "max_forgetting is 0.0, expected a number above 0"),
        ({"max_forgetting": 1.1}, "max_forgetting is given, but no control: name texts outside the task there"),
        ({"control": "docstrings"}, "control is given, but no max_forgetting: give both, or leave it out"),
        ({"max_kl": 1.0, "temperature": 0.0}, "max_kl needs completions drawn from the policy"),
        ({"preference": [1.0]}, r"preference is \[1.0\], expected 2 numbers of at least 0, one per objective"),
        ({"preference": [0.0, 0.0]}, "expected 2 numbers of at least 0"),
        ({"preference": [1.0, -1.0]}, "expected 2 numbers of at least 0"),
        ({"preference": [1.0, 1.0], "aim": "hypervolume"}, "preference is given, but aim is hypervolume"),
        ({"num_weights": 7}, "num_weights is given, but aim is utility"),
        ({"aim": "hypervolume", "policies": ["a"]}, "a single policy has no front"),
        ({"method": "grid", "step": 0.5}, "step is given, but method is grid"),
        ({"method": "grid", "space": "coefficients"}, "space is given, but method is grid"),
        ({"method": "adamerging", "population": 5}, "population is given, but method is adamerging: leave it out"),
        ({"num_steps": 5}, "num_steps is given, but method is evolution: leave it out"),
        ({"method": "adamerging", "compare_grid": False, "num_candidates": 9}, "num_candidates is given, but method"),
        ({"method": "adamerging", "learning_rate": 0.0}, "learning_rate is 0.0, expected a number above 0"),
        ({"method": "frank_wolfe"}, "space is profile, but frank_wolfe steps towards policies"),
        (
            {"method": "frank_wolfe", "space": "policies", "learning_rate": 0.1},
            "learning_rate is given, but soft_steps is 0",
        ),
        ({"soft_steps": 3}, "soft_steps is given, but method is evolution: leave it out"),
        (
            {"method": "reward_gradient", "aim": "hypervolume"},
            "but reward_gradient needs what single prompts are worth",
        ),
        ({"method": "reward_gradient", "temperature": 0.7}, "reward_gradient needs completions drawn at temperature 1"),
        ({"method": "natural_niches", "num_candidates": 20}, "num_candidates is 20, expected more than the 20"),
        ({"kl_coef": 0.1}, "kl_coef is given, but method is evolution"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "are both given: keep one"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LearnConfig(**{**NEEDED, **changes})


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cma" else found(name))
    with pytest.raises(ValueError, match="method evolution needs the package cma: pip install cma"):
        LearnConfig(**NEEDED)
    assert LearnConfig(**NEEDED, method="natural_niches")


def test_every_method_has_its_function():
    assert tuple(methods.METHODS) == METHODS


def test_defaults_are_accepted():
    assert LearnConfig(**NEEDED).method == "evolution"
