"""Second moments from the checkpoint of a real Trainer, by the name of every parameter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec, merge_residuals
from rlhf_lines.merge.inputs.optimizer_state import OptimizerState
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.opened import open_merge
from rlhf_lines.train.layerwise import layer_factors, split_by_depth
from tests import tiny
from tests.merge.rules.every_rule import inputs_of, stored


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An SFT model, and two policies that a Trainer made of it in a few steps of AdamW, with their moments by name."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    root = tmp_path_factory.mktemp("trained")
    tiny.llama(vocab_size=32, num_hidden_layers=2, attention_bias=True).save_pretrained(root / "sft")
    folders, moments = [], []
    for seed, steps in ((0, 2), (1, 3)):
        model = AutoModelForCausalLM.from_pretrained(root / "sft")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(32, (12, 6), generator=generator).tolist()
        arguments = TrainingArguments(
            str(root / f"run{seed}"),
            max_steps=steps,
            save_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            weight_decay=0.1,
            adam_beta2=0.9,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
        )
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
        trainer.train()
        folders.append(root / f"run{seed}" / f"checkpoint-{steps}")
        state = (
            trainer.optimizer.optimizer.state if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer.state
        )
        # v_hat, as Adam has it in its step.
        moments.append(
            {
                name: state[parameter]["exp_avg_sq"].double() / (1 - 0.9**steps)
                for name, parameter in model.named_parameters()
            }
        )
    return root / "sft", folders, moments


def test_every_parameter_has_its_own_moments(trained):
    _, folders, moments = trained
    for folder, expected in zip(folders, moments, strict=True):
        state = OptimizerState(folder)
        assert state.shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
        for name, tensor in expected.items():
            torch.testing.assert_close(
                state.read(name, 0, tensor.numel()).double(), tensor.flatten(), rtol=1e-6, atol=0
            )
            assert torch.equal(state.read(name, 3, 7), state.read(name, 0, tensor.numel())[3:7])


def test_names_are_those_of_the_sft_model(trained, tmp_path):
    sft, folders, moments = trained
    renamed = Path(shutil.copytree(sft, tmp_path / "trunk"))
    whole = load_file(sft / "model.safetensors")
    names = {name: name.removeprefix("model.") for name in whole}  # as a trunk is saved
    save_file({names[name]: tensor for name, tensor in whole.items()}, renamed / "model.safetensors")
    merge = Merge(renamed, folders, MergeSpec("ota", (0.7, 0.3)), "dense", statistics=folders)
    with open_merge(merge) as opened:
        assert not any("statistics cover" in warning for warning in opened.warnings)
        state = OptimizerState(folders[0], opened.sft)
    assert state.shapes.keys() == set(names.values())
    for name, own in names.items():
        expected = moments[0][name].flatten()
        torch.testing.assert_close(state.read(own, 0, len(expected)).double(), expected, rtol=1e-6, atol=0)


def test_a_merge_by_the_command_has_the_moments_of_the_checkpoints(trained, tmp_path):
    sft, folders, moments = trained
    flags = ["--sft_model", str(sft), "--policies", *map(str, folders), "--weights", "0.7", "0.3", "--save", "dense"]
    flags += ["--rule", "ota", "--rule_options", '{"density": 0.5}', "--statistics", *map(str, folders)]
    assert cli.main(["merge", *flags, "--output_dir", str(tmp_path / "out"), "--plan"]) == 0
    assert cli.main(["merge", *flags, "--output_dir", str(tmp_path / "out")]) == 0
    given = inputs_of(sft, folders)
    merged = merge_residuals(given.residuals, "ota", weights=[0.7, 0.3], statistics=moments, density=0.5)
    for name, tensor in stored(tmp_path / "out").items():
        torch.testing.assert_close(tensor.double(), given.theta[name] + merged[name], rtol=1e-5, atol=1e-6, msg=name)
    record = json.loads((tmp_path / "out" / "merge_spec.json").read_text())
    assert not record["warnings"] or not any("statistics cover" in warning for warning in record["warnings"])
    again = ["--config", str(tmp_path / "out" / "merge_spec.json"), "--output_dir", str(tmp_path / "again")]
    assert cli.main(["merge", *again]) == 0


def refusal(capsys, sft: Path, policies, statistics, out: Path) -> str:
    flags = ["--sft_model", sft, "--policies", *policies, "--statistics", *statistics, "--output_dir", out]
    assert cli.main(["merge", *map(str, flags), "--rule", "ota", "--save", "dense"]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def state_by_depth(folder: Path) -> dict:
    """The state of an optimiser of a model's parameters whose layers have learning rates of their own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    split_by_depth(optimizer, model, layer_factors("linear", 2))
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer.state_dict()


def test_what_is_no_such_state_is_refused(trained, tmp_path, capsys):
    sft, (first, second), _ = trained
    out = tmp_path / "out"
    assert "give the folders in the order of the policies" in refusal(
        capsys, sft, (first, second), (second, first), out
    )
    assert "has no fisher.safetensors; expected the folder that `rlhf-lines fisher` makes, or a Trainer's" in refusal(
        capsys, sft, (first, second), (sft, second), out
    )
    content = torch.load(first / "optimizer.pt", weights_only=True)
    broken = {
        "after layer_learning_rates or frozen_layers it is not told whose each tensor": state_by_depth(first),
        "is of 1 parameters, the model beside it has": {
            **content,
            "param_groups": [{"params": [0], "betas": (0, 0.9)}],
        },
        "in the place of": {
            **content,
            "param_groups": [{"params": [key for g in content["param_groups"] for key in g["params"]][::-1]}],
        },
        "has no exp_avg_sq, which Adam and AdamW keep": {**content, "state": {}},
        "is no optimiser's state as a Trainer writes it": {"state": {}},
    }
    for number, (message, state) in enumerate(broken.items()):
        copy = Path(shutil.copytree(first, tmp_path / str(number)))
        torch.save(state, copy / "optimizer.pt")
        assert message in refusal(capsys, sft, (first, second), (copy, second), out)
    (copy / "optimizer.pt").write_bytes(b"no state")
    assert "is no optimiser's state" in refusal(capsys, sft, (first, second), (copy, second), out)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(first / "optimizer.pt", adapter)
    said = refusal(capsys, sft, (first, second), (adapter, second), out)
    assert "lies beside no whole model" in said and "use `rlhf-lines fisher`" in said
