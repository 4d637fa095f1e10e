"""The printed command is read by the project's own parser, and gives back the spec of the point."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.pareto import build_front, merge_arguments, picked_text
from rlhf_lines.stages import read_stage


SOURCES = {"sft_model": "my models/sft", "policies": ["policies/brief", "it's/here", "runs/morlhf $HOME"]}


@pytest.fixture
def front(make_points):
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=make_points(), resamples=20)
    return front | SOURCES


def parsed(line):
    program, verb, *arguments = shlex.split(line)
    assert (program, verb) == ("rlhf-lines", "merge")
    _, (_, config), _ = read_stage("merge", arguments)
    return config


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec("linear", (0.30000000000000004, 0.7), beta=0.5),
        MergeSpec("linear", (1 / 3, 2 / 3), alpha=0.1 + 0.2, beta=1e-7, schedule="sqrt"),
        MergeSpec("linear", (0.0, 0.0, 1.0)),
        MergeSpec("sum", (-1e-5, 1e22), alpha=-0.25, beta=-1e-9, schedule="reversed"),
        MergeSpec("ties", (0.5, 0.5), alpha="auto", beta=0.3, options={"density": 0.2, "reduction": "sum"}),
        MergeSpec("dare", (0.5, 0.5), schedule="quadratic", options={"seed": 3, "then": "ties"}),
        MergeSpec("peft_linear", (0.5, 0.5)),
    ],
    ids=lambda spec: spec.rule,
)
def test_the_command_is_the_merge_of_the_point(front, spec):
    point = {**front["points"][3], "spec": spec.to_dict()}
    config = parsed(picked_text(front, point, "runs/my sweep").splitlines()[-1])
    assert config.spec() == spec
    assert config.sft_model == "my models/sft"
    assert config.policies == SOURCES["policies"][: len(spec.weights)]
    assert config.save == ("dense" if spec.rule in ("ties", "dare") else "adapter")
    assert config.output_dir == "runs/my sweep/point_3"
    # Every setting is written: nothing rests on the defaults of another version.
    arguments = merge_arguments(front, point, "out")
    assert {"--rule", "--alpha", "--beta", "--schedule", "--save"} <= set(arguments)


def test_the_text_has_scores_with_intervals_and_what_else_is_known(front):
    lines = picked_text(front, front["points"][9], "run").splitlines()
    spec = front["points"][9]["spec"]
    assert lines[0] == "point 9: lines, linear, weights 0.75 0.25, alpha 1, beta 1, schedule linear"
    assert spec["weights"] == [0.75, 0.25]
    score, kl = front["points"][9]["scores"]["b"], front["points"][9]["kl"]
    assert lines[2] == f"  b   {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert lines[3] == f"  kl  {kl['mean']:.3f} [{kl['low']:.3f}, {kl['high']:.3f}]"
    assert lines[4] == "  mean [95 % interval] over 40 test prompts"
    front["points"][9]["perplexity"] = {"mean": 12.5, "low": 11.0, "high": 13.25}
    assert "  perplexity  12.50 [11.00, 13.25]" in picked_text(front, front["points"][9], "run").splitlines()


def test_the_sft_model_needs_no_merge(front):
    text = picked_text(front, front["points"][0], "run")
    assert text.splitlines()[-1] == "It is the SFT model itself, no merge is needed: my models/sft"
    assert "rlhf-lines merge" not in text
    with pytest.raises(ValueError, match="point 0 is the SFT model itself, my models/sft; there is nothing to merge"):
        merge_arguments(front, front["points"][0], "out")


def test_a_single_policy_is_named_beside_its_command(front):
    text = picked_text(front, front["points"][1], "run")
    assert "  it is one policy as it was trained: it's/here" in text.splitlines()
    assert parsed(text.splitlines()[-1]).weights == [0.0, 1.0]
    for i in (2, 6):  # a mixture; one policy, scaled
        assert "one policy" not in picked_text(front, front["points"][i], "run")


@pytest.mark.parametrize("key", ["policies", "sft_model"])
def test_a_front_that_does_not_know_its_policies_says_what_to_do(front, key):
    del front[key]
    for point in front["points"][:2]:
        with pytest.raises(ValueError, match="run it again with: rlhf-lines front runs/x"):
            picked_text(front, point, "runs/x")
        with pytest.raises(ValueError, match="run it again with: rlhf-lines front RUN_DIR"):
            merge_arguments(front, point, "out")


def test_picking_imports_no_torch():
    script = (
        "import sys, rlhf_lines.pareto, rlhf_lines.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
