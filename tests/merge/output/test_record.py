"""A merge repeats bit for bit from the record that it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec, checkpoint_sha256, merge_policies


@pytest.fixture
def project(tmp_path, sft, helpful, harmless, edit_config, monkeypatch) -> Path:
    """A folder with ``models/sft`` and two adapters of it, named by relative paths; the current one."""
    (tmp_path / "project" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    shutil.copytree(sft, "models/sft")
    for policy in (helpful, harmless):
        folder = edit_config(
            Path(shutil.copytree(policy, f"models/{policy.name}")), base_model_name_or_path="models/sft"
        )
        (folder / "rlhf_lines.json").write_text(json.dumps({"sft_sha256": checkpoint_sha256(sft)}))
    return tmp_path / "project"


def merge(save: str, output: str, **options) -> Path:
    # A weight that is written with an exponent, which a command line could not take for a number.
    spec = MergeSpec("linear", (1.0, -1e-05), 0.5, 1.0, "sqrt")
    policies = ["models/helpful", "models/harmless"]
    return merge_policies("models/sft", policies, spec, save=save, output_dir=output, **options)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize(("save", "dtype"), [("adapter", None), ("dense", None), ("dense", "bfloat16")])
def test_every_file_is_the_same_again(project, capsys, save, dtype):
    first = merge(save, "first", dtype=dtype)
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 0
    assert contents("second") == contents(first)
    out = capsys.readouterr().out
    assert out.startswith("wrote second\n") and "\nwritten in " in out


def test_options_of_a_rule_are_repeated(project):
    spec = MergeSpec("ties", (0.5, 0.5), options={"density": 0.4, "reduction": "sum"})
    policies = ["models/helpful", "models/harmless"]
    merge_policies("models/sft", policies, spec, save="dense", output_dir="first")
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 0
    assert contents("second") == contents("first")


def test_tensors_of_several_dtypes_keep_theirs(project):
    path = Path("models/sft/model.safetensors")
    tensors = {name: tensor.bfloat16() if "norm" in name else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    for policy in ("helpful", "harmless"):
        Path(f"models/{policy}/rlhf_lines.json").unlink()
    merge("dense", "first")
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 0
    assert contents("second") == contents("first")


def test_flags_override_the_record(project):
    merge("adapter", "first")
    flags = ["--config", "first/merge_spec.json", "--output_dir", "second", "--weights", "0.5", "0.5", "--beta", "0"]
    assert cli.main(["merge", *flags]) == 0
    spec = json.loads(Path("second/merge_spec.json").read_text())["spec"]
    assert (spec["weights"], spec["beta"], spec["schedule"]) == ([0.5, 0.5], 0.0, "sqrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_the_device_is_repeated_unless_a_flag_names_another(project, capsys):
    """Bits differ between devices, so a merge on a GPU must not be repeated on a CPU unasked."""
    record = json.loads((merge("dense", "first") / "merge_spec.json").read_text())
    assert record["device"] == "cpu"
    Path("first/merge_spec.json").write_text(json.dumps({**record, "device": "cuda"}))
    command = ["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]
    assert cli.main(command) == 2
    assert "device is 'cuda', but torch sees no GPU here" in capsys.readouterr().err
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert contents("second")["model.safetensors"] == contents("first")["model.safetensors"]


@pytest.mark.parametrize("hashed", [True, False])
def test_a_project_that_moved_as_a_whole_finds_its_inputs(project, tmp_path, monkeypatch, hashed):
    """Also where adapters know their SFT model by a relative name alone, as those of TRL do."""
    for policy in () if hashed else ("helpful", "harmless"):
        Path(f"models/{policy}/rlhf_lines.json").unlink()
    first = contents(merge("dense", "runs/first"))
    project.rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["merge", "--config", "renamed/runs/first/merge_spec.json", "--output_dir", "second"]) == 0
    assert contents("second")["model.safetensors"] == first["model.safetensors"]


def refusal(capsys, *flags: str) -> str:
    capsys.readouterr()
    assert cli.main(["merge", "--config", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and not Path("second").exists()
    assert err.splitlines()[-1].startswith("rlhf-lines merge: ")
    return err


def test_changed_inputs_are_refused_all_at_once(project, capsys, edit_weights):
    merge("dense", "first")
    flags = ["first/merge_spec.json", "--output_dir", "second"]
    edit_weights(Path("models/harmless"), lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    message = refusal(capsys, *flags)
    assert "policy 'models/harmless' has changed since first/merge_spec.json was written" in message
    assert "restore it, or name its copy with --policies" in message and "problems" not in message
    path = Path("models/sft/model.safetensors")
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    message = refusal(capsys, *flags)
    assert "2 problems: (1) SFT model 'models/sft' has changed" in message and "models/harmless" in message


def edit_model_config(**changes) -> None:
    path = Path("models/sft/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_policy_with_another_config_is_another_policy(project, capsys, edit_config):
    """The weight files are the same; what they mean is ten times as much."""
    first = contents(merge("dense", "first"))
    flags = ["first/merge_spec.json", "--output_dir", "second"]
    before = json.loads(Path("models/harmless/adapter_config.json").read_text())["lora_alpha"]
    edit_config(Path("models/harmless"), lora_alpha=10 * before)
    message = refusal(capsys, *flags)
    assert (
        "policy 'models/harmless' has changed since first/merge_spec.json was written: the SHA-256 of its config"
        in message
    )
    edit_config(Path("models/harmless"), lora_alpha=before, lora_dropout=0.3)  # which a merge does not see
    edit_model_config(transformers_version="5.0.0")
    assert cli.main(["merge", "--config", *flags]) == 0
    assert contents("second")["model.safetensors"] == first["model.safetensors"]
    shutil.rmtree("second")
    edit_model_config(num_hidden_layers=1)
    assert "SFT model 'models/sft' has changed since" in refusal(capsys, *flags)


def test_a_record_from_before_configs_were_hashed_is_repeated_with_a_warning(project, capsys, edit_config):
    path = merge("dense", "first") / "merge_spec.json"
    record = json.loads(path.read_text())
    del record["sft_config_sha256"]
    record["policies"] = [{key: policy[key] for key in ("path", "sha256")} for policy in record["policies"]]
    path.write_text(json.dumps(record))
    assert cli.main(["merge", "--config", str(path), "--output_dir", "second"]) == 0
    assert (
        "first/merge_spec.json was written by an earlier version, without hashes of configs" in capsys.readouterr().out
    )
    assert contents("second")["model.safetensors"] == contents("first")["model.safetensors"]
    assert "config_sha256" in json.loads(Path("second/merge_spec.json").read_text())["policies"][0]


def test_a_copy_elsewhere_is_named_by_a_flag(project, capsys):
    first = contents(merge("dense", "first"))
    Path("models/harmless").rename("models/moved")
    assert "policy ./models/harmless does not exist" in refusal(
        capsys, "first/merge_spec.json", "--output_dir", "second"
    )
    flags = ["--output_dir", "second", "--policies", "models/helpful", "models/moved"]
    assert cli.main(["merge", "--config", "first/merge_spec.json", *flags]) == 0
    assert contents("second")["model.safetensors"] == first["model.safetensors"]


def test_a_record_that_cannot_be_repeated_is_named(project, capsys):
    merge("dense", "first")
    assert "required: --output_dir" in refusal(capsys, "first/merge_spec.json")
    assert "give them all in its order" in refusal(
        capsys, "first/merge_spec.json", "--output_dir", "second", "--policies", "models/helpful", "--weights", "1"
    )
    record = json.loads(Path("first/merge_spec.json").read_text())
    Path("old.json").write_text(json.dumps({**record, "format": 0}))
    assert "merge record old.json has format 0, expected 1" in refusal(capsys, "old.json", "--output_dir", "second")
    del record["sft_sha256"]
    Path("old.json").write_text(json.dumps(record))
    assert "merge record old.json lacks sft_sha256" in refusal(capsys, "old.json", "--output_dir", "second")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"policies": 5}, "is damaged in policies"),
        ({"policies": [5]}, "is damaged in policies"),
        ({"policies": [{"path": "a", "sha256": "0", "config_sha256": 5}] * 2}, "is damaged in policies"),
        ({"sft_config_sha256": 5}, "is damaged in sft_config_sha256"),
        ({"statistics": [{"path": 5}]}, "is damaged in statistics"),
        ({"spec": {"rule": "linear", "weights": [1.0, 1.0]}}, "is damaged in spec"),
        ({"spec": [], "sft_model": 5, "versions": None}, "is damaged in spec, sft_model, versions"),
    ],
)
def test_a_damaged_record_is_named(project, capsys, damage, words):
    record = json.loads((merge("dense", "first") / "merge_spec.json").read_text())
    Path("old.json").write_text(json.dumps({**record, **damage}))
    assert f"merge record old.json {words}: give the settings by flags" in refusal(
        capsys, "old.json", "--output_dir", "second"
    )


RESUME = ["merge", "--sft_model", "models/sft", "--policies", "models/helpful", "models/harmless", "--save", "dense"]
RESUME += ["--output_dir", "out"]


def resume_refusal(capsys) -> str:
    before = contents("out")
    capsys.readouterr()
    assert cli.main([*RESUME, "--resume"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rlhf-lines merge: ") and contents("out") == before
    return err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "'out/merge_spec.json' is not JSON"),
        ("{}", "merge record out/merge_spec.json has format None, expected 1"),
    ],
)
def test_a_result_with_a_damaged_record_is_not_resumed(project, capsys, content, words):
    assert cli.main(RESUME) == 0
    Path("out/merge_spec.json").write_text(content)
    assert words in resume_refusal(capsys)


def test_a_result_of_inputs_that_have_changed_is_not_resumed(project, capsys, edit_weights, edit_config):
    assert cli.main(RESUME) == 0
    assert cli.main([*RESUME, "--resume"]) == 0
    edit_weights(Path("models/harmless"), lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    message = resume_refusal(capsys)
    assert "policy 'models/harmless' has changed since out/merge_spec.json was written" in message
    assert message.endswith("choose another folder, or replace it with --overwrite in place of --resume\n")
    assert cli.main([*RESUME, "--overwrite"]) == 0
    assert cli.main([*RESUME, "--resume"]) == 0
    edit_config(Path("models/helpful"), use_rslora=True)
    assert "policy 'models/helpful' has changed since out/merge_spec.json was written" in resume_refusal(capsys)


def test_other_versions_are_a_warning(project, capsys):
    merge("dense", "first")
    path = Path("first/merge_spec.json")
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    assert cli.main(["merge", "--config", str(path), "--output_dir", "second"]) == 0
    assert "warning: first/merge_spec.json was written with torch 1.0 (now " in capsys.readouterr().out
    again = json.loads(Path("second/merge_spec.json").read_text())
    assert again["warnings"][0].startswith("first/merge_spec.json was written with torch 1.0")
    assert contents("second")["model.safetensors"] == contents("first")["model.safetensors"]
