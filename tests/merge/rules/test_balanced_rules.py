"""PCB, OPCM and WIDEN: public numbers, and formulas written down a second time in float64."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from rlhf_lines.merge import apply_lines, merge_residuals
from tests.merge.reference import CASES, WIDTHS, assert_case, plus_base, task_vectors, tensors


Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
SHAPES = {EMBEDDING: (9, 5), Q: (5, 5), UP: (8, 5), DOWN: (5, 8), NORM: (5,), HEAD: (9, 5)}


def randn(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }


def flat(residual: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([residual[name].flatten() for name in SHAPES])


def assert_equal(got, expected, rtol=1e-10, atol=1e-13) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# PCB


@pytest.mark.parametrize("dtype", WIDTHS)
def test_pcb_agrees_with_the_public_codes(dtype):
    residuals = task_vectors(3, dtype)
    assert_case("pcb_n3_r0.1", merge_residuals(residuals, "pcb"))
    assert_case("pcb_nlp_n3_r0.1", merge_residuals(residuals, "pcb", clamp=0.01))
    vision = merge_residuals(residuals, "pcb", ratio=0.05, clamp=0.01, balance="clamped")
    (factor,) = set(CASES["pcb_vision_n3_r0.05"]["params"]["lams"])
    assert_case("pcb_vision_n3_r0.05", apply_lines(vision, factor, 0.0))


def pcb_by_sorting(taus: list[list[float]], ratio: float, clamp: float, clamped: bool) -> list[float]:
    """The formula of one flat vector per policy, with Python's floats and sorts."""
    count, size = len(taus), len(taus[0])

    def sized(tau):
        ordered = sorted(map(abs, tau))
        low, high = ordered[int(size * clamp)], ordered[int(size * (1 - clamp) - 1)]
        clipped = [min(max(abs(value), low), high) for value in tau]
        return clipped, [(value - low) / (high - low) for value in clipped]

    sizes = [sized(tau) for tau in taus]
    summed = [
        sum(math.copysign(sizes[k][1][i], taus[k][i]) if clamped else taus[k][i] for k in range(count))
        for i in range(size)
    ]
    top, bottom = [0.0] * size, [0.0] * size
    for tau, (clipped, relative) in zip(taus, sizes, strict=True):
        balance = [math.exp(count * relative[i] ** 2) * math.tanh(tau[i] * summed[i]) for i in range(size)]
        least, most = sorted(balance)[int(size * (1 - ratio))], max(balance)
        for i in range(size):
            score = (max(balance[i], least) - least) / (most - least)
            top[i] += score * math.copysign(clipped[i], tau[i])
            bottom[i] += score
    return [a / max(b, 1e-12) for a, b in zip(top, bottom, strict=True)]


