"""`python -m rlhf_lines` is `rlhf-lines`."""

from __future__ import annotations

import sys

from rlhf_lines.cli import main


sys.exit(main())
