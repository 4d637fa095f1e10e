"""The local engine: any specs in one call, on one base in any precision, against models merged one by one."""

from __future__ import annotations

import shutil

import pytest
import torch

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.local import LocalEngine, load_base
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.merges import Merges
from tests.sweep.by_hand import complete_by_hand, cross_entropy, kl_by_hand


PROMPTS = [(5, 9, 14, 3), (8,), (22, 30, 4, 11, 8, 19, 6), (12, 13)]
LINES = MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)
SFT = MergeSpec("linear", (0.0, 0.0))
TIES = MergeSpec("ties", (0.5, 0.5), options={"density": 0.4})
DARE = MergeSpec("dare", (0.2, 0.3, 0.5), beta=0.5, options={"drop_rate": 0.5, "seed": 3})
SLERP = MergeSpec("slerp", (0.3, 0.7), alpha=0.7)
THREE = MergeSpec("linear", (0.2, 0.3, 0.5), beta=0.5)
LAST = MergeSpec("linear", (0.0, 0.0, 0.0, 1.0))  # a MORLHF run after three policies
SPECS = [LINES, TIES, SFT, DARE, LAST, SLERP, THREE]
LENGTH, EOS = 10, 1


def engine_of(sft, folders, **settings) -> LocalEngine:
    config = SweepConfig(
        sft_model=str(sft),
        policies=list(map(str, folders)),
        rewards=["m:a", "m:b"],
        output_dir="never",
        **{"max_new_tokens": LENGTH, "seed": 3, **settings},
    )
    adapters = [load_adapter(folder) for folder in folders]
    return LocalEngine(config, Merges(sft, adapters), adapters)


def all_requests() -> list[Request]:
    """Rows of other specs beside each other, and of other rules."""
    return [
        Request(spec, ids, prompt_key(ids), number)
        for ids in PROMPTS
        for number in range(2)
        for spec in (SPECS if number else reversed(SPECS))
    ]


# --- float32 ---


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_completions_and_kl_are_those_of_the_merged_models(sft, four_policies, dense_model, temperature):
    engine, requests = engine_of(sft, four_policies, temperature=temperature), all_requests()
    got = engine.complete(requests)
    assert len({completion.token_ids for completion in got}) > (10 if temperature else 5)
    for request, completion in zip(requests, got, strict=True):
        model = dense_model(request.spec)
        settings = {"eos": EOS, "max_new_tokens": LENGTH, "temperature": temperature, "seed": 3}
        assert completion.token_ids == complete_by_hand(model, request, **settings)
        want = kl_by_hand(model, dense_model(SFT), request, completion.token_ids, temperature or 1.0)
        assert completion.kl == pytest.approx(want, abs=1e-4)
    by_spec = {spec: [c.kl for r, c in zip(requests, got, strict=True) if r.spec == spec] for spec in SPECS}
    assert all(max(map(abs, values)) > 0.1 for spec, values in by_spec.items() if spec != SFT)


def test_the_loaded_model_is_the_policy_of_the_spec_that_is_followed(sft, four_policies, dense_model):
    engine, ids = engine_of(sft, four_policies), torch.tensor([PROMPTS[0], PROMPTS[2][:4]])
    with torch.no_grad():
        for spec in (LINES, TIES, SFT, LAST):
            with engine.following(spec) as model:
                torch.testing.assert_close(model(ids).logits, dense_model(spec)(ids).logits, rtol=0, atol=1e-4)
        assert torch.equal(engine.multi_lora.model(ids).logits, dense_model(SFT)(ids).logits)


@pytest.mark.parametrize("size", [1, 5])
def test_completions_do_not_depend_on_the_calls(sft, four_policies, size):
    engine, requests = engine_of(sft, four_policies), all_requests()
    whole = engine.complete(requests)
    parts = [row for i in range(0, len(requests), size) for row in engine.complete(requests[i : i + size])]
    assert [row.token_ids for row in parts] == [row.token_ids for row in whole]
    assert [row.kl for row in parts] == pytest.approx([row.kl for row in whole], abs=1e-4)


def test_nll_is_the_cross_entropy_of_the_merged_models(sft, four_policies, dense_model):
    texts = [(5, 9, 14, 3, 22), (8, 8), (22, 30, 4, 11, 8, 19, 6, 7, 7), (12, 13, 4)]
    pairs = [(spec, text) for text in texts for spec in SPECS]
    got = engine_of(sft, four_policies).nll([spec for spec, _ in pairs], [text for _, text in pairs])
    for (spec, text), value in zip(pairs, got, strict=True):
        assert value == pytest.approx(cross_entropy(dense_model(spec), text), abs=1e-4)
    assert len({round(value, 3) for value in got}) == len(pairs)


