"""Signatures of policies from their factors, against the dense residuals in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf_lines.merge.audit import DIRECTIONS, audit_policies
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, load_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.outliers import two_policies, unlike_policies
from tests import tiny


LAYERS = 4
MODULES = {f"model.layers.{layer}.{name}": (6, 8) for layer in range(LAYERS) for name in ("q_proj", "up_proj")}


def adapter(seed: int, *, rank=3, scale=0.5, of=None, size=lambda module: 1.0, path=None) -> Adapter:
    """Random factors for all modules, or those that are given."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        module: Factors(
            torch.randn(rank, MODULES.get(module, (6, 8))[1], generator=generator),
            size(module) * torch.randn(MODULES.get(module, (6, 8))[0], rank, generator=generator),
            scale,
        )
        for module in of or MODULES
    }
    return Adapter(path or f"policy-{seed}", modules)


def dense(adapter: Adapter, module: str) -> np.ndarray:
    """s B A in float64; zeros where it does not adapt the module."""
    if module not in adapter.modules:
        return np.zeros(MODULES.get(module, (6, 8)))
    factors = adapter.modules[module]
    return factors.scale * factors.B.double().numpy() @ factors.A.double().numpy()


def layer_of(module: str) -> int | None:
    return int(module.split(".")[2]) if "layers" in module else None


@pytest.fixture
def three() -> list[Adapter]:
    """Of different ranks and scales; the second adapts half of the modules, the third the head too."""
    return [
        adapter(1),
        adapter(2, rank=5, scale=2.0, of=[module for module in MODULES if "q_proj" in module]),
        adapter(3, rank=2, of=[*MODULES, "lm_head"]),
    ]


def test_norms_and_cosines_are_those_of_the_dense_residuals(three):
    found = audit_policies(three, num_layers=LAYERS)
    modules = [*MODULES, "lm_head"]
    assert found["layers"] == [0, 1, 2, 3, None]

    def flat(adapter, layers):
        return np.concatenate([dense(adapter, module).ravel() for module in modules if layer_of(module) in layers])

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    for k, each in enumerate(three):
        entry = found["policies"][k]
        assert entry["name"] == each.path
        assert entry["norm"] == pytest.approx(np.linalg.norm(flat(each, found["layers"])), rel=1e-12)
        assert entry["norms"] == pytest.approx(
            [np.linalg.norm(flat(each, [layer])) for layer in found["layers"]], rel=1e-12
        )
        assert entry["relative_norm"] is entry["relative_norms"] is None
    for j, k in itertools.product(range(3), repeat=2):
        whole = cosine(flat(three[j], found["layers"]), flat(three[k], found["layers"]))
        assert found["cosine"][j][k] == pytest.approx(whole, abs=1e-12)
        for i, layer in enumerate(found["layers"]):
            a, b = flat(three[j], [layer]), flat(three[k], [layer])
            expected = cosine(a, b) if a.any() and b.any() else None
            value = found["layer_cosines"][i][j][k]
            assert value is None if expected is None else value == pytest.approx(expected, abs=1e-12)


def test_the_spectrum_is_that_of_the_dense_residuals(three):
    found = audit_policies(three, num_layers=LAYERS)
    assert found["directions"] == list(DIRECTIONS)
    for each, entry in zip(three, found["policies"], strict=True):
        values = [np.linalg.svd(dense(each, module), compute_uv=False) ** 2 for module in [*MODULES, "lm_head"]]
        total = sum(value.sum() for value in values)
        expected = [sum(value[:d].sum() for value in values) / total for d in DIRECTIONS]
        assert entry["spectrum"] == pytest.approx(expected, rel=1e-12)


def test_depth_is_the_mean_place_of_the_squared_norm(three):
    for each, entry in zip(three, audit_policies(three, num_layers=LAYERS)["policies"], strict=True):
        squares = {module: (dense(each, module) ** 2).sum() for module in MODULES}
        expected = sum(layer_of(module) / (LAYERS - 1) * square for module, square in squares.items())
        assert entry["depth"] == pytest.approx(expected / sum(squares.values()), rel=1e-12)
    last = adapter(1, of=[f"model.layers.{LAYERS - 1}.q_proj"])
    assert audit_policies([last], num_layers=LAYERS)["policies"][0]["depth"] == 1.0


def test_relative_norms_are_over_the_weights_of_the_adapted_modules(tmp_path):
    tokenizer = tiny.word_tokenizer()
    model = tiny.llama(tokenizer, num_hidden_layers=2)
    sft = tiny.save(model, tokenizer, tmp_path / "sft")
    policies = [
        tiny.save_adapter(sft, tmp_path / "one", seed=1),
        tiny.save_adapter(sft, tmp_path / "two", seed=2, r=2, target_modules=["q_proj", "lm_head"]),
    ]
    adapters = [load_adapter(policy) for policy in policies]
    with Checkpoint(sft) as checkpoint:
        found = audit_policies(adapters, num_layers=2, sft=checkpoint)
    weights = {name.removesuffix(".weight"): value.double() for name, value in model.state_dict().items()}
    adapted = {module for each in adapters for module in each.modules}
    assert any("lm_head" in module for module in adapted)
    for each, entry in zip(adapters, found["policies"], strict=True):
        residuals = {
            module: each.modules[module].scale * each.modules[module].B.double() @ each.modules[module].A.double()
            for module in each.modules
        }

        def over(layers, residuals=residuals):
            norms = [
                math.sqrt(sum(value.square().sum().item() for name, value in of.items() if layer_of(name) in layers))
                for of in (residuals, {module: weights[module] for module in adapted})
            ]
            return norms[0] / norms[1]

        assert entry["relative_norms"] == pytest.approx([over([layer]) for layer in found["layers"]], rel=1e-9)
        assert entry["relative_norm"] == pytest.approx(over(found["layers"]), rel=1e-9)


