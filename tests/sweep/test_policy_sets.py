"""Further sets of policies, and the weights of a Bone Soup."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_lines.sweep.groups import dirichlet, simplex
from rlhf_lines.sweep.policy_sets import PolicySet, all_policies, merge_weights, set_problems, spec_weights


TWO = [[0.6, 0.4], [0.4, 0.6]]
# The paper's symmetric circulant matrices: beta on the diagonal, the rest shared evenly.
THREE = [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
UNEVEN = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_policies_of_one_reward_each_make_the_rewarded_soup(count):
    for preference in [*simplex(count, 6), *dirichlet(count, 5, seed=1)]:
        assert merge_weights(preference, np.eye(count).tolist()) == preference


@pytest.mark.parametrize("mixing", [TWO, THREE, UNEVEN])
def test_in_a_linear_world_the_soup_is_the_policy_of_the_preference(mixing):
    """Where the policy of a mixture m is sum_k m_k theta_k, that of the preference w is sum_k w_k theta_k."""
    count = len(mixing)
    theta = np.random.Generator(np.random.PCG64(0)).normal(size=(count, 50))  # of each reward alone
    trained = np.array(mixing) @ theta
    for preference in [*simplex(count, 5), *dirichlet(count, 20, seed=2)]:
        weights = merge_weights(preference, mixing)
        np.testing.assert_allclose(np.array(weights) @ trained, np.array(preference) @ theta, rtol=0, atol=1e-12)
        np.testing.assert_allclose(weights, np.linalg.solve(np.array(mixing).T, preference), rtol=0, atol=1e-12)
        assert sum(weights) == pytest.approx(sum(preference), abs=1e-12)


@pytest.mark.parametrize("mixing", [TWO, THREE, UNEVEN])
def test_the_preference_that_a_policy_was_trained_for_is_that_policy(mixing):
    for row, unit in zip(mixing, np.eye(len(mixing)).tolist(), strict=True):
        assert merge_weights(row, mixing) == tuple(unit)


def test_the_weights_of_the_authors_code():
    """ppo/BoneSoups.py with weight1 0.7, weight2 0.2 and its factors k1 = k2 = 1."""
    w11, w21 = 0.7, 0.2
    a, b = [w11, w21], [1 - w11, 1 - w21]
    first, second = np.linalg.solve(np.array([a, b]), [1, 0]), np.linalg.solve(np.array([a, b]), [0, 1])
    for preference in simplex(2, 11):
        expected = preference[0] * first + preference[1] * second
        np.testing.assert_allclose(merge_weights(preference, [[0.7, 0.3], [0.2, 0.8]]), expected, atol=1e-12)


def test_policies_are_listed_once_and_weights_stand_at_their_places():
    sets = [PolicySet("slow", ("c", "d")), PolicySet("bone", ("run", "e"), ((0.5, 0.5), (0.1, 0.9)))]
    listed = all_policies(["a", "b"], ["run"], sets)
    assert listed == ["a", "b", "run", "c", "d", "e"]
    assert spec_weights((0.3, 0.7), sets[0].policies, listed) == (0.0, 0.0, 0.0, 0.3, 0.7)
    assert spec_weights(sets[1].weights((0.5, 0.5)), sets[1].policies, listed) == (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    assert spec_weights((0.3, 0.7), ("b", "a"), listed) == (0.7, 0.3)


GOOD = {"name": "bone", "policies": ["c", "d"]}


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"name": "bone"}, "policy_sets holds {'name': 'bone'}, expected a mapping with the keys name and policies"),
        ("{", "policy_sets holds '{', which is no valid JSON"),
        ({**GOOD, "rule": "ties"}, "policy_sets: bone: unknown key 'rule'"),
        ({**GOOD, "name": "a\nb"}, "policy_sets has name 'a\\nb', expected"),
        ({**GOOD, "policies": "c"}, "policy_sets: bone: policies is 'c', expected a list of folders"),
        ({**GOOD, "policies": ["c", "c"]}, "policy_sets: bone: policies is ['c', 'c'], expected every one once"),
        ({**GOOD, "alpha": "much"}, "policy_sets: bone: alpha is 'much'"),
        ({**GOOD, "alphas": "1 2"}, "policy_sets: bone: alphas is '1 2', expected a list"),
        ({**GOOD, "alphas": ["much"]}, "policy_sets: bone: alphas or scalings hold alpha 'much', expected finite"),
        ({**GOOD, "alphas": [1, "1.0"]}, "policy_sets: bone: alphas is [1.0, 1.0], expected every value once"),
        ({**GOOD, "alpha": 1, "alphas": [1]}, "policy_sets: bone: alpha and alphas are given: keep one"),
        ({**GOOD, "mixing": [[1, 0]]}, "policy_sets: bone: mixing is [[1, 0]], expected 2 rows of 2 numbers"),
        ({**GOOD, "mixing": [[1, 0], [1]]}, "policy_sets: bone: mixing is [[1, 0], [1]], expected 2 rows of 2 numbers"),
        ({**GOOD, "mixing": [[1, 0], ["1", 0]]}, "expected 2 rows of 2 numbers"),
        ({**GOOD, "mixing": [[0.5, 0.5], [0.5, 0.5]]}, "which is singular: some of its policies were trained on a"),
        ({**GOOD, "mixing": [[0.1, 0.3], [0.2, 0.6]]}, "which is singular"),  # not so in binary fractions
    ],
)
def test_what_is_no_set_is_refused(item, sentence):
    with pytest.raises(ValueError) as caught:
        PolicySet.of(item)
    assert sentence in str(caught.value)


def test_a_set_is_read_from_json_and_from_a_mapping():
    item = {**GOOD, "mixing": [[1, 0], [0.5, 0.5]]}
    found = PolicySet.of(item)
    assert found == PolicySet.of(json.dumps(item)) == PolicySet("bone", ("c", "d"), ((1.0, 0.0), (0.5, 0.5)))
    assert PolicySet.of(found) is found


def test_sets_beside_one_another():
    sets = [PolicySet(name, ("c", "d")) for name in ("Lines", "slow", "slow", "ties")]
    found = list(set_problems([*sets, PolicySet("three", ("c", "d", "e"))], 2, groups=["ties"]))
    assert found == [
        "policy_sets: 'Lines' is the name of a group that a sweep has anyway: choose another one",
        "policy_sets: 'slow' occurs twice: give every group a name of its own",
        "policy_sets: 'ties' occurs twice: give every group a name of its own",
        "policy_sets: three has 3 policies, expected 2, as many as policies: all groups are measured at the same "
        "weights",
    ]


@pytest.mark.parametrize("preference", [(0.7, 0.3), (0.0, 1.0), (1 / 3, 2 / 3)])
def test_the_preference_of_merge_weights_is_what_they_were_made_for(preference):
    bones = PolicySet("bones", ("a", "b"), ((0.6, 0.4), (0.25, 0.75)))
    assert bones.preference(bones.weights(preference)) == pytest.approx(preference, abs=1e-9)
    assert PolicySet("plain", ("a", "b")).preference(preference) == preference
