"""Which of the shared reference vectors the tests use, and why not the others."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from rlhf_lines.merge.layers import layer_indices
from tests.merge.reference import FOLDER, ORIGIN, tensors


# Every case of the shared manifest that is not in reference/merge/origin.json, with the reason.
NOT_COVERED = {
    "doge_ta_n3": "DOGE-TA is no rule here: 400 optimiser steps per matrix",
    "fw_selection_n3": "Frank-Wolfe merging is no rule here: it needs gradients on task data",
    "m2n2_crossover_n2_w0.35_s3000": "natural niches are no rule here: an evolutionary search",
    "m2n2_update_archive": "natural niches are no rule here: an evolutionary search",
    "ota_n3": "OTA is no rule here: it needs the second moments of Adam",
    "ota_ffg_n3": "OTA is no rule here: it needs the second moments of Adam",
    "ota_rank1_n3": "OTA is no rule here: it needs the second moments of Adam",
}
# Not a merge: its numbers are kept with the tests of fronts.
OF_FRONTS = json.loads((FOLDER.parent / "pareto" / "origin.json").read_text())["cases"]
IN_THE_MANIFEST = 54


def test_every_case_is_used_or_has_a_reason():
    assert OF_FRONTS.keys() == {"map_quadratic_fit"}
    assert not ORIGIN["cases"].keys() & NOT_COVERED.keys()
    assert len(ORIGIN["cases"]) + len(OF_FRONTS) + len(NOT_COVERED) == IN_THE_MANIFEST


def names_in(source: str) -> set[str]:
    """The cases that strings of a test's source name, as they are or as files."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.removesuffix(".safetensors"))
    return ORIGIN["cases"].keys() & found


def test_every_case_in_the_repository_is_compared_with():
    """Read off the sources, so that it does not matter which tests run, in which order and in which process."""
    tables = ("test_vectors_covered.py", "test_registry.py")  # which only name them
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py") if path.name not in tables]
    compared = set().union(*(names_in(source) for source in sources if "from tests.merge.reference import" in source))
    assert ORIGIN["cases"].keys() - compared == set()


def test_reference_files_are_the_recorded_ones():
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.safetensors")}
    assert found == ORIGIN["sha256"]


def test_the_reference_model_is_read_whole():
    indices = layer_indices(tensors("model_base"))
    outside = {name for name, layer in indices.items() if layer is None}
    assert len(indices) == 57
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