@pytest.mark.parametrize("balance", ["raw", "clamped"])
@pytest.mark.parametrize(("ratio", "clamp"), [(0.1, 1e-4), (0.25, 0.05), (1.0, 0.0)])
def test_pcb_is_its_formula(ratio, clamp, balance):
    residuals = [randn(k, 0.7) for k in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    taus = [
        [4 * weight * value for value in flat(tau).tolist()] for weight, tau in zip(weights, residuals, strict=True)
    ]
    merged = merge_residuals(residuals, "pcb", weights=weights, ratio=ratio, clamp=clamp, balance=balance)
    expected = pcb_by_sorting(taus, ratio, clamp, balance == "clamped")
    torch.testing.assert_close(flat(merged), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-13)


def test_pcb_leaves_out_what_is_below_the_ratio():
    merged = flat(merge_residuals([randn(k) for k in range(2)], "pcb", ratio=0.1))
    size = len(merged)
    kept = size - int(size * 0.9) - 1  # of each policy: the entry at the quantile itself has S = 0
    assert kept <= merged.count_nonzero() <= 2 * kept
    assert not flat(merge_residuals([randn(k) for k in range(2)], "pcb", ratio=0.0)).any()


# OPCM


def opcm_step_by_step(residuals, energy: float, weights=None):
    """The recursion with lambda_t and complete singular vectors; returns D_K and every lambda_t."""
    count = len(residuals)
    factors = [count * weight for weight in weights or [1 / count] * count]
    taus = [{name: factor * tau for name, tau in t.items()} for factor, t in zip(factors, residuals, strict=True)]

    def norm(residual):
        return math.sqrt(sum(tensor.square().sum().item() for tensor in residual.values()))

    merged, lambdas = taus[0], [1.0]
    for step in range(1, count):
        raised = {}
        for name, before in merged.items():
            tau = taus[step][name]
            if before.ndim == 2 and name != EMBEDDING:
                left, values, right = torch.linalg.svd(before)
                share = values.cumsum(0) / values.sum()
                protected = next(i for i, value in enumerate(share.tolist()) if value > energy)
                projected = left.T @ tau @ right.T
                projected.fill_diagonal_(0)
                projected[:protected, :protected] = 0
                tau = left @ projected @ right
            raised[name] = lambdas[-1] * before + tau
        mean = sum(norm(tau) for tau in taus[: step + 1]) / (step + 1)
        lambdas.append(norm(raised) / mean)
        merged = {name: tensor / lambdas[-1] for name, tensor in raised.items()}
    return merged, lambdas


@pytest.mark.parametrize("dtype", WIDTHS)
def test_opcm_agrees_with_the_public_code(dtype):
    assert_case("opcm_n2_a0.5", plus_base(merge_residuals(task_vectors(2, dtype), "opcm")))


def test_opcm_step_by_step_has_the_factors_of_the_public_code():
    _, lambdas = opcm_step_by_step(task_vectors(2, torch.float64), 0.5)
    assert lambdas == pytest.approx(CASES["opcm_n2_a0.5"]["scalars"]["lambda_t"], rel=1e-10)


@pytest.mark.parametrize("energy", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.2, 0.1]])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_opcm_is_its_recursion(count, weights, energy):
    residuals = [randn(k) for k in range(count)]
    weights = weights and weights[:count]
    expected, _ = opcm_step_by_step(residuals, energy, weights)
    assert_equal(merge_residuals(residuals, "opcm", weights=weights, energy=energy), expected)


def test_opcm_protects_up_to_and_including_the_share_of_the_singular_values():
    """Values 4, 2, 1, 1 have shares 1/2, 3/4, ..: the first above 3/4 is the third, so two are protected."""
    taus = [{Q: torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]).double())}, {Q: torch.ones(4, 4, dtype=torch.float64)}]
    merged = merge_residuals(taus, "opcm", energy=0.75)[Q]
    expected = 1 - torch.eye(4, dtype=torch.float64)
    expected[:2, :2] = 0
    torch.testing.assert_close(merged / merged[0, 2] - taus[0][Q], expected)


def test_opcm_has_the_mean_norm_and_keeps_the_first_residual():
    residuals = [randn(k) for k in range(2)]
    merged = merge_residuals(residuals, "opcm", energy=0.9)
    norms = [flat(residual).norm() for residual in residuals]
    torch.testing.assert_close(flat(merged).norm(), (norms[0] + norms[1]) / 2)
    # In the first residual's singular vectors, the merge is its singular values times one factor.
    left, values, right = torch.linalg.svd(residuals[0][DOWN], full_matrices=False)
    kept = (left.T @ merged[DOWN] @ right.T).diagonal() / values
    torch.testing.assert_close(kept, kept[:1].expand_as(kept))


