"""Factors by policy and layer that are learned: what the merge rule `layerwise` takes.

A method searches a space of few numbers (merge/space.py). Each candidate is a row of coefficients of one loaded base
(sweep.engines), so that it costs completions and no model. What a candidate is worth is measured on training prompts
(trials.py); what was found is measured once more on validation prompts, beside the soup and the best LiNeS of a grid of
as many candidates. Test prompts are not read.
"""
