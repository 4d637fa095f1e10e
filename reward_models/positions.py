"""From which number a model counts the tokens of a text; without torch, which a limit is told without."""

from __future__ import annotations

from typing import Any


# RoBERTa and its relatives number the tokens of a text themselves, from the padding token's id plus 1: so many of their
# positions are never reached, and those that they are told count from another number than 0.
FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def first_position(config: Any) -> int:
    """The number that a model gives the first token of a text.

    Args:
        config: of a transformers model that reads text, or of the part of it that does.
    """
    return (getattr(config, "pad_token_id", None) or 0) + 1 if config.model_type in FROM_PADDING else 0
