"""The plans of `basis` and `rebuild`: what they tell is what is written, and they refuse what the stages refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.plan import Options, plan
from rlhf_lines.plan.memory import fit_bytes
from tests import tiny


@pytest.fixture
def adapters(folder) -> list[str]:
    """Flags that name five adapters of ``sft``, which has weights; the last has a smaller rank and one module."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("sft")).save_pretrained("sft")
    names = [f"p{k}" for k in range(5)]
    for k, name in enumerate(names):
        rank, targets = (2, ["q_proj"]) if k == 4 else (4, ["q_proj", "down_proj"])
        tiny.save_adapter("sft", Path(name), seed=k, r=rank, target_modules=targets)
    return ["--sft_model", "sft", "--policies", *names]


def nbytes(path: str) -> int:
    return sum(tensor.nbytes for tensor in load_file(path).values())


@pytest.mark.parametrize("flags", [[], ["--components", "1"], ["--dtype", "float16"]], ids=" ".join)
def test_bytes_are_those_that_are_written(adapters, flags):
    planned = plan([*adapters, *flags, "--output_dir", "kept"], Options("basis"))
    assert cli.main(["basis", *adapters, *flags, "--output_dir", "kept"]) == 0
    assert planned.disk == {"basis.safetensors": nbytes("kept/basis.safetensors")}
    assert planned.read == {f"p{k}/adapter_model.safetensors": _size(f"p{k}") for k in range(5)}

    for more, rank in (([], 8), (["--rank", "3"], 3), (["--dtype", "bfloat16"], 8)):
        arguments = ["--basis", "kept", "--weights", "0.5", "0", "0.5", "0", "0", *more]
        again = plan([*arguments, "--output_dir", "again"], Options("rebuild"))
        assert cli.main(["rebuild", *arguments, "--output_dir", "again", "--overwrite"]) == 0
        assert again.disk == {"rebuilt adapter": nbytes("again/adapter_model.safetensors")}
        assert ("rank of the adapter", str(rank)) in again.work and ("policies", "p0, p2") in again.work


def test_memory_by_hand(adapters):
    parts = {phase.name: phase.parts for phase in plan([*adapters, "--output_dir", "kept"], Options("basis")).phases}
    # Two layers; q_proj is 16 to 16, down_proj 24 to 16; p = 1 of 5 policies of rank 4 keeps 1 (4 + 5) + 4 numbers.
    positions = 2 * (16 + 16 + 24 + 16)
    basis = positions * 13 * 4
    given = 4 * (4 * 4 * positions + 2 * 2 * (16 + 16))
    assert all(part["basis"] == basis and part["adapters"] == given for part in parts.values())
    assert parts["fit"]["one module"] == fit_bytes((16, 24), 5, 4, 1) == 8 * (5 * 4 * 40 + 24 * (2 * 5 * 4 + 4 * 9))
    assert parts["losses"]["one policy, rebuilt"] == positions * 4 * 8


@pytest.mark.parametrize(
    ("stage", "flags", "words"),
    [
        ("basis", ["--dtype", "int8"], "unknown dtype 'int8'"),
        ("basis", ["--components", "9"], "components is 9, but 5 policies of ranks 2 to 4"),
        ("basis", ["--policies", "p0", "p1"], "2 policies of rank 4 take fewer numbers as they are"),
        ("basis", ["--dtype", "float64"], "takes"),
        ("basis", ["--policies", "p0", "p1", "sft"], "'sft'"),
        ("rebuild", ["--weights", "1"], "1 weight for 5 policies"),
        ("rebuild", ["--weights", "0", "0", "0", "0", "0"], "all weights are 0"),
        ("rebuild", ["--rank", "0"], "rank is 0"),
        ("rebuild", ["--basis", "sft"], "sft has no basis.safetensors"),
    ],
    ids=str,
)
def test_what_the_stage_refuses_its_plan_refuses_in_the_same_words(adapters, capsys, stage, flags, words):
    given = adapters
    if stage == "rebuild":
        assert cli.main(["basis", *adapters, "--output_dir", "kept"]) == 0
        given = ["--basis", "kept", "--weights", "1", "0", "0", "0", "0"]
    capsys.readouterr()
    sentences = []
    for command in (["plan", stage], [stage]):
        assert cli.main([*command, *given, *flags, "--output_dir", "out"]) == 2
        sentences.append(capsys.readouterr().err.partition(": ")[2])
    assert words in sentences[0]
    if words != "takes":  # the header of the file is not planned
        assert sentences[0] == sentences[1]
    assert not Path("out").exists()


def test_policies_that_do_not_exist_yet_are_planned_by_the_config_that_makes_them(write_config):
    for k in range(4):
        write_config(f"ppo{k}.yaml", output_dir=f"made{k}", lora_r=8)
    policies = [f"made{k}" for k in range(4)]
    Path("basis.yaml").write_text(f"sft_model: sft\npolicies: [{', '.join(policies)}]\noutput_dir: kept\n")
    planned = plan(["--config", "basis.yaml"])
    assert planned.stage == "basis" and planned.read == {} and planned.disk["basis.safetensors"] > 0
    assert dict(planned.work)["components"] == "1, of 4 policies of rank 8"


def _size(policy: str) -> int:
    return Path(policy, "adapter_model.safetensors").stat().st_size