def shared(seed: int, **options) -> Adapter:
    """A policy that is mostly what all have in common."""
    common, own = adapter(0, **options), adapter(seed, **options)
    return Adapter(
        f"policy-{seed}",
        {
            module: Factors(
                torch.cat([f.A, own.modules[module].A]), torch.cat([f.B, 0.3 * own.modules[module].B], dim=1), f.scale
            )
            for module, f in common.modules.items()
        },
    )


def test_policies_that_are_alike_are_none_unlike():
    found = audit_policies([shared(seed) for seed in range(1, 6)], num_layers=LAYERS)
    assert [(entry["unlike"], entry["reason"]) for entry in found["policies"]] == [(False, None)] * 5
    assert unlike_policies(found) == []


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (shared(9, scale=5.0), "its norm is 9.9 times the median one"),
        (adapter(9), "its mean cosine to the others is "),
        (shared(9, size=lambda module: 8.0 if "layers.3" in module else 1.0), "its mean depth is 0.9"),
        (
            Adapter(
                "flat", {m: Factors(100 * f.A[:1], f.B[:, :1] / 100, f.scale) for m, f in shared(9).modules.items()}
            ),
            "first directions hold 100% of its squared norm, where the median is ",
        ),
    ],
    ids=["norm", "cosine", "depth", "spectrum"],
)
def test_the_one_that_is_unlike_the_others_is_told_with_why(odd, reason):
    found = audit_policies([*(shared(seed) for seed in range(1, 4)), odd], num_layers=LAYERS)
    assert [entry["unlike"] for entry in found["policies"]] == [False, False, False, True]
    assert reason in found["policies"][3]["reason"]
    assert unlike_policies(found) == [f"policy {odd.path} looks unlike the others: {found['policies'][3]['reason']}"]


def test_of_two_policies_neither_is_unlike_the_other():
    found = audit_policies([adapter(1), adapter(2, scale=50.0)], num_layers=LAYERS)
    assert [entry["unlike"] for entry in found["policies"]] == [None, None]


def test_a_policy_that_is_the_sft_model_is_told():
    found = audit_policies([adapter(1), adapter(2, size=lambda module: 0.0)], num_layers=LAYERS)
    entry = found["policies"][1]
    assert (entry["unlike"], entry["reason"]) == (True, "it is the SFT model: its residual is 0")
    assert entry["norm"] == 0 and entry["spectrum"] is entry["depth"] is None
    assert found["cosine"] == [[pytest.approx(1.0), None], [None, None]]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no policies"):
        audit_policies([], num_layers=LAYERS)
    wide = Adapter("wide", {module: Factors(torch.ones(1, 9), torch.ones(6, 1), 1.0) for module in MODULES})
    with pytest.raises(ValueError, match=r"has shapes \[\(6, 8\), \(6, 9\)\] in different adapters"):
        audit_policies([adapter(1), wide], num_layers=LAYERS)


def test_of_two_policies_is_said_what_can_be_said():
    """Ratio of norms, cosine and first direction of the dense residuals."""
    one, other = adapter(1, path="one"), adapter(2, rank=5, scale=2.0, path="other")
    audit = audit_policies([one, other], num_layers=LAYERS)
    assert [policy["unlike"] for policy in audit["policies"]] == [None, None]
    flat = [np.concatenate([dense(each, module).ravel() for module in MODULES]) for each in (one, other)]
    norms = [np.linalg.norm(values) for values in flat]
    assert norms[1] > norms[0]
    first = [
        sum(np.linalg.svd(dense(each, module), compute_uv=False)[0] ** 2 for module in MODULES) / norm**2
        for each, norm in ((other, norms[1]), (one, norms[0]))
    ]
    cosine = flat[0] @ flat[1] / (norms[0] * norms[1])
    assert two_policies(audit) == (
        f"other has {norms[1] / norms[0]:.2f} times the norm of one, the cosine of the two is {cosine:z.2f}, and first "
        f"directions hold {first[0]:.0%} and {first[1]:.0%} of their squared norms (which of two is the unlike one, "
        "nothing tells)."
    )
    still = adapter(3, scale=0.0, path="still")
    assert two_policies(audit_policies([one, still], num_layers=LAYERS)) == "still is the SFT model: the residual is 0."


@pytest.mark.parametrize("count", [1, 3])
def test_of_another_number_of_policies_nothing_is_said_so(three, count):
    assert two_policies(audit_policies(three[:count], num_layers=LAYERS)) is None
