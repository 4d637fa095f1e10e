"""What a merge is told about its settings before anything is read."""

from __future__ import annotations

import pytest

from rlhf_lines.merge.basis_config import RebuildConfig
from rlhf_lines.merge.config import MergeConfig


IDLE = "schedule sqrt has no effect: beta is 0, so every layer has the factor alpha"
NOT_WHOLE = "max_memory 1,000,000,000 bytes has no effect: rule {} needs no whole parameter at once"


@pytest.mark.parametrize(
    ("settings", "sentences"),
    [
        ({}, []),
        ({"schedule": "sqrt"}, [IDLE]),
        ({"schedule": "sqrt", "alpha": "auto"}, [IDLE]),
        ({"schedule": "sqrt", "beta": 0.5}, []),
        ({"max_memory": "4GB"}, []),
        ({"max_memory": "1GB"}, [NOT_WHOLE.format("linear")]),
        ({"max_memory": "1GB", "rule": "sum", "save": "dense"}, [NOT_WHOLE.format("sum")]),
        ({"max_memory": "1GB", "rule": "factor_average"}, [NOT_WHOLE.format("factor_average")]),
        ({"max_memory": "1GB", "rule": "opcm", "rank": 8}, []),
    ],
    ids=str,
)
def test_what_is_given_and_has_no_effect_is_told(settings, sentences):
    assert (
        MergeConfig(
            **{"sft_model": "sft", "policies": ["a", "b"], "save": "adapter", "output_dir": "out"} | settings
        ).without_effect
        == sentences
    )


def test_a_rebuilt_adapter_is_told_of_an_idle_schedule():
    assert RebuildConfig("basis", [0.0, 1.0], "out", schedule="sqrt").without_effect == [IDLE]
    assert RebuildConfig("basis", [0.0, 1.0], "out", schedule="sqrt", beta=1.0).without_effect == []
