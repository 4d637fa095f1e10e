"""What a merge writes: weights, record, model card, mergekit config."""
