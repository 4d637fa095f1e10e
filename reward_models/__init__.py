"""Reward models: anything that scores a completion of a prompt, as text. Higher is better.

A reward model has its own tokenizer and its own text format, so it can be of another family than the policy. This
package imports nothing of `rlhf_lines`.
"""

from __future__ import annotations

from reward_models.base import RewardModel
from reward_models.classifier import Classifier
from reward_models.format import Format, read_settings, write_settings
from reward_models.function import FunctionReward
from reward_models.generative import Generative
from reward_models.judge import Comparer, Grader, Judge
from reward_models.load import load
from reward_models.normalize import Normalization
from reward_models.presets import PRESETS, Preset
from reward_models.remote import RemoteReward
from reward_models.rules import RULES, FormatRule, LengthRule, LexicalRule, ReadabilityRule
from reward_models.similarity import Similarity


__all__ = [
    "PRESETS",
    "RULES",
    "Classifier",
    "Comparer",
    "Format",
    "FormatRule",
    "FunctionReward",
    "Generative",
    "Grader",
    "Judge",
    "LengthRule",
    "LexicalRule",
    "Normalization",
    "Preset",
    "ReadabilityRule",
    "RemoteReward",
    "RewardModel",
    "Similarity",
    "load",
    "read_settings",
    "write_settings",
]
