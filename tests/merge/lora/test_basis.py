"""A basis of many policies: principal components at every position, and what the commands make of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, load_adapter
from rlhf_lines.merge.lora.basis import Basis, fit_basis, lost_by, most_components


OUT, INTO, RANK = 6, 5, 4
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def policies(count: int) -> list[Adapter]:
    """Random factors of two modules; the last policy lacks one, and has a smaller rank."""
    made = []
    for k in range(count):
        rank, names = (RANK, (Q, DOWN)) if k < count - 1 else (2, (Q,))
        modules = {
            name: Factors(drawn(10 * k + i, rank, INTO), drawn(100 + 10 * k + i, OUT, rank), 0.5 + k)
            for i, name in enumerate(names)
        }
        made.append(Adapter(f"policy{k}", modules))
    return made


def stacked(adapters: list[Adapter], module: str) -> dict[str, np.ndarray]:
    """By factor, `[positions, R, N]`: the vectors of all policies, with zeros where one has none."""
    of_A, of_B = np.zeros((INTO, RANK, len(adapters))), np.zeros((OUT, RANK, len(adapters)))
    for k, adapter in enumerate(adapters):
        if module in adapter.modules:
            factors = adapter.modules[module]
            rank = len(factors.A)
            of_A[:, :rank, k] = factors.A.numpy().T
            of_B[:, :rank, k] = factors.scale * factors.B.numpy()
    return {"A": of_A, "B": of_B}


@pytest.mark.parametrize("components", [1, 2, 3])
def test_every_position_has_the_principal_components_of_its_vectors(components):
    adapters = policies(5)
    basis = fit_basis(adapters, components, dtype=torch.float64)
    for module in (Q, DOWN):
        for factor, half in zip("AB", basis.modules[module], strict=True):
            for place, vectors in enumerate(stacked(adapters, module)[factor]):
                mean = vectors.mean(1, keepdims=True)
                left, values, right = np.linalg.svd(vectors - mean, full_matrices=False)
                values[components:] = 0
                expected = mean + left * values @ right
                got = np.stack([half.vectors(k)[place].numpy() for k in range(5)], axis=1)
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert basis.modules[Q][0].directions.shape == (INTO, RANK, components)
    assert basis.modules[Q][1].coefficients.shape == (OUT, components, 5)


def test_what_is_lost_is_the_distance_of_dense_residuals():
    adapters = policies(5)
    basis = fit_basis(adapters, 2, dtype=torch.float64)
    for k, (adapter, lost) in enumerate(zip(adapters, lost_by(basis, adapters), strict=True)):
        error = size = 0.0
        for module, rebuilt in basis.factors(k, torch.float64).items():
            given = adapter.modules.get(module)
            tau = given.scale * given.B @ given.A if given else torch.zeros(OUT, INTO, dtype=torch.float64)
            error += (tau - rebuilt.B @ rebuilt.A).square().sum().item()
            size += tau.square().sum().item()
        assert lost == pytest.approx((error / size) ** 0.5, rel=1e-9)
        assert lost > 0.05


def test_one_less_than_there_are_policies_lose_nothing():
    adapters = policies(4)
    assert max(lost_by(fit_basis(adapters, 3, dtype=torch.float64), adapters)) < 1e-7


def test_policies_on_a_line_are_kept_by_one_component():
    middle, direction = policies(3)[:2]
    on_line = []
    for step in (-1.0, 0.3, 2.0, 5.0):
        modules = {
            name: Factors(
                middle.modules[name].A + step * direction.modules[name].A,
                middle.modules[name].B + step * direction.modules[name].B,
                1.0,
            )
            for name in (Q, DOWN)
        }
        on_line.append(Adapter(f"step {step}", modules))
    assert max(lost_by(fit_basis(on_line, 1, dtype=torch.float64), on_line)) < 1e-7


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("rank", [2, 4, 16])
def test_the_most_components_are_the_last_that_save_numbers(count, rank):
    most = most_components(count, rank, numbers=rank * count * 30, positions=30)
    assert most * (rank + count) + rank < rank * count or most == 0
    assert (most + 1) * (rank + count) + rank >= rank * count


def test_numbers_are_those_of_the_policies_as_they_are(five, sft, save_adapter, capsys):
    """Eight policies of ranks 16, 4 .. 4 have 44 numbers at a position: one component takes 1 (16 + 8) + 16 = 40."""
    names = [f"q{k}" for k in range(8)]
    for k, name in enumerate(names):
        save_adapter(sft, Path(name), seed=k, r=4 if k else 16)
    flags = ["basis", "--sft_model", "sft", "--policies", *names, "--output_dir", "kept"]
    assert cli.main([*flags, "--components", "2"]) == 2
    assert "8 policies of ranks 4 to 16 take no more numbers as they are from 2 on" in capsys.readouterr().err
    assert cli.main(flags) == 0
    out, record = capsys.readouterr().out, json.loads(Path("kept/rlhf_lines.json").read_text())
    assert record["components"] == 1 and [policy["rank"] for policy in record["policies"]] == [16] + 7 * [4]
    assert "8 policies of ranks 4 to 16 in 1 components" in out
    lost = {policy["path"]: policy["lost"] for policy in record["policies"]}
    worse = [name for name in names if lost[name] > 1]
    assert worse == ["q0"]  # of which the SFT model alone would keep more
    (warning,) = record["warnings"]
    assert warning.startswith(f"policy 'q0' lost {lost['q0']:.1%} of its residual") and warning in out


def test_tensors_give_back_the_basis():
    basis = fit_basis(policies(5), 2)
    again = Basis.from_tensors(basis.to_tensors())
    assert again.policies == 5 and again.modules.keys() == basis.modules.keys()
    for k in range(5):
        for module, factors in basis.factors(k).items():
            assert torch.equal(again.factors(k)[module].A, factors.A) and factors.A.dtype == torch.float32
            assert torch.equal(again.factors(k)[module].B, factors.B)
    with pytest.raises(ValueError, match="the file holds no basis"):
        Basis.from_tensors({"model.layers.0.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="components is 5, expected a whole number from 1 to 4"):
        fit_basis(policies(5), 5)


@pytest.fixture
def five(sft, save_adapter, tmp_path, monkeypatch) -> list[str]:
    """The current folder of a user with `sft` and five adapters of rank 8."""
    monkeypatch.chdir(tmp_path)
    Path("sft").symlink_to(sft)
    for k in range(5):
        save_adapter(sft, tmp_path / f"p{k}", seed=k, r=8, lora_alpha=16)
    return [f"p{k}" for k in range(5)]


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: f.scale * f.B.double() @ f.A.double() for name, f in adapter.modules.items()}


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    error = sum((found[name] - tensor).square().sum() for name, tensor in expected.items())
    return (error / sum(tensor.square().sum() for tensor in expected.values())).sqrt().item()


def test_policies_and_mixes_come_out_of_a_basis(five, capsys):
    assert cli.main(["basis", "--sft_model", "sft", "--policies", *five, "--output_dir", "kept"]) == 0
    record = json.loads(Path("kept/rlhf_lines.json").read_text())
    out = capsys.readouterr().out
    assert record["components"] == 2  # 2 (8 + 5) + 8 numbers in place of 40
    sizes = [Path(policy, "adapter_model.safetensors").stat().st_size for policy in five]
    assert record["bytes"] == Path("kept/basis.safetensors").stat().st_size < sum(sizes)
    assert f"{record['bytes']:,} bytes in place of {sum(sizes):,}" in out
    assert f"({1 - record['bytes'] / sum(sizes):.1%} saved)" in out
    taus = [dense(load_adapter(policy)) for policy in five]
    rebuilt = []
    for k, policy in enumerate(record["policies"]):
        weights = [str(float(j == k)) for j in range(5)]
        assert cli.main(["rebuild", "--basis", "kept", "--weights", *weights, "--output_dir", f"again{k}"]) == 0
        adapter = load_adapter(f"again{k}")
        rebuilt.append(dense(adapter))
        assert relative(rebuilt[k], taus[k]) == pytest.approx(policy["lost"], rel=1e-4)
        assert f"p{k} lost {policy['lost']:.1%} of its residual" in out
        assert {len(factors.A) for factors in adapter.modules.values()} == {8}
        assert adapter.sft_sha256 == record["sft_sha256"]
    capsys.readouterr()
    mix = ["--weights", "0", "0.3", "0", "0.7", "0", "--beta", "1"]
    assert cli.main(["rebuild", "--basis", "kept", *mix, "--output_dir", "mix"]) == 0
    assert "adapter of rank 16" in capsys.readouterr().out
    names = taus[0].keys()
    layer = {name: int(name.split(".")[2]) for name in names}
    expected = {name: (1 + layer[name] / 3) * (0.3 * rebuilt[1][name] + 0.7 * rebuilt[3][name]) for name in names}
    assert relative(dense(load_adapter("mix")), expected) < 1e-6
    # What comes out is an adapter as any other.
    flags = ["--sft_model", "sft", "--policies", "again0", "p1", "--save", "adapter", "--output_dir", "merged"]
    assert cli.main(["merge", *flags]) == 0
    assert cli.main(["rebuild", "--basis", "kept", *mix, "--rank", "4", "--output_dir", "short"]) == 0
    assert {len(factors.A) for factors in load_adapter("short").modules.values()} == {4}
    assert "truncated to rank 4" in capsys.readouterr().out


def test_a_narrow_basis_says_what_it_lost(five):
    flags = ["--sft_model", "sft", "--policies", *five, "--components", "1", "--dtype", "bfloat16"]
    assert cli.main(["basis", *flags, "--output_dir", "kept"]) == 0
    record = json.loads(Path("kept/rlhf_lines.json").read_text())
    assert {tensor.dtype for tensor in load_file("kept/basis.safetensors").values()} == {torch.bfloat16}
    basis = Basis.from_tensors(load_file("kept/basis.safetensors"))
    lost = lost_by(basis, [load_adapter(policy) for policy in five])
    assert [policy["lost"] for policy in record["policies"]] == pytest.approx(lost, rel=1e-9)


def test_mistakes_are_one_sentence(five, sft, capsys, tmp_path):
    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main([*arguments, "--output_dir", "never"]) == 2 and not Path("never").exists()
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"rlhf-lines {arguments[0]}: ")
        return error

    of = ("basis", "--sft_model", "sft", "--policies")
    assert "2 policies of rank 8 take fewer numbers as they are than any basis" in refusal(*of, *five[:2])
    assert "from 3 on: give at most 2" in refusal(*of, *five, "--components", "4")
    assert "components is 0, expected at least 1" in refusal(*of, *five, "--components", "0")
    assert "unknown dtype 'float8'" in refusal(*of, *five, "--dtype", "float8")
    assert "takes" in refusal(*of, *five, "--dtype", "float64") and "the adapters" in refusal(
        *of, *five, "--dtype", "float64"
    )
    assert "p9" in refusal(*of, *five, "./p9")
    assert cli.main([*of, *five, "--output_dir", "kept"]) == 0
    again = ("rebuild", "--basis", "kept", "--weights")
    assert "2 weights for 5 policies (p0, p1, p2, p3, p4); give one per policy" in refusal(*again, "1", "0")
    assert "all weights are 0, which is the SFT model itself" in refusal(*again, *"00000")
    assert "has no basis.safetensors; expected the folder that `rlhf-lines basis` makes" in refusal(
        "rebuild", "--basis", "p0", "--weights", "1"
    )
    shutil.copytree("kept", "half")
    os.truncate("half/basis.safetensors", Path("half/basis.safetensors").stat().st_size // 2)
    broken = refusal("rebuild", "--basis", "half", "--weights", *"10000")
    assert "basis half/basis.safetensors cannot be read: " in broken
    from tests import tiny

    tiny.llama(seed=9, vocab_size=32).save_pretrained(tmp_path / "other")
    assert "give that SFT model with --sft_model" in refusal(*again, *"10000", "--sft_model", "./other")
