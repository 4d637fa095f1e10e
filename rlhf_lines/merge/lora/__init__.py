"""Merging in the factors of LoRA: exact stacking, rules on A and B, truncation to a rank."""
