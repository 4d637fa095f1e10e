"""What learning leaves: its files, the names of what it found, and the settings that a run may have otherwise."""

from __future__ import annotations


FACTORS, LEARNED = "factors.json", "learned.json"
SOUP, LINES, BEST = "soup", "lines", "learned"
CHANGEABLE = ("output_dir", "batch_size", "sft_renamed")  # what a resumed run may have otherwise
