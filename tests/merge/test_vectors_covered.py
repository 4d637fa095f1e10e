"""Which of the shared reference vectors the tests use, and why not the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.merge.reference import COMPARED, FOLDER, ORIGIN


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


def test_every_case_in_the_repository_was_compared_with(request):
    """Files run in the order of their names: the tests that use the vectors have run, unless they were not chosen."""
    others = {path for path in Path(__file__).parent.rglob("test_*.py") if path != Path(__file__)}
    users = {path for path in others if "from tests.merge.reference import" in path.read_text()}
    config, chosen = request.config, {item.path for item in request.session.items}
    if not users <= chosen or config.option.keyword or any("::" in argument for argument in config.args):
        pytest.skip("not all tests of the vectors were chosen")
    assert ORIGIN["cases"].keys() - COMPARED == set()
