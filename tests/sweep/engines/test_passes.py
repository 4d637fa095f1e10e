"""How many rows one forward pass over given tokens reads."""

from __future__ import annotations

import pytest

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.engines import sampling
from rlhf_lines.sweep.engines.sampling import rows_of_pass, sft_logprobs, text_nll


PAIRS = [((3 + i % 20, 4, 5, 6, 7)[: 1 + i % 5], (8, 9 + i % 3, 1)[: 1 + i % 3]) for i in range(40)]


@pytest.mark.parametrize(
    ("most", "length", "judged", "rows"),
    [(4096, 60, 31, 128), (4096, 1024, 31, 32), (4096, 1 << 14, 31, 8), (64, 60, 31, 8)],
    ids=["as many as logits allow", "as tokens allow", "not below 8 of long rows", "nor of a large vocabulary"],
)
def test_rows_of_a_pass(most, length, judged, rows):
    assert rows_of_pass(most, length, judged) == rows


@pytest.mark.parametrize("trees", [True, False])
def test_long_prompts_are_read_in_more_passes_and_with_the_same_result(multi_lora, monkeypatch, trees):
    monkeypatch.setattr(sampling, "takes_trees", lambda model: trees)
    sizes = []
    hook = multi_lora.model.register_forward_pre_hook(
        lambda model, arguments, options: sizes.append(options["input_ids"].shape), with_kwargs=True
    )
    try:
        together = sft_logprobs(multi_lora, PAIRS, 0, 1.0)
        assert len(sizes) == 1
        monkeypatch.setattr(sampling, "MOST_TOKENS", 40)
        sizes.clear()
        apart = sft_logprobs(multi_lora, PAIRS, 0, 1.0)
    finally:
        hook.remove()
    assert apart == pytest.approx(together, abs=1e-5)
    assert len(sizes) > 3
    assert all(rows * length <= 40 or (not trees and rows <= sampling.LEAST_ROWS) for rows, length in sizes)


def test_texts_are_read_in_more_passes_with_the_same_result(multi_lora, monkeypatch):
    rows = [list(range(3, 5 + i)) for i in range(20)]
    specs = [MergeSpec("linear", (i / 20, 1 - i / 20)) for i in range(20)]
    together = text_nll(multi_lora, specs, rows, 0)
    monkeypatch.setattr(sampling, "MOST_TOKENS", 40)
    assert text_nll(multi_lora, specs, rows, 0) == pytest.approx(together, abs=1e-4)
