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
    "fisher_n3": "`fisher` is not written yet",
    "fisher_matena_n3": "`fisher` is not written yet",
    "fisher_n3_fusionbench_norm_min1e-6": "`fisher` is not written yet",
    "fisher_wiseft_n2_a0.3": "`fisher` is not written yet",
    "opcm_n2_a0.5": "`opcm` is not written yet",
    "pcb_n3_r0.1": "`pcb` is not written yet",
    "pcb_nlp_n3_r0.1": "`pcb` is not written yet",
    "pcb_vision_n3_r0.05": "`pcb` is not written yet",
    "regmean_n3": "`regmean` is not written yet",
    "widen_n3_r1_c1": "`widen` is not written yet",
}
IN_THE_MANIFEST = 54


def test_every_case_is_used_or_has_a_reason():
    assert not ORIGIN["cases"].keys() & NOT_COVERED.keys()
    assert len(ORIGIN["cases"]) + len(NOT_COVERED) == IN_THE_MANIFEST


@pytest.mark.parametrize("case", sorted(ORIGIN["cases"]))
def test_a_case_in_the_repository_is_read_by_a_test(case):
    others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert any(f'"{case}"' in path.read_text() for path in others)