def test_weights_that_are_missing_are_zero(sft, four_policies):
    engine = engine_of(sft, four_policies)
    filled = MergeSpec("linear", (*LINES.weights, 0.0, 0.0), LINES.alpha, LINES.beta)
    ids = PROMPTS[0]
    short, long, reversed_long, reversed_short = engine.complete(
        [Request(spec, ids, 1) for spec in (LINES, filled, filled, LINES)]
    )
    assert short.token_ids == long.token_ids == reversed_long.token_ids == reversed_short.token_ids
    assert long.kl == pytest.approx(short.kl, abs=1e-6)


def test_a_batch_that_does_not_fit_is_halved(sft, four_policies, monkeypatch):
    from rlhf_lines.sweep.engines import local

    engine, requests, original, sizes = engine_of(sft, four_policies), all_requests(), local.sample, []
    whole = engine.complete(requests)

    def small(multi_lora, part, **settings):
        sizes.append(len(part))
        if len(part) > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(multi_lora, part, **settings)

    monkeypatch.setattr(local, "sample", small)
    assert [row.token_ids for row in engine.complete(requests)] == [row.token_ids for row in whole]
    assert max(sizes) > 6 and sum(size for size in sizes if size <= 6) == len(requests)


# --- other precisions ---


def padded(prompts) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, as a batch."""
    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def last_logits(model, prompts=PROMPTS) -> torch.Tensor:
    with torch.no_grad():
        return model(**padded(prompts)).logits[:, -1].float()


def multi_lora_of(sft, folders, **settings) -> MultiLoRA:
    config = SweepConfig(
        sft_model=str(sft), policies=["a", "b"], rewards=["m:a", "m:b"], output_dir="never", **settings
    )
    return MultiLoRA(load_base(config, sft), [load_adapter(folder) for folder in folders])


def test_a_bfloat16_base_is_as_exact_as_the_sft_model_in_bfloat16(sft, four_policies, tmp_path):
    """The residual is added in float32: it brings no more error than the base has."""
    from transformers import AutoModelForCausalLM

    rounded = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.bfloat16)
    rounded.float().save_pretrained(tmp_path / "rounded")  # the weights of the base, with arithmetic in float32
    multi_lora = multi_lora_of(sft, four_policies, dtype="bfloat16")
    assert multi_lora.model.dtype == torch.bfloat16
    exact = multi_lora_of(tmp_path / "rounded", four_policies)
    error = (last_logits(multi_lora.model) - last_logits(exact.model)).abs().max()
    specs = [LINES, THREE, SFT, LAST]
    with multi_lora.rows(specs), exact.rows(specs):
        found, want = last_logits(multi_lora.model), last_logits(exact.model)
    plain = last_logits(exact.model)
    assert all((want[i] - plain[i]).abs().max() > 10 * error for i in (0, 1, 3))
    assert (found - want).abs().max() < 3 * error
    torch.testing.assert_close(found[2], last_logits(multi_lora.model)[2], rtol=0, atol=0)


@pytest.fixture(scope="module")
def larger(save_sft, save_policy, tmp_path_factory):
    """An SFT model whose sizes the CPU kernels of bitsandbytes take: multiples of 64, the block of 4-bit weights."""
    pytest.importorskip("bitsandbytes")
    root = tmp_path_factory.mktemp("larger")
    sft = save_sft(root / "sft", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    modules = ["q_proj", "v_proj", "down_proj"]
    policies = [
        save_policy(sft, root / "a", seed=1),
        save_policy(sft, root / "b", seed=2, r=3, lora_alpha=5, use_rslora=True, target_modules=modules),
    ]
    return sft, policies


def peft_of(model, folder, name="default"):
    """The base with one adapter more, loaded by PEFT."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(folder, adapter_name=name)
        return model
    return PeftModel.from_pretrained(model, folder, adapter_name=name).eval()


def quantised(larger, **settings) -> tuple:
    """Our model on a quantised base, and PEFT's on another with the same merges as adapters of their own."""
    sft, policies = larger
    config = SweepConfig(
        sft_model=str(sft), policies=["a", "b"], rewards=["m:a", "m:b"], output_dir="never", **settings
    )
    peft = peft_of(peft_of(load_base(config, sft), policies[0], "a"), policies[1], "b")
    for name, spec in SOUPS.items():
        peft.add_weighted_adapter(["a", "b"], list(spec.weights), name, combination_type="cat")
    merged = merge_policies(sft, policies, LINES, save="adapter", output_dir=sft.parent / "merged", overwrite=True)
    return multi_lora_of(sft, policies, **settings), peft_of(peft, merged, "lines")


