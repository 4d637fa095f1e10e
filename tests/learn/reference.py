"""The inputs and outputs of public codes that learn factors, as tests read them (origin.json says whose they are)."""

from __future__ import annotations

import json
from pathlib import Path


FOLDER = Path(__file__).parent.parent / "reference" / "learn"
ORIGIN = json.loads((FOLDER / "origin.json").read_text())
CASES = ORIGIN["cases"]
