"""How a scaling is chosen: every group alike, beyond the edge of its candidates, within limits, also when killed."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.artifact import partial_folder
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.schema import faults, label
from rlhf_lines.stages import run_stage
from rlhf_lines.summary import summary
from rlhf_lines.sweep.begun import check_begun
from rlhf_lines.sweep.choices import Scaling, grid
from rlhf_lines.sweep.run import _refuse_earlier
from rlhf_lines.sweep.store import Store
from tests.sweep.of_a_run import area, assert_same_store, means_by_hand, read, strict_json


pytestmark = pytest.mark.usefixtures("without_pictures")
TIES = {"name": "sparse", "rule": "ties", "options": {"density": 0.5}, "alphas": [0.5, 1.0], "betas": [0.0, 0.5]}
SMALL = {
    "alphas": [0.2, 0.4],
    "betas": [0.2, 0.4],
    "controls": "true",
    "edge_extensions": 4,
    "num_weights": 2,
    "validation_weights": 2,
    "test_prompts": 4,
    "max_new_tokens": 6,
}
TUNED = {"groups": [json.dumps(TIES)]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """The sweeps that are made already, by their changes, which tests only read."""
    return {}


@pytest.fixture
def run(flags, made, tmp_path_factory):
    """A function from changes of a small sweep to its folder, and what it says of validation."""

    def make(**changes):
        key = json.dumps(changes, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp("sweeps") / "sweep"
            made[key] = run_stage("sweep", flags(folder, **{**SMALL, **changes}))
        front = strict_json(made[key] / "front.json")
        assert list(faults(front)) == []
        return made[key], front["validation"]

    return make


def tunings_of(validation) -> dict[str, dict]:
    """Of every group, LiNeS first, what was tried and chosen."""
    return {"lines": validation, **validation["groups"]}


def scaling_of(entry) -> tuple:
    return entry["alpha"], entry["beta"], entry["schedule"]


def points_of(folder, group: str, entry) -> list[tuple[int, dict]]:
    """The validation points of a candidate."""
    name = f"{group} {' '.join(map(str, scaling_of(entry)))}"
    query = (
        "SELECT o.id, s.spec FROM points o JOIN specs s ON s.id = o.spec WHERE split = 'validation' AND \"group\" = "
    )
    return [(i, json.loads(spec)) for i, spec in read(folder, f"{query}'{name}'")]


# --- every group alike ---


def test_every_group_chooses_among_its_own_by_its_own_hypervolume(run, rewards):
    folder, validation = run(**TUNED, edge_extensions=0)
    tunings, means = tunings_of(validation), means_by_hand(folder, "validation", rewards)
    assert tunings.keys() == {"lines", "scaled", "reversed", "sparse"}
    assert {len(tuning["grid"]) for tuning in tunings.values()} == {4}  # as many candidates each
    assert [scaling_of(entry) for entry in tunings["scaled"]["grid"]] == [
        (pytest.approx(0.3 + 0.1 * k, rel=1e-12), 0.0, "linear") for k in range(4)
    ]
    assert [scaling_of(entry) for entry in tunings["reversed"]["grid"]] == [
        (alpha, beta, "reversed") for alpha in (0.2, 0.4) for beta in (0.2, 0.4)
    ]
    for group, tuning in tunings.items():
        found = []
        for entry in tuning["grid"]:
            points = points_of(folder, group, entry)
            assert [spec["weights"] for _, spec in points] == [[1.0, 0.0], [0.0, 1.0]]
            assert {scaling_of(spec) for _, spec in points} == {scaling_of(entry)}
            assert {spec["rule"] for _, spec in points} == {"ties" if group == "sparse" else "linear"}
            found.append(area(np.array([means[i] for i, _ in points]), np.array(validation["reference_point"])))
        values = [entry["hypervolume"]["value"] for entry in tuning["grid"]]
        np.testing.assert_allclose(values, found, rtol=1e-9, atol=1e-12)
        assert scaling_of(tuning["chosen"]) == scaling_of(tuning["grid"][int(np.argmax(found))])
    front = strict_json(folder / "front.json")
    for group, tuning in tunings.items():
        used = {scaling_of(point["spec"]) for point in front["points"] if point["group"] == group}
        assert used == {scaling_of(tuning["chosen"])}


def test_an_unrelated_group_changes_no_choice(run):
    _, alone = run()
    _, beside = run(groups=[json.dumps({**TIES, "alphas": [5.0, 9.0]})])
    other = beside["groups"].pop("sparse")
    assert other["grid"] and beside == alone


def test_given_factors_are_those_of_scaled(run):
    _, validation = run(scaled_alphas=[0.5, 2.0, 1.0], scalings=["0.5 1"], edge_extensions=0)
    tunings = tunings_of(validation)
    assert [scaling_of(entry) for entry in tunings["scaled"]["grid"]] == [(a, 0.0, "linear") for a in (0.5, 2.0, 1.0)]
    assert [len(tunings[group]["grid"]) for group in ("lines", "reversed")] == [1, 1]  # measured beside, to compare
    assert not tunings["lines"]["at_edge"] and not tunings["reversed"]["at_edge"]


def test_an_alpha_that_is_left_out_is_chosen_as_that_of_scaled_is(run, rewards, four_policies):
    """Of a further group and of other policies: the same factors, prompts and weights; a given alpha stays."""
    others = list(map(str, four_policies[2:]))
    mixing = [[0.75, 0.25], [0.25, 0.75]]
    folder, validation = run(
        groups=[json.dumps({"name": "plain", "rule": "ties", "options": {"density": 0.5}})],
        policy_sets=[
            json.dumps({"name": "slow", "policies": others}),
            json.dumps({"name": "bone", "policies": others, "mixing": mixing, "alphas": [0.5, 2.0]}),
            json.dumps({"name": "as it is", "policies": others, "alpha": 1}),
        ],
        edge_extensions=0,
    )
    tunings, means = tunings_of(validation), means_by_hand(folder, "validation", rewards)
    assert tunings.keys() == {"lines", "scaled", "reversed", "plain", "slow", "bone"}
    tried = {group: [scaling_of(entry) for entry in tuning["grid"]] for group, tuning in tunings.items()}
    assert tried["plain"] == tried["slow"] == tried["scaled"]
    assert tried["bone"] == [(0.5, 0.0, "linear"), (2.0, 0.0, "linear")]
    front = strict_json(folder / "front.json")
    reference, bones = np.array(validation["reference_point"]), np.linalg.inv(mixing).tolist()
    weights = {"plain": np.eye(2).tolist(), "slow": [[0, 0, 1, 0], [0, 0, 0, 1]], "bone": [[0, 0, *w] for w in bones]}
    for group, expected in weights.items():
        found = []
        for entry in tunings[group]["grid"]:
            points = points_of(folder, group, entry)
            np.testing.assert_allclose([spec["weights"] for _, spec in points], expected, atol=1e-12)
            found.append(area(np.array([means[i] for i, _ in points]), reference))
        values = [entry["hypervolume"]["value"] for entry in tunings[group]["grid"]]
        np.testing.assert_allclose(values, found, rtol=1e-9, atol=1e-12)
        chosen = tried[group][int(np.argmax(found))]
        assert {scaling_of(point["spec"]) for point in front["points"] if point["group"] == group} == {chosen}
        edge = min(a for a, *_ in tried[group]), max(a for a, *_ in tried[group])
        assert tunings[group]["at_edge"] == (chosen[0] in edge)
    as_it_is = [point["spec"] for point in front["points"] if point["group"] == "as it is"]
    assert {scaling_of(spec) for spec in as_it_is} == {(1.0, 0.0, "linear")}


def test_auto_of_other_policies_is_measured_of_these_alone(run, four_policies, dense_model):
    """||tau_1 + tau_2||_1 / (2 ||tau_M||_1) of the two policies of the set, whatever else the sweep mixes."""
    from rlhf_lines.merge import MergeSpec

    entry = {"name": "slow", "policies": list(map(str, four_policies[2:])), "alphas": ["auto"]}
    folder, _ = run(policy_sets=[json.dumps(entry)], scalings=["1 1"], num_weights=3)
    start = dense_model(MergeSpec("linear", (0.0, 0.0))).state_dict()

    def residual(*weights: float) -> dict:
        merged = dense_model(MergeSpec("linear", (0.0, 0.0, *weights))).state_dict()
        return {name: (merged[name].double() - start[name].double()) for name in start}

    def length(tau: dict) -> float:
        return sum(part.abs().sum().item() for part in tau.values())

    total, points = length(residual(1.0, 1.0)), strict_json(folder / "front.json")["points"]
    specs = [point["spec"] for point in points if point["group"] == "slow"]
    assert [spec["weights"][2:] for spec in specs] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    for spec in specs:
        assert spec["alpha"] == pytest.approx(total / (2 * length(residual(*spec["weights"][2:]))), rel=1e-4)


def test_a_sweep_of_a_version_that_took_alpha_1_is_not_gone_on_with(flags, rewards, tmp_path):
    """Its points of the group would stand among those of the alpha that is chosen now."""
    import sqlite3

    changes = {**SMALL, "groups": [json.dumps({"name": "plain", "rule": "sum"})]}
    rewards.FAIL_AT, rewards.ERROR = 3, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(tmp_path / "sweep", **changes))
    rewards.FAIL_AT = None
    database = sqlite3.connect(partial_folder(tmp_path / "sweep") / "run.sqlite")
    with database:
        database.execute("DELETE FROM meta WHERE key = 'candidates'")  # which that version did not keep
    database.close()
    with pytest.raises(ValueError, match="was begun by a version that took alpha 1 for plain, and this one chooses it"):
        run_stage("sweep", [*flags(tmp_path / "sweep", **changes), "--resume"])


def test_a_sweep_of_a_version_that_told_schedules_of_beta_0_apart_is_not_gone_on_with(tmp_path):
    """Its points of a candidate would stand among those that are measured now."""
    config = SimpleNamespace(output_dir="sweep", tuned=[])
    with Store(tmp_path) as store:
        store.remember(candidates={})
        store.add_points("validation", "lines", [MergeSpec("linear", (1.0, 0.0), 0.5, 1.0, "sqrt")])
        _refuse_earlier(config, store)
        store.add_points("validation", "lines", [MergeSpec("linear", (1.0, 0.0), 0.5, 0.0, "sqrt")])
        with pytest.raises(ValueError, match=r"merges with beta 0 once for every schedule.* --reuse sweep, which"):
            _refuse_earlier(config, store)


@pytest.mark.parametrize("sampled", [True, False])
def test_such_a_sweep_is_told_so_before_its_candidates_are_compared(tmp_path, sampled):
    """They differ, too: each merge was a candidate once for every schedule."""
    config = SimpleNamespace(output_dir=str(tmp_path / "sweep"), tuned=[])
    before = [Scaling(*scaling) for scaling in itertools.product((1.0,), (0.0, 0.5), ("linear", "sqrt"))]
    now = {"alphas": [1.0], "inputs_sha256": {}, "candidates": {"lines": grid((1.0,), (0.0, 0.5), ("linear", "sqrt"))}}
    partial_folder(config.output_dir).mkdir()
    with Store(partial_folder(config.output_dir)) as store:
        store.remember(alphas=[1.0], inputs_sha256={}, candidates={"lines": before})
        if sampled:
            store.add_points("validation", "lines", [MergeSpec("linear", (1.0, 0.0), *before[1])])

    def check(**changes):
        further = partial(_refuse_earlier, config)
        check_begun(config.output_dir, now | changes, what="the sweep", further=further)

    with pytest.raises(ValueError, match=r"merges with beta 0 once for every schedule.* --reuse .*sweep, which"):
        check()
    with pytest.raises(ValueError, match=r"had alphas \[1.0\], now it is \[2.0\]"):  # its own settings come first
        check(alphas=[2.0])


def test_other_candidates_of_a_stopped_sweep_are_told(tmp_path):
    """Also without anything of an earlier version; and a candidate may be given with a schedule beside beta 0."""
    config = SimpleNamespace(output_dir=str(tmp_path / "sweep"), tuned=[])
    kept = {"inputs_sha256": {}, "candidates": {"lines": [Scaling(1.0, 0.0, "sqrt"), Scaling(1.0, 0.5)]}}
    partial_folder(config.output_dir).mkdir()
    with Store(partial_folder(config.output_dir)) as store:
        store.remember(**kept)
    further = partial(_refuse_earlier, config)
    check_begun(config.output_dir, kept, what="the sweep", further=further)
    with pytest.raises(ValueError, match="the run to be resumed had candidates"):
        check_begun(config.output_dir, kept | {"candidates": {"lines": []}}, what="the sweep", further=further)


# --- beyond the edge ---


def extended_by_hand(value, first: list[tuple], most: int) -> list[tuple]:
    """The candidates that a group measures, from the hypervolume of each: written out, an edge at a time.

    Args:
        value: from (alpha, beta) to its hypervolume.
        first: the (alpha, beta) that are given.
        most: how many may come.
    """
    tried = list(first)
    while True:
        best = max(tried, key=value)
        steps = []
        for axis in (0, 1):
            known = sorted({candidate[axis] for candidate in tried})
            at = known.index(best[axis])
            step = 0.0
            if len(known) > 1 and at == len(known) - 1:
                step = known[-1] - known[-2]
            elif len(known) > 1 and at == 0:
                step = known[0] - known[1]
            steps.append(step)
        new = [(best[0] + steps[0], best[1])] * (steps[0] != 0) + [(best[0], best[1] + steps[1])] * (steps[1] != 0)
        if steps[0] and steps[1]:
            new.append((best[0] + steps[0], best[1] + steps[1]))
        new = new[: most - (len(tried) - len(first))]
        if not new:
            return tried
        tried += new


def test_a_group_goes_on_beyond_its_edge_until_inside_or_used_up(run):
    """Every group by one rule and up to one limit, as worked out from the hypervolumes of what it measured."""
    _, validation = run(**TUNED)
    extended = 0
    for group, tuning in tunings_of(validation).items():
        values = {scaling_of(entry)[:2]: entry["hypervolume"]["value"] for entry in tuning["grid"]}
        tried = list(values)
        assert extended_by_hand(values.__getitem__, tried[:4], most=4) == tried, group
        assert 4 <= len(tried) <= 4 + 4
        extended += len(tried) > 4
        alpha, beta = max(tried, key=values.__getitem__)
        assert scaling_of(tuning["chosen"])[:2] == (alpha, beta)
        edges = [
            len(known := sorted({one[axis] for one in tried})) > 1 and value in (known[0], known[-1])
            for axis, value in enumerate((alpha, beta))
        ]
        assert tuning["at_edge"] == any(edges)
        assert not tuning["at_edge"] or len(tried) == 4 + 4  # at an edge only where all are used up
    assert extended >= 2


def test_nothing_beyond_is_measured_where_that_is_asked(run):
    folder, validation = run(**TUNED, edge_extensions=0)
    assert {len(tuning["grid"]) for tuning in tunings_of(validation).values()} == {4}
    assert any(tuning["at_edge"] for tuning in tunings_of(validation).values())
    record = strict_json(folder / "rlhf_lines.json")
    assert record["validation"] == validation
    told = ", ".join(label(name) for name, tuning in tunings_of(validation).items() if tuning["at_edge"])
    sentences = (
        "were chosen on validation prompts, of 4 that were tried. At an edge of what was "
        f"tried, so that going beyond may give more: {told}."
    )
    assert sentences in " ".join(summary("sweep", folder).split())


@pytest.mark.parametrize("after", [3, 6, 7, 8])
def test_a_sweep_that_is_killed_beyond_the_edge_goes_on_to_the_same(run, flags, rewards, tmp_path, after):
    """Killed after so many batches: six are of the given candidates, two and one beyond, two of the test prompts."""
    whole, validation = run()
    count = sum(len(tuning["grid"]) for tuning in tunings_of(validation).values())
    assert count > 3 * 4  # and beyond; the second of these kills comes between the two rounds
    rewards.SCORED.clear()
    rewards.FAIL_AT, rewards.ERROR = after, KeyboardInterrupt
    killed = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(killed, **SMALL))
    rewards.FAIL_AT = None
    run_stage("sweep", [*flags(killed, **SMALL), "--resume"])
    assert (killed / "front.json").read_bytes() == (whole / "front.json").read_bytes()
    assert_same_store(killed, whole)


# --- limits ---


def test_a_limit_on_kl_holds_for_every_group(run):
    """The largest mean KL of a candidate's points, from the stored completions; the best of those within is chosen."""
    _, free = run(**TUNED, edge_extensions=0)
    values = sorted(entry["kl"] for tuning in tunings_of(free).values() for entry in tuning["grid"])
    limit = max(min(entry["kl"] for entry in tuning["grid"]) for tuning in tunings_of(free).values()) * 1.001
    assert values[0] < limit < values[-1]
    folder, validation = run(**TUNED, edge_extensions=0, max_kl=limit)
    assert validation["max_kl"] == limit
    kl = dict(read(folder, "SELECT o.id, AVG(kl) FROM points o JOIN completions c ON c.spec = o.spec "
                   "JOIN prompts p ON p.id = c.prompt AND p.split = o.split GROUP BY o.id"))  # fmt: skip
    out = 0
    for group, tuning in tunings_of(validation).items():
        for entry in tuning["grid"]:
            assert entry["kl"] == pytest.approx(max(kl[i] for i, _ in points_of(folder, group, entry)), abs=1e-12)
            assert entry["within_limits"] == (entry["kl"] <= limit)
        within = [entry for entry in tuning["grid"] if entry["within_limits"]]
        best = max(within, key=lambda entry: entry["hypervolume"]["value"])
        assert scaling_of(tuning["chosen"]) == scaling_of(best)
        out += len(tuning["grid"]) - len(within)
    assert out > 0


