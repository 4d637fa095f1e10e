"""The stages that train: supervised fine-tuning, reward models, PPO."""
