"""What completions are like: shares counted by hand, and nothing where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto.behaviour import CHANGING, NO_INTERVAL, Behaviour, behaviour_entry, changes, repeated
from rlhf_lines.pareto.intervals import paired_share_difference
from rlhf_lines.pareto.resampling import Resampling


END, MOST = 9, 6
RESAMPLING = Resampling(resamples=50, seed=1)
TEXTS = [["a b", " \n\t"], ["", "a b"], ["c", "d"]]
IDS = [
    [[1, 2, END], [END]],  # ended twice
    [[3, 3, 3, 3, 3, 3], [1, 2, 1, 2, 1, END]],  # cut; of the full length, and ended
    [[1, 2, 3, 4, 5], [5, 5, 5, 5, 5, END]],
]
SCORES = np.arange(12.0).reshape(3, 2, 2)


def behaviour(texts=TEXTS, token_ids=IDS, scores=SCORES, max_new_tokens=MOST, end_tokens=(END, 8)) -> Behaviour:
    return Behaviour.of(texts, token_ids, scores, max_new_tokens=max_new_tokens, end_tokens=end_tokens)


def test_every_share_is_that_counted_by_hand():
    entry = behaviour_entry(behaviour(), None, ["x", "y"], RESAMPLING)
    assert entry["tokens"]["mean"] == pytest.approx((3 + 1 + 6 + 6 + 5 + 6) / 6)
    assert entry["share_empty"]["mean"] == pytest.approx(2 / 6)
    assert entry["share_cut"]["mean"] == pytest.approx(1 / 6)
    # 3333 occurs three times among three; 1212 and 2121 once each; 5555 twice and 555E once.
    assert entry["repetition"]["mean"] == pytest.approx((2 / 3 + 0 + 1 / 3) / 6)
    assert entry["distinct"]["mean"] == pytest.approx(len({"a b", " \n\t", "", "c", "d"}) / 6)


def test_intervals_are_those_of_the_same_resampled_prompts_stretched_for_few():
    entry = behaviour_entry(behaviour(), None, ["x", "y"], RESAMPLING)
    generator = np.random.Generator(np.random.PCG64(RESAMPLING.seed))
    tokens = np.array([2.0, 6.0, 5.5])
    means = [tokens[generator.integers(3, size=3)].mean() for _ in range(RESAMPLING.resamples)]
    factor = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975) * np.sqrt(3 / 2)
    expected = [4.5 + factor * (end - 4.5) for end in np.quantile(means, [0.025, 0.975])]
    assert [entry["tokens"]["low"], entry["tokens"]["high"]] == pytest.approx(expected, rel=1e-12)


def test_shares_have_intervals_of_shares_and_distinct_has_none():
    entry = behaviour_entry(behaviour(), behaviour(), ["x", "y"], RESAMPLING)
    # One of six is cut: 0, 1/2, 0 by prompt, which is worth 5/3 answers; t^2 more are added, half of them yes.
    share, t = entry["share_cut"], stats.t.ppf(0.975, 2)
    answers = (1 / 6) * (5 / 6) / (np.var([0, 0.5, 0], ddof=1) / 3)
    middle = (answers / 6 + t**2 / 2) / (answers + t**2)
    reach = t * np.sqrt(middle * (1 - middle) / (answers + t**2))
    assert (share["low"], share["high"]) == (max(0.0, middle - reach), pytest.approx(middle + reach, rel=1e-12))
    assert share["low"] < 1 / 6 < share["high"] < 1
    assert (entry["distinct"]["low"], entry["distinct"]["high"]) == (None, None)


def test_one_prompt_has_numbers_without_intervals():
    one = behaviour(TEXTS[:1], IDS[:1], SCORES[:1])
    other = behaviour(TEXTS[:1], [[[1, END], [1, END]]], SCORES[:1] + 1)
    entry, found = behaviour_entry(one, other, ["x", "y"], RESAMPLING), changes(one, other, RESAMPLING)
    wins = entry["win_rate"]
    means = [*(entry[name] for name in CHANGING), wins, *wins["by_objective"].values(), wins["all_worse"]]
    means += [*found.values(), *entry["length_correlation"].values(), *entry["at_matched_length"].values()]
    assert all((each["low"], each["high"]) == (None, None) for each in means)
    assert entry["length_correlation"]["x"]["mean"] == pytest.approx(-1.0)
    assert entry["at_matched_length"]["x"]["mean"] == pytest.approx(-1.0)


def test_changes_are_paired_by_prompts():
    longer = behaviour(token_ids=[[[*ids[:-1], 7, ids[-1]] for ids in row] for row in IDS], max_new_tokens=MOST + 1)
    found = changes(longer, behaviour(), RESAMPLING)
    assert tuple(found) == CHANGING
    assert found["tokens"] == {"value": 1.0, "low": 1.0, "high": 1.0}  # of every prompt the same: no noise is left
    # That no prompt differs does not say that none would.
    shares = [1 / 2, 1 / 2, 0.0]
    between = paired_share_difference(shares, shares)
    assert found["share_empty"] == {"value": 0.0, "low": between.low, "high": between.high}
    assert between.low < 0.0 < between.high
    assert changes(own := behaviour(), own, RESAMPLING)["share_empty"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_sft_model_and_points_with_its_spec_win_half_against_it_exactly():
    own = behaviour()
    wins = behaviour_entry(own, own, ["x", "y"], RESAMPLING)["win_rate"]
    assert (wins["mean"], wins["low"], wins["high"]) == (0.5, 0.5, 0.5)
    wins = behaviour_entry(behaviour(scores=SCORES.copy()), own, ["x", "y"], RESAMPLING)["win_rate"]  # of another spec
    assert wins["mean"] == 0.5 and wins["low"] < 0.5 < wins["high"]


def test_no_interval_leaves_what_its_mean_can_be():
    """Of two prompts t is 12.7."""
    texts, long = [["a"], ["b"]], [*[5] * 20, END]
    one = behaviour(texts, [[[1, 2, END]], [long]], SCORES[:2, :1], max_new_tokens=30)
    entry = behaviour_entry(one, None, ["x", "y"], RESAMPLING)
    repetition = entry["repetition"]
    assert repetition["mean"] == pytest.approx(16 / 18 / 2) and 0.0 < repetition["low"] < repetition["high"] < 1.0
    assert entry["tokens"]["low"] == 0.0 and entry["tokens"]["high"] > 21
    other = behaviour([["a"], [""]], [[long], [[1, END]]], SCORES[:2, :1], max_new_tokens=30)
    found = changes(one, other, RESAMPLING)
    for name, value in (("repetition", 0.0), ("share_empty", -0.5)):
        assert found[name]["value"] == pytest.approx(value)
        assert -1.0 <= found[name]["low"] < value < found[name]["high"] <= 1.0
    assert found["tokens"]["low"] < -19 and found["tokens"]["high"] > 19  # which can be any number


def test_distinct_texts_are_compared_without_an_interval():
    same = behaviour(texts=[["a", "a"], ["a", "a"], ["a", "a"]])
    assert changes(same, behaviour(), RESAMPLING)["distinct"] == {"value": pytest.approx(-4 / 6), **NO_INTERVAL}


@pytest.mark.parametrize(
    ("token_ids", "n", "expected"),
    [
        ([], 4, 0.0),
        ([1, 2, 3], 4, 0.0),
        ([1, 2, 3, 4], 4, 0.0),
        ([1] * 103, 4, 0.99),
        ([1, 2, 3, 4, 1, 2, 3, 4], 4, 0.2),
        ([1, 2, 1, 2], 1, 0.5),
    ],
)
def test_repetition_is_seq_rep(token_ids, n, expected):
    assert repeated(token_ids, n) == pytest.approx(expected)


def test_repetition_counts_the_ngrams_that_occurred_before():
    generator = np.random.default_rng(0)
    for _ in range(50):
        ids = generator.integers(3, size=generator.integers(1, 40)).tolist()
        ngrams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
        before = sum(ngram in ngrams[:i] for i, ngram in enumerate(ngrams))
        assert repeated(ids) == pytest.approx(before / max(len(ngrams), 1))


def test_what_is_not_known_is_null():
    entry = behaviour_entry(behaviour(max_new_tokens=None), None, ["x", "y"], RESAMPLING)
    assert entry["share_cut"] is None and entry["win_rate"] is None
    assert entry["at_matched_length"] == {"x": None, "y": None}
    assert changes(behaviour(max_new_tokens=None), behaviour(), RESAMPLING)["share_cut"] is None
    nothing = behaviour_entry(None, behaviour(), ["x"], RESAMPLING)
    assert nothing["tokens"] is None and nothing["length_correlation"] == {"x": None}
    assert nothing.keys() == entry.keys()
    assert changes(None, behaviour(), RESAMPLING) is changes(behaviour(), None, RESAMPLING) is None


def test_a_point_is_compared_with_the_completions_of_the_same_prompts_only():
    fewer = behaviour(TEXTS[:2], IDS[:2], SCORES[:2])
    for compare in (
        lambda: behaviour_entry(fewer, behaviour(), ["x", "y"], RESAMPLING),
        lambda: changes(fewer, behaviour(), RESAMPLING),
    ):
        with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), and those of the SFT model \(3, 2, 2\)"):
            compare()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": [["a", "b"], ["c"], ["d", "e"]]}, r"prompts have \[1, 2\] completions each"),
        ({"token_ids": [[[1]], [[1]], [[1]]]}, r"prompts have \[1, 2\] completions each"),
        ({"texts": []}, r"prompts have \[2\] completions each"),
        ({"scores": SCORES[:2]}, r"scores have shape \(2, 2, 2\)"),
        ({"scores": SCORES * np.nan}, "expected finite ones"),
    ],
)
def test_completions_that_do_not_fit_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        behaviour(**given)