def test_a_limit_on_forgetting_is_a_ratio_of_perplexities(run, sft, dense_model, tmp_path):
    from rlhf_lines.merge import MergeSpec
    from rlhf_lines.models import load_tokenizer
    from tests.sweep.by_hand import cross_entropy

    texts = ["the quick brown fox", "ab.", "zz top <and> below"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    folder, validation = run(control=tmp_path / "texts.txt", control_tokens=12, max_forgetting=50.0, edge_extensions=0)
    rows = [load_tokenizer(sft)(text)["input_ids"][:12] for text in texts]
    tokens = sum(len(row) - 1 for row in rows)

    def nll(spec) -> float:
        return sum(cross_entropy(dense_model(spec), row) for row in rows)

    of_sft = nll(MergeSpec("linear", (0.0, 0.0)))
    for group, tuning in tunings_of(validation).items():
        for entry in tuning["grid"]:
            specs = [MergeSpec.from_dict(spec) for _, spec in points_of(folder, group, entry)]
            expected = max(np.exp((nll(spec) - of_sft) / tokens) for spec in specs)
            assert entry["forgetting"] == pytest.approx(expected, rel=1e-4)
    assert validation["max_forgetting"] == 50.0 and all(entry["within_limits"] for entry in validation["grid"])


@pytest.mark.parametrize("objectives", [{}, {"objectives": ["short"]}], ids=["objective", "metric"])
def test_a_minimum_holds_for_every_group(run, rewards, objectives):
    """The smallest mean of a candidate's points, from the stored texts; the best of those that reach it is chosen."""
    free, freely = run(**TUNED, edge_extensions=0, **objectives)
    means = means_by_hand(free, "validation", rewards)
    lowest = {
        group: [min(means[i][1] for i, _ in points_of(free, group, entry)) for entry in tuning["grid"]]
        for group, tuning in tunings_of(freely).items()
    }
    least = min(map(max, lowest.values())) - 1e-9
    _, validation = run(**TUNED, edge_extensions=0, **objectives, minimum=json.dumps({"early": least, "short": -99}))
    assert validation["minimum"] == {"early": least, "short": -99.0}
    other = 0
    for group, tuning in tunings_of(validation).items():
        grid = tuning["grid"]
        assert [entry["lowest"]["early"] for entry in grid] == pytest.approx(lowest[group], rel=1e-12)
        assert [entry["within_limits"] for entry in grid] == [value >= least for value in lowest[group]]
        best = max((e for e in grid if e["within_limits"]), key=lambda entry: entry["hypervolume"]["value"])
        assert scaling_of(tuning["chosen"]) == scaling_of(best)
        other += tuning["chosen"] != tunings_of(freely)[group]["chosen"]
    assert other > 0


def test_where_no_candidate_keeps_the_limits_the_smallest_is_told(run, flags, tmp_path, capsys):
    _, free = run(edge_extensions=0, controls="false")
    least = min(free["grid"], key=lambda entry: entry["kl"])
    (tmp_path / "texts.txt").write_text("abcd\n\nefgh")
    limits = {"max_kl": 1e-4, "max_forgetting": 1e-3, "control": tmp_path / "texts.txt"}
    changes = {**SMALL, **limits, "edge_extensions": 0, "controls": "false"}
    assert cli.main(["sweep", *flags(tmp_path / "limited", **changes)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    told = f"none of the 4 scalings of group lines keeps max_kl 0.0001 (the smallest is {least['kl']:.4g}, of alpha "
    assert told + f"{least['alpha']}, beta {least['beta']}, schedule linear) and max_forgetting 0.001" in sentence
    assert sentence.endswith(": raise the limit, or give smaller alphas and betas")
    assert not (tmp_path / "limited").exists()


def test_where_no_candidate_reaches_a_minimum_the_largest_is_told(run, rewards, flags, tmp_path, capsys):
    folder, free = run(edge_extensions=0, controls="false")
    means = means_by_hand(folder, "validation", rewards)
    lowest = {scaling_of(e): min(means[i][1] for i, _ in points_of(folder, "lines", e)) for e in free["grid"]}
    alpha, beta, schedule = max(lowest, key=lowest.get)
    largest = f"{lowest[alpha, beta, schedule]:.4g}"
    changes = {**SMALL, "minimum": '{"early": 0.99}', "edge_extensions": 0, "controls": "false"}
    assert cli.main(["sweep", *flags(tmp_path / "limited", **changes)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.endswith(
        f"none of the 4 scalings of group lines keeps minimum early 0.99 (the largest is {largest}, of alpha {alpha}, "
        f"beta {beta}, schedule {schedule}): loosen it, or give other alphas and betas"
    )
    assert not (tmp_path / "limited").exists()


def test_a_minimum_of_a_file_is_that_of_a_flag_when_a_run_goes_on(flags, rewards, tmp_path):
    """`{early: -1}` in YAML and `{"early": -1.0}` as JSON are one setting."""
    rewards.FAIL_AT, rewards.ERROR = 3, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(tmp_path / "sweep", **SMALL, minimum='{"early": -1.0}'))
    rewards.FAIL_AT = None
    (tmp_path / "more.yaml").write_text("minimum: {early: -1}\n")
    more = ["--config", str(tmp_path / "more.yaml"), "--resume"]
    folder = run_stage("sweep", [*flags(tmp_path / "sweep", **SMALL), *more])
    validation = strict_json(folder / "front.json")["validation"]
    assert validation["minimum"] == {"early": -1.0} and all(entry["within_limits"] for entry in validation["grid"])


def test_an_objective_by_which_nothing_is_chosen_is_told(flags, tmp_path, caplog):
    changes = {**SMALL, "rewards": ["tiny_rewards:short", "tiny_rewards:constant"], "controls": "false"}
    run_stage("sweep", flags(tmp_path / "sweep", **changes))
    (told,) = [message for message in caplog.messages if "next to nothing of candidates" in message]
    assert told.startswith("the objective constant is the same for the SFT model and all policies on validation prom")
    caplog.clear()
    given = {"reference_point": ["-99", "0"]}
    run_stage("sweep", flags(tmp_path / "given", **changes, **given))
    assert not [message for message in caplog.messages if "next to nothing of candidates" in message]


def test_one_candidate_has_to_keep_the_limit_too(flags, tmp_path):
    changes = {**SMALL, "scalings": ["1 1"], "controls": "false", "max_kl": 1e-4}
    told = re.escape("none of the 1 scalings of group lines keeps max_kl 0.0001")
    with pytest.raises(ValueError, match=told):
        run_stage("sweep", flags(tmp_path / "sweep", **changes))
