"""The noise of a token is splitmix64 of where it stands, and has the law of Gumbel."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lines.sampling import draw, gumbel, prompt_key, without
from tests.splitmix import GAMMA, MASK, mix, noise_by_hand, signed, unmix


def test_the_oracle_is_splitmix64():
    # The first outputs of the generator for the seed 1234567, as published with many implementations of it.
    outputs = [mix((1234567 + (i + 1) * GAMMA) & MASK) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert all(unmix(mix(x)) == x for x in (0, 1, 1234567, GAMMA, MASK))


@pytest.mark.parametrize(
    ("seed", "prompt", "number", "step"),
    [(0, 0, 0, 0), (0, 5, 1, 2), (42, 2**55 + 3, 0, 47), (-1, 17, 3, 1), (2**62 + 11, 2**56 - 1, 99, 1000)],
)
def test_noise_is_the_chain_of_splitmix64(seed, prompt, number, step):
    got = gumbel(seed, torch.tensor([prompt]), torch.tensor([number]), step, 50)
    assert got.shape == (1, 50) and got.dtype == torch.float64
    expected = [noise_by_hand(seed, prompt, number, step, token) for token in range(50)]
    # One bit of the 53 moves u by 1.1e-16; the logarithms of two libraries differ by a few units in the last place.
    torch.testing.assert_close(got[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)


def test_noise_of_a_row_depends_on_nothing_else():
    keys, numbers = torch.tensor([3, 9, 3, 2**50]), torch.tensor([0, 1, 1, 0])
    together = gumbel(7, keys, numbers, 4, 30)
    assert torch.equal(together, gumbel(7, keys, numbers, 4, 30))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(gumbel(7, keys[order], numbers[order], 4, 30), together[order])
    for i in range(4):
        assert torch.equal(gumbel(7, keys[i : i + 1], numbers[i : i + 1], 4, 30)[0], together[i])
    # A longer vocabulary adds tokens and changes none.
    assert torch.equal(gumbel(7, keys, numbers, 4, 100)[:, :30], together)
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert not torch.equal(gumbel(8, keys, numbers, 4, 30), together)
    assert not torch.equal(gumbel(7, keys, numbers, 5, 30), together)


@pytest.mark.parametrize("bits", [0, MASK], ids=["all zeros", "all ones"])
def test_noise_is_finite_at_both_ends_of_the_random_bits(bits):
    seed, number, step = 5, 2, 9
    # The prompt whose first token gets these 64 bits: the chain, backwards.
    key = (unmix(bits) - GAMMA) & MASK
    key = unmix(unmix(key) ^ step) ^ number
    prompt = unmix(key) ^ mix(seed)
    noise = gumbel(seed, torch.tensor([signed(prompt)]), torch.tensor([number]), step, 1).item()
    # u = 2**-54: -log(54 log 2) = -3.62;  u next to 1: -log(2**-53) = 36.7 or a little more.
    assert noise == pytest.approx(-3.62, abs=0.01) if bits == 0 else 36 < noise < 38


def test_noise_has_the_moments_of_gumbel():
    n, vocab = 1000, 200
    noise = gumbel(0, torch.arange(n), torch.zeros(n, dtype=torch.long), 0, vocab).flatten()
    variance = math.pi**2 / 6
    # Standard errors: sqrt(var / N) of the mean; sqrt((kurtosis - 1) / N) var of the variance, kurtosis 3 + 12/5.
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=5 * math.sqrt(variance / noise.numel()))
    assert noise.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(4.4 / noise.numel()))


@pytest.mark.parametrize("vary", ["prompt", "sample", "step"])
def test_argmax_of_logits_and_noise_follows_the_softmax(vary):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -2.0], dtype=torch.float64)
    n = 20_000
    if vary == "step":
        zero = torch.tensor([0])
        noise = torch.cat([gumbel(1, zero, zero, step, len(logits)) for step in range(n // 4)])
    else:
        varied, fixed = torch.arange(n), torch.full((n,), 12)
        keys, numbers = (varied, fixed) if vary == "prompt" else (fixed, varied)
        noise = gumbel(1, keys, numbers, 3, len(logits))
    counts = torch.bincount((logits + noise).argmax(dim=1), minlength=len(logits)).double()
    expected = logits.softmax(0) * len(noise)
    # Chi-square with 5 degrees of freedom exceeds 25.7 once in 10,000 draws.
    assert ((counts - expected) ** 2 / expected).sum().item() < 25.7


def test_a_prompt_is_named_by_its_tokens():
    # sha256("5 9 14"), first 8 bytes, big-endian; computed with coreutils' sha256sum.
    assert prompt_key([5, 9, 14]) == prompt_key((5, 9, 14)) == 0x1D668DAEE6CA2E13
    assert len({prompt_key(ids) for ids in ([5, 91, 4], [5, 9, 14], [59, 14], [14, 9, 5])}) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_draw_is_the_argmax_in_float64(temperature, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(40, 300, generator=generator)).to(dtype)
    noise = gumbel(3, torch.arange(10), torch.zeros(10, dtype=torch.long), 2, 300)
    of_row = torch.arange(40) % 10
    expected = (logits.double() / temperature + noise[of_row]).argmax(dim=1)
    assert torch.equal(draw(logits, temperature, noise, of_row), expected)


def test_a_draw_sees_what_float32_does_not():
    # float32 holds neither sum apart from the other: its steps at 20 are 1.9e-6.
    noise = torch.tensor([[20.0, 20.0 + 1e-9, 1.0], [20.0 + 1e-9, 20.0, 1.0]], dtype=torch.float64)
    assert draw(torch.zeros(2, 3), 1.0, noise, torch.tensor([0, 1])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("ended", "rows"),
    [
        ([False, True, False, False, True], [0, 3, 2]),
        ([True, False, False], [2, 1]),
        ([False, False, True], [0, 1]),
    ],
)
def test_rows_at_the_end_take_the_places_of_rows_that_have_ended(ended, rows):
    assert without(torch.tensor(ended)).tolist() == rows
