"""Stage `reward` for accelerate: accelerate launch scripts/train_reward.py --config FILE [--flag value ...]."""

from __future__ import annotations

import sys

from rlhf_lines.cli import main


if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
