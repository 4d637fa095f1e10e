"""That the tests use every one of the shared reference vectors.

That every one of them was compared with is looked at when all tests have run: see `tests/conftest.py`.
"""

from __future__ import annotations

import hashlib
import json

from rlhf_lines.merge.layers import layer_indices
from tests.merge.reference import FOLDER, ORIGIN, tensors


# Not a merge: its numbers are kept with the tests of fronts.
OF_FRONTS = json.loads((FOLDER.parent / "pareto" / "origin.json").read_text())["cases"]
# Those of methods that learn factors; `tests/learn/` compares with each.
OF_LEARNING = json.loads((FOLDER.parent / "learn" / "origin.json").read_text())["cases"]
IN_THE_MANIFEST = 55


def test_every_case_is_used():
    assert OF_FRONTS.keys() == {"map_quadratic_fit"}
    assert OF_LEARNING.keys() == {"fw_selection_n3", "m2n2_crossover_n2_w0.35_s3000", "m2n2_update_archive"}
    assert len(ORIGIN["cases"]) + len(OF_FRONTS) + len(OF_LEARNING) == IN_THE_MANIFEST


def test_reference_files_are_the_recorded_ones():
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.safetensors")}
    assert found == ORIGIN["sha256"]


def test_the_reference_model_is_read_whole():
    indices = layer_indices(tensors("model_base"))
    outside = {name for name, layer in indices.items() if layer is None}
    assert len(indices) == 57
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
