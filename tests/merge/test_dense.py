"""Dense merges: values, dtypes, shards, and the measured cost of the cast."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, apply_lines, merge_policies, merge_residuals
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from tests import tiny
from tests.merge.adapters import lora_residual


def read_weights(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def record_of(folder) -> dict:
    return json.loads((folder / "merge_spec.json").read_text())


@pytest.fixture
def dense_policy(sft, tmp_path):
    """A function that makes a dense policy: the SFT model with noise of a given size on every tensor."""

    def make(name: str, *, seed: int, size: float = 0.05, base=sft):
        folder = tmp_path / name
        shutil.copytree(base, folder)
        generator = torch.Generator().manual_seed(seed)
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            for key in sorted(tensors):
                noise = torch.randn(tensors[key].shape, generator=generator) * size
                tensors[key] = (tensors[key].float() + noise).to(tensors[key].dtype)
            save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def sft_bfloat16(sft):
    """The SFT model in bfloat16, in shards."""
    from transformers import AutoModelForCausalLM

    folder = sft.parent / "sft_bfloat16"
    AutoModelForCausalLM.from_pretrained(sft, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


SPEC = MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)


def test_dense_policies_merge_tensor_by_tensor(sft, dense_policy, tmp_path):
    policies = [dense_policy("a", seed=1), dense_policy("b", seed=2)]
    out = merge_policies(sft, policies, SPEC, save="dense", output_dir=tmp_path / "out")
    base = read_weights(sft)
    residuals = [{name: read_weights(p)[name].double() - base[name].double() for name in base} for p in policies]
    expected = apply_lines(merge_residuals(residuals, weights=SPEC.weights), SPEC.alpha, SPEC.beta)
    got = read_weights(out)
    assert got.keys() == base.keys()
    for name in base:
        torch.testing.assert_close(got[name].double(), base[name] + expected[name], rtol=1e-6, atol=1e-6)


def test_adapters_and_dense_policies_mix(sft, helpful, dense_policy, tmp_path):
    dense = dense_policy("a", seed=1)
    out = merge_policies(sft, [helpful, dense], SPEC, save="dense", output_dir=tmp_path / "out")
    base = read_weights(sft)
    residuals = [lora_residual(load_adapter(helpful)), {n: read_weights(dense)[n] - base[n] for n in base}]
    expected = apply_lines(merge_residuals(residuals, weights=SPEC.weights), SPEC.alpha, SPEC.beta)
    for name, tensor in read_weights(out).items():
        torch.testing.assert_close(tensor, base[name] + expected[name], rtol=1e-6, atol=1e-6)


def test_untouched_parameters_keep_their_bits(sft_bfloat16, helpful, copy_of, edit_config, tmp_path):
    policy = edit_config(copy_of(helpful), base_model_name_or_path=str(sft_bfloat16))
    out = merge_policies(sft_bfloat16, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    base, got = read_weights(sft_bfloat16), read_weights(out)
    changed = {name for name in base if not torch.equal(base[name], got[name])}
    assert changed == {f"{module}.weight" for module in load_adapter(helpful).modules}
    assert {tensor.dtype for tensor in got.values()} == {torch.bfloat16}


def test_shards_and_index_are_those_of_the_sft_model(sft_bfloat16, dense_policy, tmp_path, dense_logits):
    policy = dense_policy("a", seed=1, base=sft_bfloat16)
    one_hot = MergeSpec("linear", (1,))
    out = merge_policies(sft_bfloat16, [policy], one_hot, save="dense", output_dir=tmp_path / "out", dtype="float32")
    index = "model.safetensors.index.json"
    theirs, ours = (json.loads((folder / index).read_text()) for folder in (sft_bfloat16, out))
    assert ours["weight_map"] == theirs["weight_map"]
    # Twice the bytes per parameter.
    assert ours["metadata"]["total_size"] == 2 * theirs["metadata"]["total_size"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    expected = read_weights(policy)
    for name, tensor in read_weights(out).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(dense_logits(out), dense_logits(policy), rtol=1e-5, atol=1e-5)


def test_the_lost_share_of_a_bfloat16_merge_is_measured(sft_bfloat16, helpful, copy_of, edit_config, tmp_path):
    policy = edit_config(copy_of(helpful), base_model_name_or_path=str(sft_bfloat16))
    spec = MergeSpec("linear", (1,), alpha=0.01)
    out = merge_policies(sft_bfloat16, [policy], spec, save="dense", output_dir=tmp_path / "out")
    base, got = read_weights(sft_bfloat16), read_weights(out)
    wanted, kept = [], []
    for name, residual in lora_residual(load_adapter(helpful)).items():
        wanted.append((residual * 0.01).flatten().double())
        kept.append((got[name].double() - base[name].double()).flatten())
    wanted, kept = torch.cat(wanted), torch.cat(kept)
    lost = record_of(out)["lost_residual"]
    # A residual this small against bfloat16 weights must lose a visible part, or the case tests nothing.
    assert 0.1 < lost["unchanged"] < 0.9
    assert lost["relative_l2"] == pytest.approx((torch.norm(kept - wanted) / torch.norm(wanted)).item(), rel=1e-6)
    assert lost["unchanged"] == ((kept == 0) & (wanted != 0)).sum().item() / (wanted != 0).sum().item()


def test_a_float32_merge_loses_next_to_nothing(sft, helpful, tmp_path):
    out = merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    lost = record_of(out)["lost_residual"]
    assert lost["relative_l2"] < 1e-6
    assert lost["unchanged"] == 0.0


def test_the_zero_point_is_the_sft_model(sft, helpful, harmless, tmp_path):
    spec = MergeSpec("linear", (0, 0))
    out = merge_policies(sft, [helpful, harmless], spec, save="dense", output_dir=tmp_path / "out")
    base = read_weights(sft)
    assert all(torch.equal(tensor, base[name]) for name, tensor in read_weights(out).items())
    assert record_of(out)["lost_residual"] == {"relative_l2": 0.0, "unchanged": 0.0}


def test_tied_weights_stay_tied(tmp_path, save_adapter, dense_logits, peft_logits):
    sft = tmp_path / "gpt2"
    tiny.gpt2().save_pretrained(sft)
    policy = save_adapter(sft, tmp_path / "policy", seed=1, target_modules=["c_attn", "c_proj"])
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    assert "lm_head.weight" not in read_weights(out)
    assert read_weights(out).keys() == read_weights(sft).keys()
    torch.testing.assert_close(dense_logits(out), peft_logits(sft, policy), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_the_trunk_alone_is_merged(tmp_path, save_adapter):
    """GPT-2 on the Hub stores `h.0...` where the model says `transformer.h.0...`."""
    full, trunk = tmp_path / "full", tmp_path / "trunk"
    model = tiny.gpt2()
    model.save_pretrained(full)
    model.transformer.save_pretrained(trunk)
    results = []
    for sft in (full, trunk):
        policy = save_adapter(sft, tmp_path / f"policy_{sft.name}", seed=1, target_modules=["c_attn"])
        out = merge_policies(
            sft, [policy], MergeSpec("linear", (1,), 1.0, 1.0), save="dense", output_dir=tmp_path / f"out_{sft.name}"
        )
        results.append({name.removeprefix("transformer."): t for name, t in read_weights(out).items()})
    assert "h.1.attn.c_attn.weight" in results[1]
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, "has nothing for 'lm_head.weight'"),
        (lambda t: t | {"extra.weight": torch.ones(1)}, r"has shape \(1,\) for 'extra.weight', but .* has nothing"),
        (lambda t: t | {"model.norm.weight": torch.ones(17)}, r"has shape \(17,\) for 'model.norm.weight'"),
        (
            lambda t: t | {"model.norm.weight": torch.full((16,), float("nan"))},
            "'model.norm.weight' of .* has values that are",
        ),
        (lambda t: t | {"model.norm.weight": torch.ones(16, dtype=torch.int8)}, "'model.norm.weight' has dtype int8"),
    ],
)
def test_dense_policies_that_do_not_fit_are_refused(sft, dense_policy, tmp_path, change, message):
    policy = change_weights(dense_policy("a", seed=1), change)
    with pytest.raises(ValueError, match=message):
        merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_integer_buffers_must_agree_and_are_copied(sft, copy_of, tmp_path):
    def with_buffer(values):
        return lambda tensors: tensors | {"model.layers.0.steps": torch.tensor(values)}

    base = change_weights(copy_of(sft, "base"), with_buffer([1, 2]))
    same = change_weights(copy_of(sft, "same"), with_buffer([1, 2]))
    other = change_weights(copy_of(sft, "other"), with_buffer([1, 3]))
    spec = MergeSpec("linear", (1,))
    out = merge_policies(base, [same], spec, save="dense", output_dir=tmp_path / "out", dtype="bfloat16")
    assert read_weights(out)["model.layers.0.steps"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"'model.layers.0.steps' holds integers that differ"):
        merge_policies(base, [other], spec, save="dense", output_dir=tmp_path / "bad")


def test_values_beyond_the_output_dtype_are_refused(sft, dense_policy, tmp_path):
    policy = dense_policy("a", seed=1, size=1.0)
    spec = MergeSpec("linear", (1,), alpha=1e6)
    with pytest.raises(ValueError, match="are not finite in float16; check alpha, beta and weights, or choose --dtype"):
        merge_policies(sft, [policy], spec, save="dense", output_dir=tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_added_to_quantised_weights(sft, helpful, copy_of, edit_config, tmp_path):
    quantised = change_weights(
        copy_of(sft, "quantised"), lambda t: t | {name: t[name].to(torch.int8) for name in t if "q_proj" in name}
    )
    policy = edit_config(copy_of(helpful), base_model_name_or_path=str(quantised))
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj.weight' has dtype int8 in .*quantised'"):
        merge_policies(quantised, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    says_so = copy_of(sft, "says_so")
    config = json.loads((says_so / "config.json").read_text())
    (says_so / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    policy = edit_config(copy_of(helpful, "other"), base_model_name_or_path=str(says_so))
    with pytest.raises(ValueError, match="is quantised"):
        merge_policies(says_so, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # An adapter stays apart from the weights, whatever they are.
    merge_policies(says_so, [policy], MergeSpec("linear", (1,)), save="adapter", output_dir=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), None, r"'lm_head.weight' of '.*copy' has values that are not finite"),
        (1e6, "float16", r"merged values of 'lm_head.weight' are not finite in float16"),
    ],
)
def test_what_no_policy_changes_is_checked_too(sft, helpful, copy_of, edit_config, tmp_path, value, dtype, message):
    spoilt = change_weights(
        copy_of(sft), lambda t: t | {"lm_head.weight": t["lm_head.weight"].index_fill(0, torch.tensor([3]), value)}
    )
    policy = edit_config(copy_of(helpful, "policy"), base_model_name_or_path=str(spoilt))
    with pytest.raises(ValueError, match=message):
        merge_policies(
            spoilt, [policy], MergeSpec("linear", (1,)), save="dense", dtype=dtype, output_dir=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", ["linear", "dare", "ties", "widen"])
def test_a_tied_head_that_is_stored_twice_stays_tied(sft, dense_policy, copy_of, tmp_path, rule):
    """Older files hold the embedding under both names; it counts once."""

    def once(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}

    def twice(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    results, sources = [], [sft, dense_policy("a", seed=1), dense_policy("b", seed=2)]
    for change, change_policy in ((once, once), (twice, twice), (twice, once), (once, twice)):
        models = []
        for number, source in enumerate(sources):
            model = change_weights(
                copy_of(source, f"{change.__name__}{change_policy.__name__}{number}"),
                change_policy if number else change,
            )
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
            models.append(model)
        output = tmp_path / f"out_{change.__name__}_{change_policy.__name__}"
        spec = MergeSpec(rule, (0.5, 0.5), 0.5, 1.0)
        merge_policies(models[0], models[1:], spec, save="dense", output_dir=output)
        tensors = read_weights(output)
        assert ("lm_head.weight" in tensors) == (change is twice)
        if change is twice:
            assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        results.append(once(tensors))
    for other in results[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in results[0].items())


@pytest.mark.parametrize("index", ["{}", '{"weight_map": 5}', '{"weight_map": {"lm_head.weight": 1}}'])
def test_an_index_without_its_map_is_named(sft_bfloat16, copy_of, index):
    broken = copy_of(sft_bfloat16)
    (broken / "model.safetensors.index.json").write_text(index)
    with (
        Checkpoint(broken) as checkpoint,
        pytest.raises(ValueError, match="has no weight_map from tensor names to files"),
    ):
        checkpoint.entries  # noqa: B018 (read for what it raises)


def test_values_that_float32_does_not_hold_are_not_sent_to_float32(sft, dense_policy, tmp_path):
    policy = dense_policy("a", seed=1, size=1.0)
    with pytest.raises(ValueError, match=r"are not finite in float32; check alpha, beta and weights$"):
        merge_policies(sft, [policy], MergeSpec("linear", (3e38,), 9.0), save="dense", output_dir=tmp_path / "out")


def test_an_adapter_on_a_tied_head_stays_an_adapter(sft, copy_of, save_adapter, edit_config, tmp_path):
    policy = save_adapter(sft, tmp_path / "policy", seed=1, target_modules=["q_proj", "lm_head"])
    tied = change_weights(
        copy_of(sft, "tied"), lambda t: t | {"model.embed_tokens.weight": t["lm_head.weight"].clone()}
    )
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    edit_config(policy, base_model_name_or_path=str(tied))
    spec = MergeSpec("linear", (1,))
    with pytest.raises(ValueError, match=r"'lm_head.weight', which .* ties to .*; use --save adapter"):
        merge_policies(tied, [policy], spec, save="dense", output_dir=tmp_path / "out")
    assert (
        merge_policies(tied, [policy], spec, save="adapter", output_dir=tmp_path / "out") / "merge_spec.json"
    ).exists()
