"""AdaMerging: factors that make the merged model sure of its next tokens, on prompts without labels."""

from __future__ import annotations

from torch import Tensor

from rlhf_lines.sweep.engines.protocol import Pair


def entropy(logits: Tensor, pair: Pair) -> Tensor:
    """The mean entropy of the next token over the positions of a row, in nats.

        loss = 1/N sum_i 1/T_i sum_t H(p(. | x_i1 .. x_it))

    In the paper the model is a classifier with one distribution per input; of a language model every token of the
    prompt has one. It is low also where a model repeats itself: look at the scores.

    Source: arXiv 2310.02575, equation 5.

    Args:
        logits: `[T, V]`.
        pair: the tokens, which entropy does not look at.
    """
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1).mean()
