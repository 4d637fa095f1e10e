"""Which of the shared reference vectors the tests use, and why not the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference import ORIGIN


# Every case of the shared manifest that is not in reference/merge/origin.json, with the reason.
NOT_COVERED = {
    "doge_ta_n3": "DOGE-TA is no rule here: 400 optimiser steps per matrix",
    "fw_selection_n3": "Frank-Wolfe merging is no rule here: it needs gradients on task data",
    "m2n2_crossover_n2_w0.35_s3000": "natural niches are no rule here: an evolutionary search",
    "m2n2_update_archive": "natural niches are no rule here: an evolutionary search",
    "map_quadratic_fit": "MAP estimates a front, it does not merge",
    "ota_n3": "OTA is no rule here: it needs the second moments of Adam",
    "ota_ffg_n3": "OTA is no rule here: it needs the second moments of Adam",
    "ota_rank1_n3": "OTA is no rule here: it needs the second moments of Adam",
}
IN_THE_MANIFEST = 54


def test_every_case_is_used_or_has_a_reason():
    assert not ORIGIN["cases"].keys() & NOT_COVERED.keys()
    assert len(ORIGIN["cases"]) + len(NOT_COVERED) == IN_THE_MANIFEST


@pytest.mark.parametrize("case", sorted(ORIGIN["cases"]))
def test_a_case_in_the_repository_is_read_by_a_test(case):
    others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert any(f'"{case}"' in path.read_text() for path in others)
