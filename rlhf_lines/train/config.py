"""What the training stages are configured by, apart from their trainers, whose import takes seconds of a `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import ModelConfig

from reward_models import Format
from reward_models.conversation import CHAT, conversation
from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.data.config import DemonstrationDataConfig, PreferenceDataConfig, TrainingDataConfig
from rlhf_lines.data.writer import margin_of
from rlhf_lines.task_rewards import KINDS, RewardEntry, check_some
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.settings import PolicyModelConfig, RewardSettings, SFTSettings


@dataclass
class RewardsConfig:
    """What the policy is trained to please."""

    rewards: list[RewardEntry] = field(
        metadata={
            "help": f"Reward models: {KINDS}; or mappings with model, name, weight, normalize, clip, dtype, "
            "batch_size, options, template, label and system.",
            "parse": RewardEntry.of,
        }
    )

    def __post_init__(self) -> None:
        read_fields(self)
        check_some(self.rewards)


@dataclass
class RewardTextConfig:
    """What a reward model is trained to read."""

    template: str = field(
        default=Format().template,
        metadata={
            "help": "The text of a pair, with {prompt} and {completion}; or chat: the conversation in the chat "
            "template of the base's tokenizer. The trained model remembers it."
        },
    )

    def __post_init__(self) -> None:
        self.format()

    def format(self, **others) -> Format:
        """The format of the trained model: a text ends with the tokenizer's EOS, as TRL trains it."""
        return Format(template=self.template, append_eos=self.template != CHAT, **others)

    def row(self, pair: dict, special_tokens: dict[str, str | None]) -> dict:
        """The row from which TRL's RewardTrainer, which adds EOS to a text, makes what the format says.

        It asks for a score of the chosen text that is higher by the pair's margin, if there is one.
        """
        if self.template == Format().template:
            return pair
        sides = ("chosen", "rejected")
        if self.template == CHAT:
            return {side: conversation(pair["conversation"], pair[side]) for side in sides} | margin_of(pair)
        plain = Format(template=self.template)
        return {side: plain.render(pair["prompt"], pair[side], special_tokens)[0] for side in sides} | margin_of(pair)


SFT = (RunConfig, DemonstrationDataConfig, SFTSettings, ModelConfig)
REWARD = (RunConfig, PreferenceDataConfig, RewardTextConfig, RewardSettings, ModelConfig)
PPO = (RunConfig, TrainingDataConfig, RewardsConfig, PPOConfig, PolicyModelConfig)
