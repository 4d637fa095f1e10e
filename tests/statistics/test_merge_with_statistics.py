"""Merges by the rules `fisher` and `regmean` with the folders that their verbs made, of real policies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.merge import apply_lines, merge_residuals
from rlhf_lines.merge.rules import RULES
from tests.statistics.oracle import made, policy_model


VERBS = {rule: entry.statistics.verb for rule, entry in RULES.items() if entry.statistics}
WEIGHTS = (0.7, 0.3)


@pytest.fixture
def two_policies(folder, flags, save_adapter):
    """A function from a rule to its statistics' folders, in a folder with `./lora` and `./second` of another rank."""

    def make(rule: str) -> list[str]:
        save_adapter(Path("sft"), Path("second"), r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        for policy in ("lora", "second"):
            made(VERBS[rule], flags(policy=f"./{policy}", output_dir=f"./of_{policy}", seed=1), f"./of_{policy}")
        return ["./of_lora", "./of_second"]

    return make


def merge(rule: str, statistics: list[str], out: str, *flags: str, policies=("./lora", "./second")) -> int:
    settings = ["--sft_model", "./sft", "--policies", *policies, "--weights", *map(str, WEIGHTS), "--rule", rule]
    given = ["--statistics", *statistics] if statistics else []
    return cli.main(["merge", *settings, *given, "--alpha", "0.5", "--beta", "1", "--output_dir", out, *flags])


def residual_of(policy: str) -> dict[str, torch.Tensor]:
    """The difference to the SFT model of the policy that PEFT merges in float64, where there is one."""
    base = {name: tensor.double() for name, tensor in load_file("sft/model.safetensors").items()}
    model = policy_model("./sft", policy).state_dict()
    residual = {name: (model[name] - theta).detach() for name, theta in base.items()}
    return {name: tensor for name, tensor in residual.items() if tensor.abs().max() > 1e-12}


def statistics_in(rule: str, folder: str) -> dict[str, torch.Tensor]:
    """By the name of every parameter, whichever linear maps share a Gram matrix."""
    from safetensors import safe_open

    (path,) = Path(folder).glob("*.safetensors")
    with safe_open(path, "pt") as file:
        shared = json.loads((file.metadata() or {}).get("same_input", "{}"))
    tensors = load_file(path)
    return {name: tensors[held].double() for name, held in (shared or {name: name for name in tensors}).items()}


@pytest.mark.parametrize("rule", VERBS)
def test_a_merge_by_the_commands_is_that_of_whole_float64_tensors(rule, two_policies):
    statistics = two_policies(rule)
    assert merge(rule, statistics, "merged", "--save", "dense") == 0
    assert merge(rule, statistics, "adapter", "--save", "adapter", "--rank", "16") == 0
    residuals = [residual_of(policy) for policy in ("./lora", "./second")]
    held = [statistics_in(rule, folder) for folder in statistics]
    merged = merge_residuals(residuals, rule, weights=WEIGHTS, statistics=held)
    plain = merge_residuals(residuals, weights=WEIGHTS)
    # The statistics must matter, or any would do.
    assert max((merged[name] - plain[name]).abs().max().item() for name in merged) > 1e-2
    expected = apply_lines(merged, 0.5, 1.0, num_layers=3)
    base = load_file("sft/model.safetensors")
    for name, tensor in load_file("merged/model.safetensors").items():
        torch.testing.assert_close(
            tensor.double(), base[name].double() + expected.get(name, 0), rtol=1e-5, atol=1e-5, msg=name
        )
    reloaded = residual_of("./adapter")
    for name, tensor in expected.items():
        torch.testing.assert_close(reloaded.get(name, torch.zeros_like(tensor)), tensor, rtol=1e-5, atol=1e-5, msg=name)
    for folder in ("merged", "adapter"):
        assert cli.main(["merge", "--config", f"{folder}/merge_spec.json", "--output_dir", "again"]) == 0
        for path in Path(folder).iterdir():
            assert (Path("again") / path.name).read_bytes() == path.read_bytes(), path
        shutil.rmtree("again")


@pytest.mark.parametrize("rule", VERBS)
def test_statistics_of_something_else_are_refused_in_one_sentence(rule, two_policies, capsys):
    statistics = two_policies(rule)

    def refusal(given: list[str], *flags: str, **changes) -> str:
        capsys.readouterr()
        assert merge(rule, given, "out", "--save", "dense", *flags, **changes) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not Path("out").exists()
        return error

    turned = refusal(statistics[::-1])
    assert "2 problems" in turned and "give the folders in the order of the policies" in turned
    assert f"needs the statistics of each policy, got 1 for 2 policies; make them with `rlhf-lines {VERBS[rule]}`" in (
        refusal(statistics[:1])
    )
    assert "got 0 for 2 policies" in refusal([])
    assert f"'lora' has no {VERBS[rule]}.safetensors" in refusal(["./lora", statistics[1]])
    assert "the statistics in 'of_second' are of a policy with weights" in refusal(
        statistics, policies=("./lora", "./dense")
    )
    path = Path("lora/adapter_config.json")
    config = path.read_text()
    path.write_text(json.dumps({**json.loads(config), "lora_alpha": 160}))
    assert "are of a policy with a config" in refusal(statistics)
    path.write_text(config)
    other = next(name for name in VERBS if VERBS[name] != VERBS[rule])
    assert f"has no {VERBS[other]}.safetensors" in refusal(statistics, "--rule", other)
    assert "rule 'ties' uses none; leave them out" in refusal(statistics, "--rule", "ties")