def test_opcm_adds_what_is_outside_a_first_residual_of_low_rank():
    """After a residual of rank 1, no direction but one is protected, however its null space is written down."""
    first, second = randn(0), randn(1)
    generator = torch.Generator().manual_seed(5)
    for name in (Q, UP, DOWN, HEAD):
        out, into = SHAPES[name]
        left = torch.randn(out, 1, generator=generator, dtype=torch.float64)
        first[name] = left @ torch.randn(1, into, generator=generator, dtype=torch.float64)
    for dtype in WIDTHS:  # the product of two factors that are rounded to float32 still counts as of rank 1
        taus = [{name: tensor.to(dtype) for name, tensor in tau.items()} for tau in (first, second)]
        merged = merge_residuals(taus, "opcm", energy=0.5)
        factor = merged[NORM] / (taus[0][NORM] + taus[1][NORM])
        for name in (Q, UP, DOWN, HEAD):
            left, _, right = (tensor.to(dtype) for tensor in torch.linalg.svd(first[name], full_matrices=False))
            inside = left[:, :1] @ (left[:, :1].T @ taus[1][name] @ right[:1].T) @ right[:1]
            expected = factor[0] * (taus[0][name] + taus[1][name] - inside)
            torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_opcm_after_a_policy_without_residual_is_the_other_policy():
    residuals = [{NORM: torch.zeros(5, dtype=torch.float64)}, {name: t for name, t in randn(1).items() if name != NORM}]
    merged = merge_residuals(residuals, "opcm")
    # ||E|| = ||tau_2||, and the mean norm is half of it.
    for name, tau in residuals[1].items():
        torch.testing.assert_close(merged[name], tau / 2)


# WIDEN


def change(before: torch.Tensor, tau: torch.Tensor) -> tuple[Decimal, Decimal]:
    """m and d of one column by their definitions, with 60 digits: they are differences of nearly equal numbers."""
    with localcontext(prec=60):
        before = [Decimal(value) for value in before.tolist()]
        after = [value + Decimal(moved) for value, moved in zip(before, tau.tolist(), strict=True)]

        def inner(left, right):
            return sum(a * b for a, b in zip(left, right, strict=True))

        sizes = inner(before, before).sqrt(), inner(after, after).sqrt()
        return abs(sizes[0] - sizes[1]), 1 - inner(before, after) / (sizes[0] * sizes[1])


def widen_by_columns(residuals, sft, ratio: float, calibration: float):
    """The formula, one column at a time."""
    count, merged = len(residuals), {}

    def scored(values):
        scores = torch.tensor(values, dtype=torch.float64).softmax(0)
        means = [sum(row) / len(row) for row in values]
        for k, row in enumerate(values):
            for i, value in enumerate(row):
                if value > ratio * means[k] * (1 + 1e-12):  # the middle rank is the mean
                    scores[k, i] = calibration
        return scores

    def ranked(row):
        order = sorted(range(len(row)), key=lambda i: row[i])
        return [order.index(i) / len(row) for i in range(len(row))]

    for name, base in sft.items():
        taus = [residual[name] for residual in residuals]
        if base.ndim == 1:
            scores = scored([tau.abs().tolist() for tau in taus])
            merged[name] = sum(scores[k] * taus[k] for k in range(count))
            continue
        if name == EMBEDDING:
            base, taus = base.T, [tau.T for tau in taus]
        magnitudes, directions = [], []
        for tau in taus:
            columns = [change(base[:, i], tau[:, i]) for i in range(base.shape[1])]
            magnitudes.append(ranked([magnitude for magnitude, _ in columns]))
            directions.append(ranked([direction for _, direction in columns]))
        scores = (scored(magnitudes) + scored(directions)) / 2
        merged[name] = sum(scores[k] * taus[k] for k in range(count))
        if name == EMBEDDING:
            merged[name] = merged[name].T.contiguous()
    return merged


@pytest.mark.parametrize("dtype", WIDTHS)
def test_widen_agrees_with_the_public_code(dtype):
    merged = merge_residuals(task_vectors(3, dtype), "widen", sft=tensors("model_base", dtype))
    assert_case("widen_n3_r1_c1", plus_base(merged))


