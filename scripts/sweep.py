"""Stage `sweep` as a script: python scripts/sweep.py --config FILE [--flag value ...]."""

from __future__ import annotations

import sys

from rlhf_lines.cli import main


if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
