"""Breadcrumbs: public numbers, and the rule as written in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.merge import apply_lines, merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors
from tests.merge.rules.oracles import (
    assert_is,
    by_parameter,
    flat,
    random_tensors,
)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_breadcrumbs_agrees_with_the_public_code(dtype):
    residuals = task_vectors(3, dtype)
    merged = merge_residuals(residuals, "breadcrumbs", keep=0.5, remove=0.125)
    assert_case("breadcrumbs_n3_keep0.5_remove0.125", plus_base(apply_lines(merged, 0.3, 0.0)))
    scaled = merge_residuals(residuals, "breadcrumbs", keep=0.5, remove=0.125, scale=0.3)
    assert_case("breadcrumbs_n3_keep0.5_remove0.125", plus_base(scaled))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_breadcrumbs_of_whole_tensors_is_mergekits_without_its_bug(dtype):
    """Of parameters with fewer than 1 / gamma entries mergekit drops the whole residual: it slices [n_bot:-0]."""
    case = "mergekit_breadcrumbs_n3_d0.8_g0.05_lam0.4"
    merged = merge_residuals(
        task_vectors(3, dtype), "breadcrumbs", keep=0.8, remove=0.05, scale=0.4, granularity="tensor"
    )
    ours, theirs, base = plus_base(merged), tensors(case), tensors("model_base")
    norms = [name for name in base if base[name].ndim == 1]
    assert len(norms) == 13
    for name in norms:
        torch.testing.assert_close(theirs[name], base[name], rtol=0, atol=1e-7)
        assert merged[name].count_nonzero() >= int(0.8 * 16)
    assert_case(case, {name: theirs[name].to(dtype) if name in norms else ours[name] for name in ours})


def crumbs(vector: np.ndarray, keep: float, remove: float, order: str) -> np.ndarray:
    """As written in words: take away the largest, keep the largest of the rest; or the other way round."""
    kept = np.zeros_like(vector)
    places = np.argsort(-np.abs(vector), kind="stable")
    first, count = int(remove * len(vector)), int(keep * len(vector))
    chosen = places[first:][:count] if order == "remove_first" else places[:count][first:]
    kept[chosen] = vector[chosen]
    return kept


@pytest.mark.parametrize("order", ["remove_first", "keep_first"])
@pytest.mark.parametrize(("keep", "remove"), [(0.2, 0.1), (0.5, 0.25), (0.9, 0.3), (0.1, 0.4), (1.0, 0.0), (0.0, 0.5)])
def test_breadcrumbs_is_what_its_words_say(keep, remove, order):
    residuals = random_tensors(2, torch.float64)
    settings = {"keep": keep, "remove": remove, "order": order}
    for granularity in ("tensor", "global"):
        got = merge_residuals(residuals, "breadcrumbs", granularity=granularity, scale=0.5, **settings)

        def oracle(vectors: np.ndarray) -> np.ndarray:
            return 0.5 * sum(crumbs(vector, keep, remove, order) for vector in vectors)

        expected = oracle(flat(residuals)) if granularity == "global" else by_parameter(flat(residuals), oracle)
        assert_is(got, expected)
    got = merge_residuals(residuals, "breadcrumbs", scale=0.5, **settings)
    for name in ("a.b", "v", "c"):
        taus = [residual[name].numpy() for residual in residuals if name in residual]
        rows = [np.apply_along_axis(crumbs, -1, tau, keep, remove, order) for tau in taus]
        np.testing.assert_allclose(got[name].numpy(), 0.5 * sum(rows), rtol=1e-12)
    assert got["s"] == 0.5 * sum(residual["s"] for residual in residuals)


def test_breadcrumbs_of_equal_magnitudes_takes_the_lower_index_first():
    # Of eight entries two are removed and four are kept.
    rows = {
        "all equal": ([1, -1, 1, 1, -1, 1, 1, 1], [0, 0, 1, 1, -1, 1, 0, 0]),
        "equal at the top": ([3, 5, -5, 5, 1, 2, 2.5, 0], [3, 0, 0, 5, 0, 2, 2.5, 0]),
        "equal at the bottom": ([9, 8, 7, 2, -2, 2, 2, 2], [0, 0, 7, 2, -2, 2, 0, 0]),
        "all different": ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 3, 4, 5, 6, 0, 0]),
    }
    tau = torch.tensor([given for given, _ in rows.values()])
    merged = merge_residuals([{"a": tau}], "breadcrumbs", keep=0.5, remove=0.25)["a"]
    assert merged.tolist() == [expected for _, expected in rows.values()]
    alone = torch.stack([merge_residuals([{"a": row}], "breadcrumbs", keep=0.5, remove=0.25)["a"] for row in tau])
    assert torch.equal(alone, merged)