@pytest.mark.parametrize("scale", [3.0, 0.3, 1e-14])  # columns turned beyond a right angle, and hardly at all
@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (0.6, 0.5), (1.5, 2.0)])
def test_widen_is_its_formula(ratio, calibration, scale):
    residuals, sft = [randn(k, scale) for k in range(3)], randn(7)
    residuals[1][Q][:, 2] = -2 * sft[Q][:, 2]  # turned round
    merged = merge_residuals(residuals, "widen", sft=sft, ratio=ratio, calibration=calibration)
    assert_equal(merged, widen_by_columns(residuals, sft, ratio, calibration), atol=1e-13 * scale)
    weights = [0.5, 0.2, 0.3]
    scaled = [{name: 3 * w * tau for name, tau in r.items()} for w, r in zip(weights, residuals, strict=True)]
    merged = merge_residuals(residuals, "widen", weights=weights, sft=sft, ratio=ratio, calibration=calibration)
    assert_equal(merged, widen_by_columns(scaled, sft, ratio, calibration), atol=1e-13 * scale)


def test_widen_ranks_small_residuals_in_float32():
    """With residuals of 1e-5 of the weights, d is of order 1e-10: the cosine of two float32 columns is rounding."""
    residuals, sft = [randn(k, 1e-5) for k in range(3)], randn(7)
    narrow = [{name: tensor.float() for name, tensor in tau.items()} for tau in (*residuals, sft)]
    merged = merge_residuals(narrow[:3], "widen", sft=narrow[3])
    expected = widen_by_columns(
        [{name: tensor.double() for name, tensor in tau.items()} for tau in narrow[:3]],
        {name: tensor.double() for name, tensor in narrow[3].items()},
        1.0,
        1.0,
    )
    assert_equal({name: tensor.double() for name, tensor in merged.items()}, expected, rtol=1e-5, atol=1e-12)


def test_widen_counts_columns_that_vanish_or_appear_as_turned_by_a_right_angle():
    sft, residuals = randn(7), [randn(0, 1e-3), randn(1, 1e-3)]
    sft[Q][:, 0] = 0
    residuals[0][Q][:, 0] *= 1e-3  # appears: d = 1, m is small
    residuals[1][Q][:, 0] = 0  # neither before nor after: d = m = 0
    residuals[0][Q][:, 1] = -2 * sft[Q][:, 1]  # turned round: d = 2, m = 0
    residuals[0][UP][:, 1] = -sft[UP][:, 1]  # vanishes
    merged = merge_residuals(residuals, "widen", sft=sft, ratio=1.9)  # only the last of five columns is above
    assert all(tensor.isfinite().all() for tensor in merged.values())
    # Second of five in m and fourth in d, against the first in both.
    score = sum(math.exp(position / 5) / (math.exp(position / 5) + 1) for position in (1, 3)) / 2
    torch.testing.assert_close(merged[Q][:, 0], score * residuals[0][Q][:, 0], rtol=1e-12, atol=0)


def test_widen_needs_the_sft_model():
    with pytest.raises(ValueError, match=r"rule 'widen' compares the columns of .* give the SFT model's tensors"):
        merge_residuals([randn(0), randn(1)], "widen")


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("pcb", {"ratio": 1.5}, "ratio is 1.5, expected a number between 0 and 1"),
        ("pcb", {"clamp": 0.6}, "clamp is 0.6, expected a number between 0 and 0.5"),
        ("pcb", {"balance": "row"}, "unknown balance 'row'; known: clamped, raw"),
        ("opcm", {"energy": -0.1}, "energy is -0.1, expected a number between 0 and 1"),
        ("widen", {"ratio": -1}, "ratio is -1, expected a number at least 0"),
        ("widen", {"calibration": 1e39}, r"calibration is 1e\+39, expected a number at least 0 that float32 holds"),
        ("widen", {"calibration": "1"}, "calibration is '1', expected a number at least 0"),
    ],
)
def test_mistakes_are_named(rule, options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([randn(0), randn(1)], rule, sft=randn(2), **options)
