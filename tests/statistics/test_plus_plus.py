"""Gram matrices for RegMean++: every layer's inputs, where the layers before it are those of the finished merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.merge import merge_residuals
from rlhf_lines.statistics import read_gram
from tests.statistics.oracle import CHARACTERS, PROMPTS, made, policy_model


LLAMA = ("./sft", ("./lora", "./second"))
GPT2 = ("./gpt2", ("./lora_gpt2", "./second"))  # whose weights are stored [in, out], square ones among them
SEQUENCES = [[3 + CHARACTERS.index(character) for character in text] for text in PROMPTS]


@pytest.fixture
def make_plus_plus(folder, flags, save_adapter):
    """A function from models to the record of Gram matrices of the policies in `./pp/1` and `./pp/2`, on prompts."""

    def make(models, **changes) -> dict:
        sft, (policy, second) = models
        modules = ["q_proj", "o_proj", "up_proj"] if models == LLAMA else ["c_attn", "c_proj"]
        conv1d = models == GPT2
        save_adapter(Path(sft), Path(second), r=2, target_modules=modules, fan_in_fan_out=conv1d)
        given = {"sft_model": sft, "policy": policy, "merged_with": second, "inputs": "prompts", "output_dir": "./pp"}
        given = {**given, "batch_size": 3, **changes}
        return made("gram", flags(**given), given["output_dir"])

    return make


@pytest.fixture
def plus_plus(make_plus_plus):
    """The record of those of a Llama."""
    return make_plus_plus(LLAMA)


def merge(*flags: str, models=LLAMA) -> int:
    settings = ["--sft_model", models[0], "--policies", *models[1], "--rule", "regmean", "--save", "dense"]
    return cli.main(["merge", *settings, "--dtype", "float32", *flags])


PLUS = ("--rule_options", '{"plus_plus": true}', "--statistics", "./pp/1", "./pp/2")


@pytest.mark.parametrize("models", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_layer_reads_what_the_merged_layers_before_it_give(make_plus_plus, models):
    """The finished merge, in float64 and with one layer of a policy put in, is hooked and run, text by text."""
    plus_plus = make_plus_plus(models)
    assert merge(*PLUS, "--output_dir", "merged", models=models) == 0
    sft, policies = models
    merged = policy_model(sft, "./merged").requires_grad_(False)
    theta = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    plain = policy_model(sft, policies[0]).state_dict()
    assert any((theta[name] - plain[name]).abs().max() > 1e-3 for name in theta)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")
    names = [name for name in theta if name.endswith(tuple(f"{part}.weight" for part in parts))]
    assert len(names) == plus_plus["layers"]
    for number, policy in enumerate(policies, start=1):
        own = policy_model(sft, policy).state_dict()
        for layer in range(3 if models == LLAMA else 2):
            here = [name for name in names if f".{layer}." in name]
            merged.load_state_dict(theta | {name: own[name] for name in own if f".{layer}." in name})
            inputs = {name: [] for name in here}
            hooks = [
                merged.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                    lambda module, args, name=name, inputs=inputs: inputs[name].append(args[0][0])
                )
                for name in here
            ]
            for ids in SEQUENCES:
                merged(input_ids=torch.tensor([ids]))
            for hook in hooks:
                hook.remove()
            for name in here:
                rows = torch.cat(inputs[name])
                expected = rows.T @ rows / len(rows)
                found = read_gram(f"pp/{number}/gram.safetensors", name).double()
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.max().item(), msg=name)
    assert plus_plus["sequences"] == 2 * len(PROMPTS) and plus_plus["policies"] == list(policies)


def test_the_first_layer_is_that_of_regmean_and_the_last_is_not(plus_plus, flags):
    made("gram", flags(inputs="prompts", output_dir="./own"), "./own")
    for layer, same in ((0, True), (2, False)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        found, own = read_gram("pp/1/gram.safetensors", name), read_gram("own/gram.safetensors", name)
        assert torch.allclose(found, own, rtol=0, atol=1e-6 * own.max().item()) == same


def test_less_memory_takes_more_passes_and_gives_the_same(plus_plus, make_plus_plus):
    # 16 inputs (q, k and v; o; up) take 8 * 16^2 = 2,048 bytes, and 24 (down) 4,608.
    less = make_plus_plus(LLAMA, max_memory="5KB", output_dir="./less")
    assert (plus_plus["passes"], less["passes"]) == (3, 3 * 3)  # of q and o, of up, and of down, in three layers
    for number in ("1", "2"):
        file = Path(number, "gram.safetensors")
        assert Path("less", file).read_bytes() == Path("pp", file).read_bytes()


@pytest.mark.parametrize(("models", "reduce"), [(LLAMA, 0.1), (LLAMA, 0.95), (GPT2, 0.1)])
def test_a_merge_by_them_is_regmean_with_them(make_plus_plus, models, reduce):
    make_plus_plus(models, reduce=reduce)
    options = json.dumps({"plus_plus": True, "reduce": reduce})
    arguments = ["--rule_options", options, *PLUS[2:], "--weights", "0.7", "0.3", "--output_dir", "merged"]
    assert merge(*arguments, models=models) == 0
    sft, policies = models
    base = {name: tensor.double() for name, tensor in load_file(f"{sft}/model.safetensors").items()}
    residuals, grams = [], []
    for policy in policies:
        theta = policy_model(sft, policy).state_dict()
        tau = {name: (theta[name] - base[name]).detach() for name in base}
        residuals.append({name: tensor for name, tensor in tau.items() if tensor.abs().max() > 1e-12})
    changed = sorted({name for tau in residuals for name in tau})
    for number in (1, 2):
        grams.append({name: read_gram(f"pp/{number}/gram.safetensors", name).double() for name in changed})
    stored = changed if models == GPT2 else ()
    settings = {"statistics": grams, "transposed": stored, "reduce": reduce}
    merged = merge_residuals(residuals, "regmean", weights=[0.7, 0.3], **settings)
    for name, tensor in load_file("merged/model.safetensors").items():
        torch.testing.assert_close(tensor.double(), base[name] + merged.get(name, 0), rtol=1e-5, atol=1e-5, msg=name)


def test_what_does_not_go_together_is_refused(plus_plus, flags, folder, capsys):
    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert merge(*arguments, "--output_dir", "out") == 2 and not Path("out").exists()
        return capsys.readouterr().err

    assert "are those of RegMean++; give the option plus_plus" in refusal("--statistics", "./pp/1", "./pp/2")
    wrong = '{"plus_plus": true, "reduce": 0.5}'
    assert "were made with 0.1; give that" in refusal("--rule_options", wrong, *PLUS[2:])
    made("gram", flags(inputs="prompts", output_dir="./own"), "./own")
    assert "the Gram matrices of policy 1 are those of RegMean; make them with" in refusal(*PLUS[:3], "./own", "./pp/2")
    assert "give the folders in the order of the policies" in refusal(*PLUS[:3], "./pp/2", "./pp/1")
    for changes, words in (
        ({"reduce": 0.5}, "which only Gram matrices for RegMean++ have; give merged_with"),
        ({"merged_with": "./lora", "max_memory": "4KB"}, "what is summed up for 'model.layers.0.mlp.down_proj.weight'"),
        ({"merged_with": "./lora", "reduce": 2}, "reduce is 2.0, expected a number between 0 and 1"),
        ({"merged_with": "./lora", "parameters": "all"}, "but with merged_with they are those that any policy changes"),
    ):
        capsys.readouterr()
        assert cli.main(["gram", *flags(inputs="prompts", output_dir="./never", **changes)]) == 2
        assert words in capsys.readouterr().err and not Path("never").exists()
