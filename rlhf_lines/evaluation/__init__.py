"""`rlhf-lines evaluate`: public benchmarks for the points of a finished sweep, by lm-eval, on the one loaded base.

lm-eval asks, templates, generates and counts as it does for any model of transformers (`harness`). Ours is the model:
before a point is asked, the loaded base is made to follow its spec (`sweep.engines.local`), so nothing is merged on
disk and nothing is loaded per point.
"""
