"""Train one LoRA policy per reward, merge them with LiNeS, and trace the Pareto front of all rewards."""

from __future__ import annotations


__version__ = "0.1.0"
