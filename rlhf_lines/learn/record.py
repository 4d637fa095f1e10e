"""What learning leaves: its files, the names of what it found, and the settings that a run may have otherwise."""

from __future__ import annotations


FACTORS, LEARNED = "factors.json", "learned.json"
SOUP, LINES, BEST = "soup", "lines", "learned"
PLACES = ("output_dir", "batch_size", "sft_renamed")  # settings on which no result depends
LIMITS = ("max_kl", "max_forgetting")  # of a resumed run they may be others: what was measured is the same
