"""What fronts are measured against: anchors, a given reference point, objectives and metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import build_front, front_headline, front_table
from rlhf_lines.pareto.closing import closing_text
from rlhf_lines.pareto.fixed_points import without_spread
from rlhf_lines.pareto.latex import front_tex
from rlhf_lines.pareto.measures import ALL_POINTS_RULE, GIVEN_RULE, REFERENCE_POINT_RULE
from rlhf_lines.pareto.report.facts import facts, verdicts
from rlhf_lines.pareto.schema import faults


SPEC = {"rule": "linear", "alpha": 1.0, "beta": 0.0, "schedule": "linear", "options": {}}


def front_of(points, **changes):
    return build_front(
        **{"rewards": ["a", "b"], "split": "test", "seed": 7, "points": points, "resamples": 50, **changes}
    )


@pytest.fixture
def points(make_points):
    generator = np.random.default_rng(0)
    return [{**point, "kl": generator.gamma(2.0, size=40)} for point in make_points()]


def collapsed(ids, group="collapsed", weights=((0.5, 0.5), (0.3, 0.7))):
    rows = np.random.default_rng(9).normal(size=(len(ids), 40, 2))
    return [
        {"id": i, "group": group, "spec": {**SPEC, "weights": list(w)}, "scores": row - 30.0, "kl": row[:, 0] ** 2}
        for i, w, row in zip(ids, weights, rows, strict=True)
    ]


@pytest.mark.parametrize("first", [True, False])
def test_a_group_that_is_added_changes_no_number_of_the_others(points, first):
    """Nor the verdict of LiNeS against the soup, which is of a family of its own."""
    before = front_of([{**point, "id": point["id"] + 5} for point in points])
    after = front_of(
        [*({**point, "id": point["id"] + 5} for point in points), *collapsed([0, 1] if first else [50, 51])]
    )
    for key in ("reference_point", "ideal_point", "reference_point_rule"):
        assert after[key] == before[key]
    assert {group: after["fronts"][group] for group in before["fronts"]} == before["fronts"]
    assert [point for point in after["points"] if point["group"] != "collapsed"] == before["points"]
    (entry,) = [c for c in after["comparisons"] if (c["a"], c["b"]) == ("lines", "rewarded_soup")]
    (old,) = before["comparisons"]
    assert entry["equal_kl_difference"] is not None
    assert entry == old and front_headline(after) == front_headline(before)


def test_anchors_are_the_sft_model_and_single_policies_as_they_were_trained(points):
    means = np.array([point["scores"].mean(axis=0) for point in points])[[0, 1, 5]]
    reference, ideal = 1.1 * means.min(axis=0) - 0.1 * means.max(axis=0), means.max(axis=0)
    others = [
        *collapsed([50], "morlhf", [(0.0, 0.0, 1.0)]),
        *collapsed([51], "sum", [(1.0, 0.0)]),
        *collapsed([52], "twice", [(1.0, 0.0)]),
        *collapsed([53], "grown", [(0.0, 1.0)]),
        *collapsed([54], "another set", [(0.0, 0.0, 1.0, 0.0)]),
    ]
    for point, change in zip(others, ({}, {"rule": "sum"}, {"alpha": 2.0}, {"beta": 0.5}, {}), strict=True):
        point["spec"] |= change
    front = front_of([*points, *others])
    np.testing.assert_allclose(front["reference_point"], reference, rtol=1e-13)
    assert front["ideal_point"] == ideal.tolist() and front["reference_point_rule"] == REFERENCE_POINT_RULE


@pytest.mark.parametrize("kept", [slice(2, 5), slice(0, 1), slice(5, 6)], ids=["mixtures", "SFT", "one policy"])
def test_without_two_anchors_all_points_are_taken(points, kept):
    points = [*points[kept], *points[6:]]
    means = np.array([point["scores"].mean(axis=0) for point in points])
    front = front_of(points)
    np.testing.assert_allclose(
        front["reference_point"], 1.1 * means.min(axis=0) - 0.1 * means.max(axis=0), rtol=0, atol=1e-13
    )
    assert front["ideal_point"] == means.max(axis=0).tolist() and front["reference_point_rule"] == ALL_POINTS_RULE


def test_a_reference_point_that_is_given_wins(points):
    front, plain = front_of(points, given_reference_point=[-1, 0.5]), front_of(points)
    assert (front["reference_point"], front["reference_point_rule"]) == ([-1.0, 0.5], GIVEN_RULE)
    assert front["ideal_point"] == plain["ideal_point"]
    rows = [[score["mean"] for score in point["scores"].values()] for point in front["points"][6:]]
    total, floor = 0.0, 0.5
    for x, y in sorted(rows, reverse=True):
        total, floor = total + max(0.0, x + 1) * max(0.0, y - floor), max(floor, y)
    assert front["fronts"]["lines"]["hypervolume"]["value"] == pytest.approx(total, rel=1e-12)
    for wrong in ([0.0], [0.0, 1.0, 2.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="expected one finite number for each objective"):
            front_of(points, given_reference_point=wrong)


def test_metrics_stand_beside_and_change_nothing(points):
    generator = np.random.default_rng(4)
    humor, tokens = generator.normal(size=(11, 40)), generator.poisson(20, size=40)
    for point, values in zip(points, humor, strict=True):
        point["metrics"] = {"humor": values}
    points[3]["metrics"]["tokens"] = tokens
    front, plain = front_of(points, metrics=["humor"]), front_of([{**p, "metrics": {}} for p in points])
    assert list(faults(json.loads(json.dumps(front)))) == []
    assert (front["objectives"], front["rewards"], front["metrics"]) == (["a", "b"], ["a", "b"], ["humor"])
    assert (front["fronts"], front["comparisons"]) == (plain["fronts"], plain["comparisons"])
    counts = np.random.Generator(np.random.PCG64(7))
    draws = [counts.integers(40, size=40) for _ in range(50)]
    factor = stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975) * np.sqrt(40 / 39)  # below 50 prompts
    for point, values in zip(front["points"], humor, strict=True):
        low, high = (
            values.mean() + factor * (end - values.mean())
            for end in np.quantile([values[draw].mean() for draw in draws], [0.025, 0.975])
        )
        expected = {"mean": values.mean(), "low": low, "high": high}
        assert point["metrics"]["humor"] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert (point["metrics"]["tokens"] is None) == (point["id"] != 3)
        assert list(point["scores"]) == ["a", "b"]
    assert front["points"][3]["metrics"]["tokens"]["mean"] == tokens.mean()
    assert plain["metrics"] == [] and "humor" not in plain["points"][0]["metrics"]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (["humor"], r"humor of point 0 has shape \(0,\); expected 40 finite numbers$"),
        (["tokens"], "the score 'tokens' has a name that is taken"),
        (["b"], "the score 'b' has a name that is taken"),
        (["humor", "humor"], "the score 'humor' has a name that is taken"),
    ],
)
def test_a_metric_that_is_missing_or_has_a_name_that_is_taken_is_refused(points, metrics, words):
    with pytest.raises(ValueError, match=words):
        front_of(points, metrics=metrics)
    points[4]["metrics"] = {"tokens": [1.0]}
    with pytest.raises(ValueError, match=r"tokens of point 4 has shape \(1,\); expected 40 finite numbers or None"):
        front_of(points)


def test_one_objective_has_lengths_in_place_of_areas(make_points):
    points = [{**point, "scores": point["scores"][:, :1], "kl": np.full(40, 1.0)} for point in make_points()]
    front = front_of(points, rewards=["a"])
    assert list(faults(json.loads(json.dumps(front, allow_nan=False)))) == []
    scores = [point["scores"]["a"]["mean"] for point in front["points"]]
    anchors = [scores[i] for i in (0, 1, 5)]
    reference = 1.1 * min(anchors) - 0.1 * max(anchors)
    for group, rows in (("lines", range(6, 11)), ("rewarded_soup", range(1, 6))):
        entry, best = front["fronts"][group], max(rows, key=scores.__getitem__)
        assert entry["hypervolume"]["value"] == pytest.approx(scores[best] - reference, rel=1e-12)
        share = (scores[best] - reference) / (max(anchors) - reference)
        assert entry["expected_utility"]["value"] == pytest.approx(share, rel=1e-12)
        assert entry["nondominated"] == entry["hull"] == [best]
    # All have one KL, so that there are no budgets to average over.
    (found,) = front["comparisons"]
    assert (found["kl_budgets"], found["equal_kl_difference"]) == (None, None)


def test_one_policy_makes_a_group_of_its_scalings(make_points):
    points = make_points()[:1]
    for k, length in enumerate((0.5, 1.0, 1.5)):
        point = make_points()[1 + k]
        points.append({**point, "group": "lines", "spec": {**SPEC, "weights": [length]}, "kl": np.full(40, length)})
    front = front_of([*points, {**points[2], "id": 9, "group": "rewarded_soup"}])
    assert front["fronts"].keys() == {"lines"} and front["comparisons"] == []
    means = np.array([points[i]["scores"].mean(axis=0) for i in (0, 2)])  # SFT, and the policy as it was trained
    np.testing.assert_allclose(
        front["reference_point"], 1.1 * means.min(axis=0) - 0.1 * means.max(axis=0), rtol=0, atol=1e-13
    )


# --- objectives without spread ---


def told_of(flat: str, others: str, whom: str = "the SFT model and every policy", way_out: str = "leave it out") -> str:
    return (
        f"{flat} for {whom}, and hypervolumes are measured from there, so neither they nor verdicts tell anything of "
        f"these fronts: {way_out}, by rlhf-lines front RUN_DIR --objectives {others}."
    )


def with_constant(points, **columns):
    """The points, in which a column of the scores is one number."""
    changed = []
    for point in points:
        scores = point["scores"].copy()
        for name, value in columns.items():
            scores[:, "ab".index(name)] = value
        changed.append({**point, "scores": scores})
    return changed


def test_an_objective_without_spread_is_told_and_nothing_is_concluded(points, tmp_path):
    """Every hypervolume was 0, and the headline said that LiNeS and the soup cannot be told apart."""
    sentence = told_of("b is 0.3", "a")
    front = front_of(with_constant(points, b=0.3))
    assert {entry["hypervolume"]["value"] for entry in front["fronts"].values()} == {0.0}
    assert front_headline(front) == sentence
    assert sentence in " ".join(front_table(front).split()) and f"% {sentence}" in front_tex(front).splitlines()
    closing = " ".join(closing_text(front, tmp_path, []).split())
    assert closing.startswith(sentence) and "told apart" not in closing
    assert [(card.title, card.text) for card in verdicts(front)] == [("Hypervolumes tell nothing here", sentence)]
    assert not any("largest" in card.title for card in facts(front))


def test_a_merge_beyond_what_the_policies_share_changes_nothing_of_it(points):
    """It alone has a volume: the front has no ends."""
    changed = with_constant(points, b=0.3)
    changed[-2]["scores"][:, 1] = 0.4
    front = front_of(changed)
    assert front["fronts"]["lines"]["hypervolume"]["value"] > 0
    assert front_headline(front) == told_of("b is 0.3", "a")


def test_it_says_of_whom_and_what_else_to_do(points):
    both = front_of(with_constant(points, a=-1, b=0.3))
    assert without_spread(both) == told_of("a is -1 and b is 0.3", "NAME", way_out="choose other objectives")
    alone = with_constant(points[2:5] + points[6:], a=2)
    assert without_spread(front_of(alone)) == told_of("a is 2", "b", whom="every point")
    names = front_of(with_constant(points, a=2), rewards=["a", "of b"])
    assert without_spread(names) == told_of("a is 2", "'of b'")


def test_with_spread_or_from_a_given_point_there_is_nothing_to_say(points):
    assert without_spread(front_of(points)) == ""
    given = front_of(with_constant(points, b=0.3), given_reference_point=[-9, 0.3])
    assert without_spread(given) == ""
    assert front_headline(given) != ""
