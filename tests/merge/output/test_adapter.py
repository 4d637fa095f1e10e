"""Adapters of another rank or rule than the exact merge: saved, loaded by PEFT, and equal to the dense model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.rules import RULES
from tests import tiny
from tests.merge.adapters import lora_residual


SPEC = MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)


@pytest.fixture
def second(sft, tmp_path, save_adapter):
    """A policy with the modules, ranks and scales of `helpful`."""
    return save_adapter(sft, tmp_path / "second", seed=5)


def nearest(exact, rank: int) -> dict[str, torch.Tensor]:
    """The truncated SVD of every residual of an adapter folder, in float64."""
    near = {}
    for name, tensor in lora_residual(load_adapter(exact)).items():
        left, singular, right = torch.linalg.svd(tensor.double(), full_matrices=False)
        near[name] = (left[:, :rank] * singular[:rank]) @ right[:rank]
    return near


@pytest.mark.parametrize("rank", [1, 3, 10, 24])
def test_a_truncated_adapter_is_the_nearest_of_its_rank(
    sft, helpful, harmless, tmp_path, rank, peft_logits, dense_logits
):
    policies = [helpful, harmless]
    exact = merge_policies(sft, policies, SPEC, save="adapter", output_dir=tmp_path / "exact")
    out = merge_policies(sft, policies, SPEC, save="adapter", rank=rank, output_dir=tmp_path / "out")
    rank = min(rank, 10)  # the sum of the ranks holds everything
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (rank, rank, {})
    # The oracle of the logits: the SFT model with the nearest residuals added to its weights.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sft).eval()
    residual, near = lora_residual(load_adapter(exact)), nearest(exact, rank)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in near.items():
            parameters[name] += tensor.float()
        expected = model(input_ids=torch.arange(12).reshape(2, 6) % 32).logits
    torch.testing.assert_close(peft_logits(sft, out), expected, rtol=1e-5, atol=1e-5)
    # The same adapter, made dense.
    dense = merge_policies(sft, [out], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "dense")
    torch.testing.assert_close(dense_logits(dense), peft_logits(sft, out), rtol=1e-5, atol=1e-5)
    record = json.loads((out / "merge_spec.json").read_text())
    truncation = record["truncation"]
    lost = {name: (near[name] - t).norm().item() / t.double().norm().item() for name, t in residual.items()}
    error = sum((near[name] - tensor).square().sum().item() for name, tensor in residual.items())
    size = sum(tensor.double().square().sum().item() for tensor in residual.values())
    assert (record["rank"], truncation["rank"]) == (rank, rank)
    assert truncation["lost"] == pytest.approx((error / size) ** 0.5, rel=1e-5, abs=1e-6)
    assert truncation["worst_lost"] == pytest.approx(max(lost.values()), rel=1e-5, abs=1e-6)
    if rank < 10:
        assert truncation["lost"] > 0.1 and lost[f"{truncation['worst_module']}.weight"] == max(lost.values())
        assert (peft_logits(sft, exact) - expected).abs().max() > 0.01
    else:
        # Rank R >= sum r_k keeps everything.
        assert truncation["lost"] < 1e-7
        torch.testing.assert_close(peft_logits(sft, out), peft_logits(sft, exact), rtol=1e-5, atol=1e-5)
    card = (out / "README.md").read_text()
    assert f"truncated to rank {rank}, which lost {truncation['lost']:.2%} of the merged residual" in card
    assert not (out / "mergekit.yaml").exists()  # mergekit would merge without truncation


@pytest.mark.parametrize(
    ("rule", "policies", "full"),
    # Sums of ranks 4 + 6; of 6 times 3, where the modules are 16 wide; residuals of any rank, 16 wide.
    [("linear", "harmless helpful", 10), ("linear", "harmless " * 3, 16), ("ties", "harmless helpful", 16)],
)
@pytest.mark.parametrize("rank", [17, 10**11, 10**20])
def test_a_rank_beyond_that_of_the_residual_is_lowered(request, sft, tmp_path, rule, policies, full, rank):
    policies = [request.getfixturevalue(name) for name in policies.split()]
    spec = MergeSpec(rule, (0.5,) * len(policies))
    out = merge_policies(sft, policies, spec, save="adapter", rank=rank, output_dir=tmp_path / "out")
    record = json.loads((out / "merge_spec.json").read_text())
    assert json.loads((out / "adapter_config.json").read_text())["r"] == record["rank"] == full
    assert record["asked_rank"] == rank and record["truncation"]["lost"] < 1e-6
    assert record["warnings"][-1] == (
        f"rank {rank} is more than the merged residual has: the adapter gets rank {full}, which holds all of it"
    )


def test_an_exact_adapter_says_its_rank_and_no_truncation(sft, helpful, harmless, tmp_path):
    out = merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / "out")
    record = json.loads((out / "merge_spec.json").read_text())
    assert record["rank"] == 10 and "truncation" not in record
    assert "truncated" not in (out / "README.md").read_text()


def test_the_config_is_what_peft_itself_would_save(sft, helpful, harmless, tmp_path):
    out = merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / "out")
    configs = [json.loads((policy / "adapter_config.json").read_text()) for policy in (helpful, harmless)]
    modules = {module for config in configs for module in config["target_modules"]}
    expected = LoraConfig(
        r=10,
        lora_alpha=10,
        target_modules=modules,
        base_model_name_or_path=str(sft),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    assert LoraConfig.from_pretrained(out).to_dict() == expected.to_dict()
    # In one order, whichever process wrote it.
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == sorted(modules)


def test_an_adapter_is_merged_without_the_import_of_peft(sft, helpful, harmless, tmp_path):
    script = (
        "import sys; from rlhf_lines import cli\n"
        "status = cli.main(sys.argv[1:])\n"
        "assert not (found := {'peft', 'transformers', 'trl.trainer'} & set(sys.modules)), found\n"
        "sys.exit(status)"
    )
    words = [
        "merge",
        "--sft_model",
        sft,
        "--policies",
        helpful,
        harmless,
        "--weights",
        "0.3",
        "0.7",
        "--save",
        "adapter",
    ]
    command = [sys.executable, "-c", script, *map(str, words), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_half_precision_holds_a_truncated_adapter_of_tiny_factors(sft, helpful, copy_of, edit_weights, tmp_path):
    """B of an exact merge may lie below what float16 resolves; the truncated one shares its scale with A."""

    def lopsided(tensors):
        return {name: t * (1e4 if "lora_A" in name else 1e-8) for name, t in tensors.items()}

    policy = edit_weights(copy_of(helpful), lopsided)
    lost = {}
    for rank in (None, 4):
        out = merge_policies(
            sft, [policy], MergeSpec("linear", (1,)), save="adapter", rank=rank, dtype="float16",
            output_dir=tmp_path / f"out{rank}",
        )  # fmt: skip
        lost[rank] = json.loads((out / "merge_spec.json").read_text())["lost_residual"]["relative_l2"]
        assert {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()} == {torch.float16}
    assert lost[4] < 1e-3 < lost[None]


@pytest.mark.parametrize("rule", [rule for rule, entry in RULES.items() if entry.on_factors])
@pytest.mark.parametrize("rank", [None, 2])
def test_factor_rules_load_in_peft_and_equal_the_dense_model(
    sft, helpful, second, tmp_path, rule, rank, peft_logits, dense_logits
):
    spec = MergeSpec(rule, (0.3, 0.7), alpha=0.5, beta=1.0)
    out = merge_policies(sft, [helpful, second], spec, save="adapter", rank=rank, output_dir=tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["r"] == (rank or 4)
    again = merge_policies(sft, [out], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "again")
    torch.testing.assert_close(dense_logits(again), peft_logits(sft, out), rtol=1e-5, atol=1e-5)
    assert not (out / "mergekit.yaml").exists()
    exact = merge_policies(
        sft, [helpful, second], MergeSpec("linear", *list(spec.to_dict().values())[1:4]), save="adapter",
        output_dir=tmp_path / "exact",
    )  # fmt: skip
    assert (peft_logits(sft, out) - peft_logits(sft, exact)).abs().max() > 0.01
    if rank is None:
        dense = merge_policies(sft, [helpful, second], spec, save="dense", output_dir=tmp_path / "dense")
        torch.testing.assert_close(dense_logits(dense), peft_logits(sft, out), rtol=1e-5, atol=1e-5)
        assert json.loads((dense / "merge_spec.json").read_text())["spec"] == spec.to_dict()


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.4, -0.4)])
def test_peft_linear_is_the_adapter_that_peft_adds(sft, helpful, second, tmp_path, weights, logits, peft_logits):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), helpful, adapter_name="a")
    model.load_adapter(second, adapter_name="b")
    model.add_weighted_adapter(["a", "b"], list(weights), adapter_name="sum", combination_type="linear")
    model.set_adapter("sum")
    out = merge_policies(
        sft, [helpful, second], MergeSpec("peft_linear", weights), save="adapter", output_dir=tmp_path / "out"
    )
    torch.testing.assert_close(peft_logits(sft, out), logits(model.eval()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0, expected a whole number of at least 1"),
        ({"rank": 4, "save": "dense"}, "rank is 4, but a dense checkpoint has none"),
        ({"spec": MergeSpec("factor_average", (0.5, 0.5))}, "factor_average .*; use rule linear"),
    ],
)
def test_bad_arguments_are_named(sft, helpful, harmless, tmp_path, changes, message):
    arguments = {"spec": SPEC, "save": "adapter", **changes}
    with pytest.raises(ValueError, match=message):
        merge_policies(sft, [helpful, harmless], output_dir=tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", ["adapter", "dense"])
def test_factor_rules_refuse_dense_policies(sft, helpful, copy_of, tmp_path, save):
    spec = MergeSpec("peft_linear", (0.5, 0.5))
    with pytest.raises(ValueError, match=r"'peft_linear' combines the factors of adapters, but policy .* is a dense"):
        merge_policies(sft, [helpful, copy_of(sft)], spec, save=save, output_dir=tmp_path / "out")


@pytest.mark.parametrize(("rule", "rank"), [("linear", 3), ("factor_average", None), ("peft_linear", None)])
def test_weights_that_are_stored_transposed(tmp_path, save_adapter, peft_logits, dense_logits, rule, rank):
    sft = tmp_path / "gpt2"
    tiny.gpt2(n_layer=3, initializer_range=0.3).save_pretrained(sft)
    modules = ["c_attn", "c_proj"]
    policies = [save_adapter(sft, tmp_path / f"p{k}", seed=k, target_modules=modules) for k in range(2)]
    spec = MergeSpec(rule, (0.3, 0.7), alpha=0.5, beta=1.0)
    out = merge_policies(sft, policies, spec, save="adapter", rank=rank, output_dir=tmp_path / "out")
    # A truncated adapter is a policy like any other; a factor rule can be made dense at once.
    if rank is None:
        dense = merge_policies(sft, policies, spec, save="dense", output_dir=tmp_path / "dense")
    else:
        dense = merge_policies(sft, [out], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "dense")
    assert (peft_logits(sft, out) - dense_logits(sft)).abs().max() > 0.1
    torch.testing.assert_close(dense_logits(dense), peft_logits(sft, out), rtol=1e-5, atol=1e-5)


def test_a_model_of_the_hub_keeps_its_name_and_revision(sft, helpful, tmp_path, copy_of, edit_config):
    """Not the folder of this machine's cache, which another one does not have."""
    snapshot = tmp_path / "hub" / "models--org--sft" / "snapshots" / "9be4410"
    shutil.copytree(sft, snapshot)
    policy = edit_config(copy_of(helpful), base_model_name_or_path="org/sft")
    spec = MergeSpec("linear", (1,))
    out = merge_policies(snapshot, [policy], spec, save="adapter", output_dir=tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/sft", "9be4410")
    again = merge_policies(snapshot, [out], spec, save="adapter", output_dir=tmp_path / "again")
    assert json.loads((again / "merge_spec.json").read_text())["warnings"] == []


@pytest.mark.parametrize(
    ("dtype", "weight", "words"),
    [
        (None, 3e38, "are not finite in float32; check alpha, beta and weights$"),
        ("float16", 1e6, "are not finite in float16; check alpha, beta and weights, or choose --dtype float32$"),
    ],
)
def test_factors_that_overflow_are_named_with_their_dtype(sft, helpful, tmp_path, dtype, weight, words):
    with pytest.raises(ValueError, match=words):
        merge_policies(
            sft,
            [helpful],
            MergeSpec("linear", (weight,), 100.0),
            save="adapter",
            dtype=dtype,
            output_dir=tmp_path / "out",
        )
    assert list(tmp_path.iterdir()) == []
