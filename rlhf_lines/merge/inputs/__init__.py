"""What a merge reads: the SFT model, adapters, dense checkpoints, tokenizers and statistics."""
