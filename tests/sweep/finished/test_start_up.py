"""What reads a finished sweep starts without the libraries that made it, which take seconds to import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys


SCRIPT = """
import json, sys
from rlhf_lines import cli

for words in json.loads(sys.argv[1]):
    assert cli.main(words) == 0, words
    assert not (found := set(sys.argv[2:]) & set(sys.modules)), (words, found)
"""


def test_no_verb_that_reads_a_finished_sweep_imports_torch(sweep, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(sweep, tmp_path / name)
    verbs = [
        ["pick", "one", "--preference", "0.5", "0.5"],
        ["export", "one", "--format", "csv"],
        ["compare", "one", "two"],
        ["front", "one"],
        ["report", "one"],
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(verbs), "torch", "transformers", "trl", "peft", "datasets"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
