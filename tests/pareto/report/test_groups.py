"""The colours of groups on a dark page."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.report.groups import luminance, on_dark
from rlhf_lines.pareto.schema import GROUPS, OTHER_LOOKS


@pytest.mark.parametrize("colour", [*(group.colour for group in GROUPS.values()), *(look[0] for look in OTHER_LOOKS)])
def test_colours_can_be_told_from_a_dark_page(colour):
    page = luminance([0x14, 0x17, 0x1C])
    lighter = luminance([int(on_dark(colour)[i : i + 2], 16) for i in (1, 3, 5)])
    assert (lighter + 0.05) / (page + 0.05) >= 4.5  # WCAG 2.2, contrast ratio, level AA


def test_luminance_is_that_of_wcag():
    assert luminance([255, 255, 255]) == pytest.approx(1.0)
    assert luminance([0, 0, 0]) == 0.0
    # #767676 is known as the lightest grey of contrast 4.5 on white.
    assert 1.05 / (luminance([0x76] * 3) + 0.05) >= 4.5 > 1.05 / (luminance([0x77] * 3) + 0.05)
