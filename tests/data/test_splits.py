"""A prompt belongs to one split for ever."""

import hashlib

import pytest

from rlhf_lines.data.splits import SPLITS, split_of


@pytest.mark.parametrize(
    ("prompt", "split"),
    [
        # The first 8 bytes of SHA-256 as a fraction: below 0.1 test, below 0.2 validation.
        ("json.dumps:", "test"),
        ("textwrap.wrap:", "train"),
        ("builtins.len:", "train"),
        ("", "train"),  # e3b0c442...: 0.89
        ("prompt 15", "test"),  # 14fcdacc...: 0.08
        ("prompt 2", "validation"),  # 259a648c...: 0.15
        ("Grüße, 世界", "train"),  # 49837434...: 0.29
        ("\udcff", "train"),  # half of a surrogate pair, as broken files hold them
    ],
)
def test_these_prompts_stay_where_they_are(prompt, split):
    assert split_of(prompt) == split


def test_the_hash_of_the_text_decides():
    for number in range(500):
        prompt = f"name_{number}:"
        fraction = int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16) / 16**16
        expected = "test" if fraction < 0.1 else "validation" if fraction < 0.2 else "train"
        assert split_of(prompt) == expected


def test_the_shares():
    found = [split_of(f"{number}") for number in range(20_000)]
    # Four standard deviations of a share of 0.1 in 20,000 draws: 4 * sqrt(0.09 / 20000) = 0.0085
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert found.count(split) / 20_000 == pytest.approx(share, abs=0.0085 if share == 0.1 else 0.0114)
