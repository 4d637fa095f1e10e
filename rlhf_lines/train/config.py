"""What the training stages are configured by, apart from their trainers, whose import takes seconds of a `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import ModelConfig, RewardConfig, SFTConfig

from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.data.config import DemonstrationDataConfig, PreferenceDataConfig, TrainingDataConfig
from rlhf_lines.task_rewards import RewardEntry, check_some
from rlhf_lines.train.ppo_config import PPOConfig


@dataclass
class RewardsConfig:
    """What the policy is trained to please."""

    rewards: list[RewardEntry] = field(
        metadata={
            "help": "Reward models: folders of the reward stage, presets, Hub ids, module:function or rule:name; or "
            "mappings with model, name, weight, normalize, clip, dtype, batch_size and options.",
            "parse": RewardEntry.of,
        }
    )

    def __post_init__(self) -> None:
        read_fields(self)
        check_some(self.rewards)


SFT = (RunConfig, DemonstrationDataConfig, SFTConfig, ModelConfig)
REWARD = (RunConfig, PreferenceDataConfig, RewardConfig, ModelConfig)
PPO = (RunConfig, TrainingDataConfig, RewardsConfig, PPOConfig, ModelConfig)
