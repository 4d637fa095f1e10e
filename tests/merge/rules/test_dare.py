"""DARE's masks: placed by splitmix64, binomial, independent, and the same however the residuals are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from fractions import Fraction

import pytest
import torch

from rlhf_lines.merge import MergeSpec, apply_lines, lines_alpha, merge_residuals
from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from tests.merge.reference import WIDTHS, assert_case, of_each_policy, plus_base, task_vectors, tensors
from tests.splitmix import GAMMA, MASK, mix


def kept_by_hand(seed: int, policy: int, name: str, index: int, drop_rate: float) -> bool:
    key = mix(seed & MASK)
    key = mix(key ^ policy)
    key = mix(key ^ int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    number = mix((key + (index + 1) * GAMMA) & MASK)
    # Read as a signed number and moved to [0, 2^64).
    return Fraction((number + 2**63) % 2**64, 2**64) >= Fraction(drop_rate)


def masks_of(count: int, size: int, drop_rate: float, *, seed: int = 0, name: str = "a") -> list[torch.Tensor]:
    """What K policies keep of one parameter, read off ones."""
    ones = [{name: torch.ones(size)}] * count
    hot = [[float(j == k) for j in range(count)] for k in range(count)]
    kept = [merge_residuals(ones, "dare", weights=w, drop_rate=drop_rate, seed=seed)[name] for w in hot]
    for mask in kept:
        assert set(mask.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - drop_rate)).item()}
    return [mask != 0 for mask in kept]


def binomial_tail(n: int, p: float, found: int) -> float:
    """The exact probability of a count as far from the mean as `found`, on its side, or farther."""

    def log_probability(count: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        return ways + count * math.log(p) + (n - count) * math.log1p(-p)

    side = range(found + 1) if found < n * p else range(found, n + 1)
    return math.fsum(math.exp(log_probability(count)) for count in side)


@pytest.mark.parametrize(("seed", "drop_rate"), [(0, 0.9), (7, 0.5), (-3, 0.25), (2**63 - 1, 0.1), (5, 0.0)])
def test_masks_are_splitmix64_of_seed_policy_name_and_index(seed, drop_rate):
    name = "model.layers.0.self_attn.q_proj.weight"
    for k, mask in enumerate(masks_of(3, 200, drop_rate, seed=seed, name=name)):
        assert mask.tolist() == [kept_by_hand(seed, k, name, i, drop_rate) for i in range(200)]


def test_the_tail_is_exact():
    # Of 4 fair coins: 1 / 16 for none, 5 / 16 for at most one, 11 / 16 for two or more.
    assert [binomial_tail(4, 0.5, found) for found in (0, 1, 2)] == pytest.approx([1 / 16, 5 / 16, 11 / 16])


@pytest.mark.parametrize("drop_rate", [0.9, 0.5, 0.2])
def test_what_is_kept_is_binomial_and_independent(drop_rate):
    size, keep = 20_000, 1 - drop_rate
    first, second, third = masks_of(3, size, drop_rate)
    (other_seed,), (other_name,) = masks_of(1, size, drop_rate, seed=1), masks_of(1, size, drop_rate, name="b")
    masks = [first, second, third, other_seed, other_name]
    for mask in masks:
        assert binomial_tail(size, keep, int(mask.sum())) > 1e-4
    # Independent events meet with probability keep^2: in two policies, names, seeds, and in neighbouring elements.
    pairs = [*itertools.combinations(masks, 2), *((m.roll(lag), m) for m in masks for lag in (1, 2, 64, 128))]
    for a, b in pairs:
        assert binomial_tail(size, keep**2, int((a & b).sum())) > 1e-4


def test_the_mean_over_seeds_is_the_residual():
    tau = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    draws = torch.stack([merge_residuals([{"a": tau}], "dare", drop_rate=0.75, seed=s)["a"] for s in range(2000)])
    # An entry is 4 tau with probability 1/4: standard deviation sqrt(3) tau, 0.039 tau for the mean of 2000.
    assert torch.allclose(draws.mean(0), tau, rtol=5 * 0.039, atol=0)


def test_a_shard_has_the_masks_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    residuals = [{n: torch.randn(40, 5, generator=generator) for n in ("a", "b", "c")} for _ in range(2)]
    whole = merge_residuals(residuals, "dare", drop_rate=0.5)
    shard = merge_residuals([{"b": residual["b"]} for residual in residuals], "dare", drop_rate=0.5)
    assert torch.equal(shard["b"], whole["b"])


def test_linear_and_ties_of_masked_residuals():
    generator = torch.Generator().manual_seed(0)
    residuals = [{"a": torch.randn(60, generator=generator).double()} for _ in range(3)]
    masked = []
    for k, residual in enumerate(residuals):
        kept = [kept_by_hand(9, k, "a", i, 0.6) for i in range(60)]
        masked.append({"a": residual["a"] * torch.tensor(kept) / (1 - 0.6)})
    for weights in (None, [0.2, 0.5, 0.3]):
        got = merge_residuals(residuals, "dare", weights=weights, drop_rate=0.6, seed=9)
        expected = merge_residuals(masked, weights=weights)
        torch.testing.assert_close(got["a"], expected["a"], rtol=1e-14, atol=0)
        options = {"density": 0.2, "reduction": "sum"}
        got = merge_residuals(
            residuals, "dare", weights=weights, drop_rate=0.6, seed=9, then="ties", ties_options=options
        )
        expected = merge_residuals(masked, "ties", weights=weights, **options)
        torch.testing.assert_close(got["a"], expected["a"], rtol=1e-14, atol=0)


def test_l1_rescaling_keeps_the_norm_of_every_parameter():
    generator = torch.Generator().manual_seed(0)
    residuals = [{n: torch.randn(50, 3, generator=generator).double() for n in ("a", "b")} for _ in range(2)]
    for k in range(2):
        weights = [float(j == k) for j in range(2)]
        merged = merge_residuals(residuals, "dare", weights=weights, drop_rate=0.5, rescale="l1")
        plain = merge_residuals(residuals, "dare", weights=weights, drop_rate=0.5)
        for name, tau in residuals[k].items():
            assert merged[name].abs().sum().item() == pytest.approx(tau.abs().sum().item(), rel=1e-12)
            assert torch.equal(merged[name] != 0, plain[name] != 0)
    empty = [{"a": torch.ones(3)}]
    nothing = [{"a": torch.zeros(3, dtype=torch.bool)}]
    assert merge_residuals(empty, "dare", rescale="l1", masks=nothing)["a"].tolist() == [0, 0, 0]


def test_a_generator_gives_the_seed():
    residuals = [{"a": torch.ones(100)}]
    generator = torch.Generator().manual_seed(4)
    first, second = (merge_residuals(residuals, "dare", drop_rate=0.5, generator=generator)["a"] for _ in range(2))
    assert not torch.equal(first, second)
    generator.manual_seed(4)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    assert torch.equal(merge_residuals(residuals, "dare", drop_rate=0.5, seed=seed)["a"], first)


def test_alpha_takes_the_residuals_before_the_mask():
    residuals = [{"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"a": torch.tensor([1.0, -1.0, 1.0, 1.0])}]
    masks = [{"a": torch.tensor([True, False, False, False])}, {"a": torch.tensor([False, False, False, True])}]
    merged = merge_residuals(residuals, "dare", drop_rate=0.5, masks=masks)
    assert merged["a"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert lines_alpha(residuals, merged) == pytest.approx((2 + 1 + 4 + 5) / (2 * 2))


def test_a_spec_holds_a_seed_but_neither_masks_nor_generators():
    spec = MergeSpec("dare", (0.5, 0.5), options={"seed": 3, "then": "ties", "ties_options": {"density": 0.1}})
    assert MergeSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for option, value in (("masks", [{"a": [True]}]), ("generator", torch.Generator()), ("masks", None)):
        with pytest.raises(ValueError, match=f"option '{option}' of rule 'dare' is for merge_residuals in Python"):
            MergeSpec("dare", (0.5, 0.5), options={option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 1}, "drop_rate is 1, which drops everything"),
        ({"drop_rate": 1.5}, "drop_rate is 1.5, expected a number between 0 and 1"),
        ({"then": "tise"}, "unknown then 'tise'; known: .*did you mean 'ties'"),
        ({"rescale": "l2"}, "unknown rescale 'l2'"),
        ({"seed": 0.5}, "seed is 0.5, expected a whole number"),
        ({"seed": 2**63}, "seed is 9223372036854775808, expected a whole number"),
        ({"ties_options": {"density": 0.1}}, "only then=\"ties\" uses; then is 'linear'"),
        ({"then": "ties", "ties_options": {"densty": 0.1}}, "unknown option of rule 'ties' 'densty'.*'density'"),
        ({"masks": [{}], "seed": 1}, "masks, a generator and a seed were given, or two of them"),
        ({"masks": [{}], "generator": torch.Generator()}, "masks, a generator and a seed were given"),
        ({"seed": 1, "generator": torch.Generator()}, "masks, a generator and a seed were given"),
        ({"masks": []}, "0 masks for 1 residual"),
        ({"masks": [{}]}, r"masks\[0\] has nothing for 'a', expected a boolean tensor of shape \(2,\)"),
        ({"masks": [{"a": torch.ones(2)}]}, r"masks\[0\] has torch.float32 of shape \(2,\) for 'a'"),
        ({"masks": [{"a": torch.ones(3, dtype=torch.bool)}]}, r"masks\[0\] has torch.bool of shape \(3,\) for 'a'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([{"a": torch.ones(2)}], "dare", **options)


def test_given_masks_are_read_in_chunks():
    generator = torch.Generator().manual_seed(0)
    residuals = [{"a": torch.randn(9, 4, generator=generator)} for _ in range(2)]
    masks = [{"a": torch.rand(9, 4, generator=generator) < 0.5} for _ in range(2)]
    expected = sum(0.5 * (2 * r["a"]) * m["a"] for r, m in zip(residuals, masks, strict=True))
    held = residuals_in_memory(residuals, elements=7)
    assert torch.equal(merge_lazily(held, "dare", drop_rate=0.5, masks=masks).tensor("a"), expected)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_dare_with_the_masks_of_the_reference(dtype):
    residuals = task_vectors(3, dtype)
    masks = of_each_policy(tensors("dare_masks_n3_p0.8", torch.bool), 3)
    merged = merge_residuals(residuals, "dare", drop_rate=0.8, masks=masks)
    # The reference multiplies the sum by 0.5, `linear` is the mean of three.
    assert_case("dare_ta_n3_p0.8_lam0.5", plus_base(apply_lines(merged, 1.5, 0.0)))
    weighted = merge_residuals(residuals, "dare", weights=[0.5, 0.5, 0.5], drop_rate=0.8, masks=masks)
    assert_case("dare_ta_n3_p0.8_lam0.5", plus_base(weighted))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_dare_rescaled_by_l1_norms_is_mergekits(dtype):
    # Kept are the entries that differ from the base: visible in float64 only.
    output, base = tensors("mergekit_dare_linear_n1_d0.2"), tensors("model_base")
    masks = [{name: output[name] != base[name] for name in base}]
    merged = merge_residuals(task_vectors(1, dtype), "dare", drop_rate=0.8, rescale="l1", masks=masks)
    assert_case("mergekit_dare_linear_n1_d0.2", plus_base(merged))