SOUPS = {
    "soup": MergeSpec("linear", (0.3, 0.7)),
    "single": MergeSpec("linear", (1.0, 0.0)),
    "negative": MergeSpec("linear", (1.5, -0.5)),
}
MIXED = {**SOUPS, "lines": LINES}
QUANTIZED = pytest.mark.parametrize(
    ("settings", "rounding"),
    [({"load_in_8bit": True}, 1e-5), ({"load_in_4bit": True, "dtype": "bfloat16"}, 2**-4)],
    ids=["8bit", "4bit"],
)


@QUANTIZED
def test_modules_of_a_quantised_base_get_the_residual_of_their_row(larger, settings, rounding):
    """On equal inputs, where quantisation of activations cannot differ: PEFT's exact adapters, up to last bits."""
    multi_lora, peft = quantised(larger, **settings)
    weights = {name: p for name, p in multi_lora.model.named_parameters() if "q_proj" in name}
    assert {p.dtype for p in weights.values()} == {torch.int8 if "load_in_8bit" in settings else torch.uint8}
    for name in ("q_proj", "k_proj", "v_proj"):  # of both policies, of the first, of both
        for layer in (0, 1):
            path = f"model.layers.{layer}.self_attn.{name}"
            x = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(layer)).to(multi_lora.model.dtype)
            with multi_lora.rows(list(MIXED.values())), torch.no_grad():
                found = multi_lora.model.get_submodule(path)(x)
            for i, adapter in enumerate(MIXED):
                peft.set_adapter(adapter)
                with torch.no_grad():
                    want = peft.base_model.model.get_submodule(path)(x)[i]
                    plain = peft.base_model.model.get_submodule(f"{path}.base_layer")(x)[i]
                assert (want - plain).abs().max() > 0.5
                torch.testing.assert_close(found[i], want.to(found.dtype), rtol=rounding, atol=rounding)


@QUANTIZED
def test_logits_on_a_quantised_base_are_pefts(larger, settings, rounding):
    """Up to what a last bit does to activations that are quantised, here of other logits by 5 or so."""
    multi_lora, peft = quantised(larger, **settings)
    with multi_lora.rows(list(MIXED.values())):
        found = last_logits(multi_lora.model)
    plain = last_logits(multi_lora.model)
    for i, adapter in enumerate(MIXED):
        peft.set_adapter(adapter)
        want = last_logits(peft)[i]
        assert (found[i] - want).abs().max() < 0.06 * (plain[i] - want).abs().max()


@QUANTIZED
def test_a_base_that_is_stored_quantised_is_loaded_as_it_is(larger, tmp_path, settings, rounding):
    sft, policies = larger
    made, _ = quantised(larger, **settings)
    packed = shutil.copytree(sft, tmp_path / "packed")
    (packed / "model.safetensors").unlink()
    made.model.save_pretrained(packed)
    named = {"sft_model": "packed", "policies": ["a", "b"], "rewards": ["m:a", "m:b"], "output_dir": "never"}
    config = SweepConfig(**named, **{key: value for key, value in settings.items() if key == "dtype"})
    loaded = MultiLoRA(load_base(config, packed), load_policies(policies, packed, sft_renamed=True))
    for multi_lora in (made, loaded):
        weights = [p for name, p in multi_lora.model.named_parameters() if "q_proj" in name]
        assert {p.dtype for p in weights} == {torch.int8 if "load_in_8bit" in settings else torch.uint8}
    found, want = [], []
    for multi_lora, logits in ((loaded, found), (made, want)):
        with multi_lora.rows(list(MIXED.values())):
            logits.append(last_logits(multi_lora.model))
    torch.testing.assert_close(*found, *want)
    with pytest.raises(ValueError, match=r"is quantised already .* leave out load_in_8bit"):
        load_policies(policies, packed, sft_renamed=True, quantise=True)


@QUANTIZED
def test_a_quantised_base_generates_what_pefts_adapters_find_most_likely(larger, settings, rounding):
    sft, policies = larger
    requests = [Request(spec, ids, 1) for ids in PROMPTS for spec in (*MIXED.values(), SFT)]
    completions = engine_of(sft, policies, temperature=0.0, **settings).complete(requests)
    _, peft = quantised(larger, **settings)
    for request, completion in zip(requests, completions, strict=True):
        if request.spec == SFT:
            assert abs(completion.kl) < 0.3  # not 0: the policy is read while sampling, the SFT model in one pass
            continue
        peft.set_adapter(next(name for name, spec in MIXED.items() if spec == request.spec))
        with torch.no_grad():
            ids = [*request.prompt_ids, *completion.token_ids]
            logits = peft(input_ids=torch.tensor([ids])).logits[0].float()
        rows = logits[len(request.prompt_ids) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
        assert (rows.max(dim=1).values - chosen).max() < max(
            0.1, 3 * rounding
        )  # last bits may turn what is nearly equal
