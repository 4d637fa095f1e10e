"""Sampler search: a group of merges that no rule has, found on validation prompts and met by test prompts once."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lora.low_rank import coefficients
from rlhf_lines.merge.space import bent_lines
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.search import spec_of, vector_of
from tests.sweep.of_a_run import area, assert_same_store, means_by_hand, read, strict_json


SEARCH = {
    "sampler": "search",
    "search_points": 14,
    "search_gain": 0,
    "scalings": ["0.5 1.5", "1 1"],
    "num_weights": 3,
    "test_prompts": 4,
    "max_new_tokens": 4,
}


@pytest.fixture
def search(flags, tmp_path, without_pictures):
    """A function from changes of the small sweep to its folder."""

    def make(name: str = "sweep", **changes):
        return run_stage("sweep", flags(tmp_path / name, **{**SEARCH, **changes}))

    return make


def told(folder):
    (row,) = read(folder, "SELECT value FROM meta WHERE key = 'search'")
    return json.loads(row[0])


@pytest.mark.parametrize("schedule", ["linear", "quadratic"])
def test_a_vector_of_lines_is_lines(schedule):
    weights, layers = (0.25, 0.75), 5
    found = spec_of(vector_of(weights, Scaling(0.5, 1.5, schedule)), bent_lines(2, layers))
    assert found.rule == "layerwise" and found.weights == pytest.approx(weights)  # what people read
    wanted = MergeSpec("linear", weights, 0.5, 1.5, schedule)
    for layer in (None, *range(layers)):
        rows = [coefficients(spec, (1, 1), layer, layers, dtype=torch.float64) for spec in (found, wanted)]
        torch.testing.assert_close(*rows, rtol=1e-14, atol=1e-15)


def test_a_policy_that_is_taken_away_keeps_its_factors():
    space = bent_lines(2, 3)
    for vector in (
        (-0.5, 0.0, 0.0, -1.0, 0.0, 0.0),
        (2.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (2.5, 0.0, 0.0, -0.5, 0.0, 0.0),
        (2.0, 0.0, 0.0, 1.0, -2.2, 0.0),
    ):
        spec, profile = spec_of(vector, space), space.profile(vector)
        for layer in (None, 0, 1, 2):
            row = coefficients(spec, (1, 1), layer, 3, dtype=torch.float64)
            assert row.tolist() == pytest.approx(profile.at(layer))


def test_the_front_is_that_of_what_was_tried(search, rewards):
    folder = search()
    front, found = strict_json(folder / "front.json"), told(folder)
    means = means_by_hand(folder, "validation", rewards)
    groups = dict(read(folder, "SELECT id, \"group\" FROM points WHERE split = 'validation'"))
    reference = np.min([means[i] for i, name in groups.items() if name in ("sft", "rewarded_soup")], axis=0)
    spread = np.ptp([means[i] for i, name in groups.items() if name in ("sft", "rewarded_soup")], axis=0)
    reference = reference - 0.1 * spread
    chosen = front["validation"]["chosen"]
    lines = f"lines {chosen['alpha']} {chosen['beta']} linear"
    tried = [means[i] for i, name in groups.items() if name in ("rewarded_soup", "search", lines)]
    assert sum(name == "search" for name in groups.values()) == 14 == found["generations"][-1]["measured"]
    last = found["generations"][-1]["hypervolume"]
    assert last == pytest.approx(area(np.array(tried), reference), rel=1e-9) and found["stopped"] == "points"
    volumes = [generation["hypervolume"] for generation in found["generations"]]
    assert all(before <= after for before, after in itertools.pairwise(volumes))
    specs = [point["spec"] for point in front["points"] if point["group"] == "search"]
    assert specs == found["specs"] and 1 <= len(specs) <= 3
    by_spec = dict(
        read(folder, "SELECT p.id, s.spec FROM points p JOIN specs s ON s.id = p.spec WHERE p.split = 'validation'")
    )
    of_specs = {json.dumps(json.loads(text), sort_keys=True): means[i] for i, text in by_spec.items()}
    kept = [of_specs[json.dumps(spec, sort_keys=True)] for spec in specs]
    for mean in kept:
        assert not any((other >= mean).all() and (other > mean).any() for other in kept)
    record = strict_json(folder / "rlhf_lines.json")
    assert record["search"] == found


def test_a_search_goes_on_where_it_was_killed(search, flags, rewards, tmp_path):
    whole = search()
    final, scored = tmp_path / "again", sum(map(len, rewards.SCORED))
    rewards.SCORED.clear()
    rewards.FAIL_AT, rewards.ERROR = 4, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(final, **SEARCH))
    partial = tmp_path / ".again.partial"
    assert read(partial, "SELECT COUNT(*) FROM points WHERE \"group\" = 'search'")[0][0] > 0, "it died while searching"
    rewards.FAIL_AT = None
    run_stage("sweep", [*flags(final, **SEARCH), "--resume"])
    assert_same_store(final, whole)
    assert sum(map(len, rewards.SCORED)) == scored and told(final) == told(whole)


def test_a_search_ends_where_generations_add_nothing(search):
    found = told(search(search_points=200, search_gain=1000.0))
    assert found["stopped"] == "gain" and len(found["generations"]) == 3


def test_at_the_ends_of_a_soup_nothing_new_is_measured_to_begin_with(search):
    found = told(search(validation_weights=2, search_points=5))
    assert found["generations"][0]["measured"] == 0 and found["generations"][-1]["measured"] == 5


def test_below_a_given_reference_point_the_front_is_what_nothing_dominates(search, rewards):
    folder = search(reference_point=[5, 5], search_points=60)
    found, means = told(folder), means_by_hand(folder, "validation", rewards)
    assert {generation["hypervolume"] for generation in found["generations"]} == {0.0} and found["stopped"] == "gain"
    kept = {row[0] for row in read(folder, "SELECT spec FROM points WHERE split = 'test' AND \"group\" = 'search'")}
    tried = read(folder, "SELECT id, spec FROM points WHERE split = 'validation' AND \"group\" != 'sft'")
    of_kept = [means[i] for i, spec in tried if spec in kept]
    assert of_kept and not any((a >= b).all() and (a > b).any() for a in of_kept for b in of_kept)


@pytest.mark.parametrize(
    "limit",
    [{"max_kl": 0.8}, {"minimum": '{"early": 0.25}'}, {"max_forgetting": 1.06}],
    ids=lambda limit: next(iter(limit)),
)
def test_what_lies_beyond_a_limit_is_on_no_front(search, rewards, tmp_path, limit):
    (tmp_path / "texts.txt").write_text("abc\n\nxyz w\n\nhello there\n")
    folder = search(scalings=["0.2 0.2"], **limit, control=tmp_path / "texts.txt")
    means = means_by_hand(folder, "validation", rewards)
    kl = dict(
        read(
            folder,
            "SELECT o.id, AVG(c.kl) FROM points o JOIN completions c ON c.spec = o.spec "
            "JOIN prompts p ON p.id = c.prompt AND p.split = o.split WHERE o.split = 'validation' GROUP BY o.id",
        )
    )
    nats = dict(read(folder, "SELECT spec, SUM(nats) FROM control GROUP BY spec"))
    tokens = read(folder, "SELECT SUM(tokens) FROM control_texts")[0][0]
    of_spec = dict(read(folder, "SELECT id, spec FROM points WHERE split = 'validation'"))
    (sft,) = read(folder, "SELECT spec FROM points WHERE split = 'validation' AND \"group\" = 'sft'")[0]
    is_beyond = {
        "max_kl": lambda i: kl[i] > 0.8,
        "minimum": lambda i: means[i][1] < 0.25,
        "max_forgetting": lambda i: np.exp((nats[of_spec[i]] - nats[sft]) / tokens) > 1.06,
    }
    beyond = set(filter(is_beyond[next(iter(limit))], means))
    specs = {row[0] for row in read(folder, "SELECT spec FROM points WHERE split = 'test' AND \"group\" = 'search'")}
    kept = [i for i, spec in of_spec.items() if spec in specs]
    assert kept and not beyond.intersection(kept)
    # Without the limit, one of these would be on the front.
    assert any(not any((means[k] >= means[i]).all() for k in kept) for i in beyond)
