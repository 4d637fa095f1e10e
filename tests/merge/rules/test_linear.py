"""Weighted sums: public numbers of soups and of task arithmetic."""

from __future__ import annotations

import pytest

from rlhf_lines.merge import apply_lines, merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors


@pytest.mark.parametrize("dtype", WIDTHS)
def test_soups(dtype):
    residuals = task_vectors(3, dtype)
    assert_case("uniform_soup_n3", plus_base(merge_residuals(residuals)))
    assert_case("linear_interp_ft0_ft1_l0.3", plus_base(merge_residuals(residuals[:2], weights=[0.7, 0.3])))
    assert_case("task_arithmetic_sum_n3_lam0.4", plus_base(apply_lines(merge_residuals(residuals, "sum"), 0.4, 0.0)))
    assert_case("wise_ft_a0.3", plus_base(apply_lines(residuals[0], 0.3, 0.0)))
