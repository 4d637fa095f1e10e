"""Train one LoRA policy per reward, merge them with LiNeS, and trace the Pareto front of all rewards."""

__version__ = "0.1.0"
