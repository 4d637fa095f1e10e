"""aTLAS: factors that make demonstrations likely."""

from __future__ import annotations

from torch import Tensor

from rlhf_lines.sweep.engines.protocol import Pair


def negative_log_likelihood(logits: Tensor, pair: Pair) -> Tensor:
    """-log p(completion | prompt) of a demonstration, in nats, summed over its tokens.

    The paper learns a factor per policy and parameter block by the cross-entropy of labelled examples; here a block is
    a layer, and an example the completion of a prompt.

    Source: arXiv 2407.02880, equation 3 (anisotropic scaling).

    Args:
        logits: `[T, V]`, of all tokens.
        pair: the tokens of prompt and completion.
    """
    before, after = pair
    logprobs = logits[len(before) - 1 : -1].log_softmax(-1)
    return -logprobs.gather(-1, logits.new_tensor(after).long().unsqueeze(-1)).sum()
