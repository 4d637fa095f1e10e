"""What holds for rules whatever the numbers: cutting, order, scale, one-hot weights; and an oracle for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_lines.merge import merge_residuals
from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from rlhf_lines.merge.tensors.spans import ELEMENTS


# One parameter is longer than a piece, one has no dimensions, one no elements.
SHAPES = {"w": (520, 257), "a.b": (41, 13), "v": (29,), "c": (3, 4, 5), "s": (), "e": (0, 7)}
assert math.prod(SHAPES["w"]) > ELEMENTS


@dataclass(frozen=True)
class Case:
    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 3
    whole_weights: bool = False

    def __str__(self) -> str:
        return "-".join([self.rule, *map(str, self.options.values())])

    def weights(self) -> list[float]:
        return [0.5, 0.2, 0.3][: self.count]


CASES = [
    Case("linear"),
    Case("sum"),
    Case("ties"),
    Case("ties", {"density": 0.5, "reduction": "sum", "granularity": "tensor"}),
    Case("ties", {"density": 0.4, "reduction": "max", "zero_sign": "positive"}),
    Case("slerp", count=2),
    Case("slerp", {"granularity": "global"}, count=2),
    Case("slerp", {"of": "weights"}, count=2, whole_weights=True),
    Case("slerp", {"of": "weights", "granularity": "global"}, count=2, whole_weights=True),
    Case("dare", {"drop_rate": 0.6, "seed": 5}),
    Case("dare", {"rescale": "l1", "drop_rate": 0.5}),
    Case("dare", {"then": "ties", "drop_rate": 0.3, "ties_options": {"density": 0.4}}),
    Case("breadcrumbs"),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "order": "keep_first"}),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "granularity": "tensor"}),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "granularity": "global", "scale": 0.3}),
    Case("consensus"),
    Case("consensus", {"k": 3, "thresholds": [0.1, 0.2, 0.3]}),
    Case("consensus", {"of": "ties", "thresholds": 0.6, "ties_options": {"density": 0.5}}),
]


def with_options(*rules: str) -> list[Case]:
    return [case for case in CASES if case.rule in rules]


def random_tensors(count: int, dtype=torch.float32, seed: int = 0, *, shared: float = 0.5) -> list[dict]:
    """`count` heavy-tailed residuals that have a part in common; the first lacks one parameter."""
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn((count + 1, *shape), generator=generator) ** 3 for name, shape in SHAPES.items()}
    residuals = [{name: (x[k] + shared * x[count]).to(dtype) for name, x in draw.items()} for k in range(count)]
    del residuals[0]["c"]
    return residuals


def sft_tensors(dtype=torch.float32) -> dict[str, torch.Tensor]:
    return random_tensors(2, dtype, seed=99)[1]


def merged_by(case: Case, residuals=None, *, weights=None, change=lambda residuals: residuals, **reading):
    """tau_M of every parameter, from residuals that are read as `change` and `reading` say."""
    if residuals is None:
        residuals = random_tensors(case.count)
    dtype = residuals[0]["w"].dtype
    held = residuals_in_memory(residuals, sft=sft_tensors(dtype) if case.whole_weights else None, **reading)
    merged = merge_lazily(change(held), case.rule, weights=weights or case.weights(), **case.options)
    return {name: merged.tensor(name) for name in held.shapes}


def assert_same_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_how_residuals_are_read_does_not_change_a_bit(case, monkeypatch):
    expected = merged_by(case)
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == SHAPES
    assert_same_bits(merged_by(case, change=lambda held: replace(held, workers=3)), expected)
    backwards = [dict(reversed(residual.items())) for residual in random_tensors(case.count)]
    assert_same_bits(merged_by(case, backwards), expected)
    monkeypatch.setattr(order, "DIRECT", 0)
    assert_same_bits(merged_by(case, change=lambda held: replace(held, workers=3, elements=1000)), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_pieces_do_not_change_a_bit(case):
    few = [{name: x for name, x in residual.items() if name != "w"} for residual in random_tensors(case.count)]
    for residual in few:
        residual["w"] = torch.zeros(0)  # so that the dtype can be read off
    sft = {**sft_tensors(), "w": torch.zeros(0)} if case.whole_weights else None
    expected, cut = (
        merge_lazily(residuals_in_memory(few, sft=sft, elements=n), case.rule, weights=case.weights(), **case.options)
        for n in (ELEMENTS, 7)
    )
    assert_same_bits({name: cut.tensor(name) for name in few[1]}, {name: expected.tensor(name) for name in few[1]})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_of_torch_do_not_change_a_bit(case):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = merged_by(case)
        torch.set_num_threads(4)
        assert_same_bits(merged_by(case), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inputs_stay_as_they_are(case):
    residuals = random_tensors(case.count)
    merged_by(case, residuals)
    for residual, fresh in zip(residuals, random_tensors(case.count), strict=True):
        assert_same_bits(residual, fresh)


@pytest.mark.parametrize("case", [case for case in CASES if not case.whole_weights], ids=str)
def test_names_do_not_matter_where_nothing_is_random(case):
    """Only DARE looks at names; all other rules treat a renamed parameter alike."""
    residuals = random_tensors(case.count)
    renamed = [{name.replace("a.b", "z"): x for name, x in residual.items()} for residual in residuals]
    same = torch.equal(merged_by(case, renamed)["z"], merged_by(case, residuals)["a.b"])
    assert same == (case.rule != "dare")


@pytest.mark.parametrize("case", [case for case in CASES if not case.whole_weights], ids=str)
def test_a_factor_on_all_residuals_is_one_on_the_result(case):
    # Powers of two, so that nothing rounds.
    larger = [{name: x * 2.0**-20 for name, x in residual.items()} for residual in random_tensors(case.count)]
    expected = {name: x * 2.0**-20 for name, x in merged_by(case).items()}
    assert_same_bits(merged_by(case, larger), expected)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.whole_weights and "positive" not in case.options.values()], ids=str
)
def test_the_opposite_residuals_give_the_opposite(case):
    opposite = [{name: -x for name, x in residual.items()} for residual in random_tensors(case.count)]
    assert_same_bits(merged_by(case, opposite), {name: -x for name, x in merged_by(case).items()})


@pytest.mark.parametrize("case", with_options("linear", "sum", "ties", "slerp", "breadcrumbs", "consensus"), ids=str)
def test_order_of_policies_does_not_matter(case):
    residuals = random_tensors(case.count, torch.float64)
    expected = merged_by(case, residuals)
    for places in ([1, 0], [1, 0, 2], [2, 0, 1]):
        if len(places) != case.count:
            continue
        options = dict(case.options)
        if isinstance(options.get("thresholds"), list):
            options["thresholds"] = [options["thresholds"][k] for k in places]
        got = merged_by(
            replace(case, options=options), [residuals[k] for k in places], weights=[case.weights()[k] for k in places]
        )
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_weights_are_the_sft_model(case):
    merged = merged_by(case, weights=[0.0] * case.count)
    assert all(tensor.count_nonzero() == 0 for tensor in merged.values())


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("case", with_options("linear", "slerp"), ids=str)
def test_one_hot_weights_are_that_policy(case, k):
    residuals = random_tensors(case.count)
    weights = [float(j == k) for j in range(case.count)]
    merged = merged_by(case, residuals, weights=weights)
    assert_same_bits({name: merged[name] for name in residuals[k]}, residuals[k])


@pytest.mark.parametrize("case", with_options("ties", "breadcrumbs"), ids=str)
def test_one_hot_weights_are_the_sparse_form_of_that_policy(case):
    residuals = random_tensors(case.count)
    merged = merged_by(case, residuals, weights=[0.0, 1.0, 0.0])
    # The preference factor of three equal policies is 3.
    alone = merged_by(replace(case, count=1), [{n: 3 * x for n, x in residuals[1].items()}], weights=[1.0])
    assert_same_bits(merged, alone)


def test_consensus_of_one_is_everything_that_it_has():
    residuals = random_tensors(3)
    merged = merge_residuals(residuals, "consensus", weights=[0, 1, 0], k=1)
    assert_same_bits(merged, {name: 3 * x for name, x in residuals[1].items()})
    assert all(x.count_nonzero() == 0 for x in merge_residuals(residuals, "consensus", weights=[0, 1, 0]).values())


def test_equal_weights_are_no_weights():
    residuals = random_tensors(2)
    for rule in ("ties", "dare", "breadcrumbs", "consensus", "slerp"):
        assert_same_bits(merge_residuals(residuals, rule, weights=[0.5, 0.5]), merge_residuals(residuals, rule))


# The oracles: float64, numpy, whole vectors, loops where they are clearer.


def flat(residuals: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """``[K, d]``, parameters in alphabetical order."""
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return np.stack(
        [np.concatenate([{**zeros, **r}[name].double().numpy().ravel() for name in sorted(SHAPES)]) for r in residuals]
    )


def by_parameter(vectors: np.ndarray, oracle) -> np.ndarray:
    """`oracle` of the columns of each parameter alone."""
    ends = np.cumsum([math.prod(SHAPES[name]) for name in sorted(SHAPES)])
    return np.concatenate([oracle(part) for part in np.split(vectors, ends[:-1], axis=1)])


def assert_is(got: dict[str, torch.Tensor], expected: np.ndarray) -> None:
    np.testing.assert_allclose(flat([got])[0], expected, rtol=1e-11, atol=1e-13)


def slerp_oracle(t: float):
    def oracle(ab: np.ndarray) -> np.ndarray:
        a, b = ab
        norms = np.linalg.norm(ab, axis=1)
        if not norms.all():
            return (1 - t) * a + t * b
        # The unit vector at the angle t omega from a towards b, in the plane of an orthonormal pair ...
        unit_a, unit_b = a / norms[0], b / norms[1]
        across = unit_b - (unit_b @ unit_a) * unit_a
        if np.linalg.norm(across) < 1e-7:
            return (1 - t) * a + t * b
        across /= np.linalg.norm(across)
        omega = math.atan2(unit_b @ across, unit_b @ unit_a)
        # ... and its coordinates along the two given directions, which are those of the lengths too.
        plane = np.array([[1, math.cos(omega)], [0, math.sin(omega)]])
        p, q = np.linalg.solve(plane, [math.cos(t * omega), math.sin(t * omega)])
        return p * a + q * b

    return oracle


@pytest.mark.parametrize("weights", [None, [0.7, 0.3], [0.5, 1.5]])
def test_slerp(weights):
    residuals = random_tensors(2, torch.float64)
    vectors = flat(residuals)
    w = weights or [0.5, 0.5]
    oracle = slerp_oracle(w[1] / sum(w))
    assert_is(merge_residuals(residuals, "slerp", weights=weights), sum(w) * by_parameter(vectors, oracle))
    merged = merge_residuals(residuals, "slerp", weights=weights, granularity="global")
    assert_is(merged, sum(w) * oracle(vectors))
    sft = sft_tensors(torch.float64)
    base = flat([sft])[0]
    whole = merge_residuals(residuals, "slerp", weights=weights, sft=sft, of="weights")
    assert_is(whole, sum(w) * (by_parameter(base + vectors, oracle) - base))


def test_slerp_keeps_length_and_divides_the_angle():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.nn.functional.normalize(torch.randn(50, generator=generator).double(), dim=0) for _ in range(2))
    angle = math.acos(float(a @ b))
    merged = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.75, 0.25])["a"]
    assert merged.norm().item() == pytest.approx(1, rel=1e-12)
    assert math.acos(float(a @ merged)) == pytest.approx(angle / 4, rel=1e-10)


def test_slerp_of_almost_parallel_or_opposite_vectors_is_linear():
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for sign in (1, -1):
        b = sign * torch.tensor([1.0, 0.01], dtype=torch.float64)  # cos 0.99995
        near = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.7, 0.3])["a"]
        assert torch.allclose(near, 0.7 * a + 0.3 * b, rtol=1e-15, atol=0)
        arc = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.7, 0.3], dot_threshold=0.99999)["a"]
        assert not torch.allclose(arc, near, rtol=1e-9)


def ties_oracle(vectors: np.ndarray, density: float, reduction: str, kept: int, positive: bool) -> np.ndarray:
    trimmed = []
    for vector in vectors:
        if len(vector) == 0:
            return vector
        smallest = np.sort(np.abs(vector))[::-1][min(kept, len(vector)) - 1]
        trimmed.append(np.where(np.abs(vector) >= smallest, vector, 0))
    totals = np.sum(trimmed, axis=0)
    signs = np.sign(totals)
    signs[signs == 0] = 1 if positive or np.sign(signs.sum()) > 0 else -1
    agreeing = [np.where(t * signs > 0, t, 0) for t in trimmed]
    if reduction == "max":
        return np.max(np.abs(agreeing), axis=0) * signs
    total = np.sum(agreeing, axis=0)
    return total / np.maximum(np.count_nonzero(agreeing, axis=0), 1) if reduction == "mean" else total


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_ties(reduction):
    residuals = random_tensors(3, torch.float64)
    factors = np.array([[1.5], [0.6], [0.9]])
    vectors = factors * flat(residuals)
    size = vectors.shape[1]
    got = merge_residuals(residuals, "ties", weights=[0.5, 0.2, 0.3], density=0.3, reduction=reduction)
    assert_is(got, ties_oracle(vectors, 0.3, reduction, int(0.3 * size) + 1, positive=False))
    options = {"granularity": "tensor", "zero_sign": "positive"}
    got = merge_residuals(residuals, "ties", weights=[0.5, 0.2, 0.3], density=0.3, reduction=reduction, **options)

    def oracle(part: np.ndarray) -> np.ndarray:
        return ties_oracle(part, 0.3, reduction, max(int(0.3 * part.shape[1]), 1), positive=True)

    assert_is(got, by_parameter(vectors, oracle))


def crumbs(vector: np.ndarray, keep: float, remove: float, order: str) -> np.ndarray:
    """As written in words: take away the largest, keep the largest of the rest; or the other way round."""
    kept = np.zeros_like(vector)
    places = np.argsort(-np.abs(vector), kind="stable")
    first, count = int(remove * len(vector)), int(keep * len(vector))
    chosen = places[first:][:count] if order == "remove_first" else places[:count][first:]
    kept[chosen] = vector[chosen]
    return kept


@pytest.mark.parametrize("order", ["remove_first", "keep_first"])
@pytest.mark.parametrize(("keep", "remove"), [(0.2, 0.1), (0.5, 0.25), (0.9, 0.3), (0.1, 0.4), (1.0, 0.0), (0.0, 0.5)])
def test_breadcrumbs(keep, remove, order):
    residuals = random_tensors(2, torch.float64)
    settings = {"keep": keep, "remove": remove, "order": order}
    for granularity in ("tensor", "global"):
        got = merge_residuals(residuals, "breadcrumbs", granularity=granularity, scale=0.5, **settings)

        def oracle(vectors: np.ndarray) -> np.ndarray:
            return 0.5 * sum(crumbs(vector, keep, remove, order) for vector in vectors)

        expected = oracle(flat(residuals)) if granularity == "global" else by_parameter(flat(residuals), oracle)
        assert_is(got, expected)
    got = merge_residuals(residuals, "breadcrumbs", scale=0.5, **settings)
    for name in ("a.b", "v", "c"):
        taus = [residual[name].numpy() for residual in residuals if name in residual]
        rows = [np.apply_along_axis(crumbs, -1, tau, keep, remove, order) for tau in taus]
        np.testing.assert_allclose(got[name].numpy(), 0.5 * sum(rows), rtol=1e-12)
    assert got["s"] == 0.5 * sum(residual["s"] for residual in residuals)


def test_breadcrumbs_of_equal_magnitudes_takes_the_lower_index_first():
    # Of eight entries two are removed and four are kept.
    rows = {
        "all equal": ([1, -1, 1, 1, -1, 1, 1, 1], [0, 0, 1, 1, -1, 1, 0, 0]),
        "equal at the top": ([3, 5, -5, 5, 1, 2, 2.5, 0], [3, 0, 0, 5, 0, 2, 2.5, 0]),
        "equal at the bottom": ([9, 8, 7, 2, -2, 2, 2, 2], [0, 0, 7, 2, -2, 2, 0, 0]),
        "all different": ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 3, 4, 5, 6, 0, 0]),
    }
    tau = torch.tensor([given for given, _ in rows.values()])
    merged = merge_residuals([{"a": tau}], "breadcrumbs", keep=0.5, remove=0.25)["a"]
    assert merged.tolist() == [expected for _, expected in rows.values()]
    alone = torch.stack([merge_residuals([{"a": row}], "breadcrumbs", keep=0.5, remove=0.25)["a"] for row in tau])
    assert torch.equal(alone, merged)


@pytest.mark.parametrize("of", ["sum", "ties"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_consensus(k, of):
    residuals = random_tensors(3, torch.float64)
    lams = [0.3, 0.5, 0.8]
    vectors = np.array([[1.5], [0.6], [0.9]]) * flat(residuals)
    total = vectors.sum(axis=0)
    if of == "ties":
        total = ties_oracle(vectors, 0.2, "sum", int(0.2 * vectors.shape[1]) + 1, positive=False)
    votes = sum((np.abs(tau) > lam * np.abs(total - tau)).astype(int) for tau, lam in zip(vectors, lams, strict=True))
    got = merge_residuals(residuals, "consensus", weights=[0.5, 0.2, 0.3], thresholds=lams, k=k, of=of)
    assert_is(got, np.where(votes >= k, total, 0))


def test_consensus_of_two_keeps_entries_of_similar_size():
    # lam = 0.4: kept where 0.4 < |tau_1| / |tau_2| < 2.5.
    first = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0])
    second = torch.tensor([2.0, 3.0, 0.3, 2.0, -1.0])
    merged = merge_residuals([{"a": first}, {"a": second}], "consensus")["a"]
    assert merged.tolist() == [3.0, 0.0, 0.0, 1.0, 0.0]
