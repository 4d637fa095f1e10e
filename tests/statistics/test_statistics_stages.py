"""The verbs ``fisher`` and ``gram``: what they refuse, what they leave behind, what they record."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rlhf_lines import cli
from rlhf_lines.merge import checkpoint_sha256
from rlhf_lines.statistics.config import FisherConfig
from tests.statistics.oracle import made
from tests.torchrun import torchrun


VERBS = ("fisher", "gram")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(capsys, folder: Path, arguments: list[str]) -> str:
    """See that the command refuses with one sentence and writes nothing, and return the sentence."""
    capsys.readouterr()
    before = everything(folder)
    assert cli.main(arguments) == 2
    *told, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"rlhf-lines {arguments[0]}: ")
    assert not any(line.startswith(("rlhf-lines", "Traceback")) for line in told)
    assert everything(folder) == before
    return sentence


class OnGpu(torch.Tensor):
    """A tensor that numpy cannot see, nor can one that is computed from it, until it is copied to the CPU."""

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(
    ("verb", "changes"),
    [("fisher", {}), ("gram", {}), ("gram", {"policy": "./dense", "merged_with": "./lora"})],
    ids=["fisher", "gram", "gram for RegMean++"],
)
def test_what_is_summed_up_on_a_gpu_is_written(folder, flags, monkeypatch, verb, changes):
    """No GPU is here: the tensors in which a stage sums behave as one's, and the file is that of plain tensors."""
    made(verb, flags(output_dir="./plain", **changes), "./plain")
    for name in ("zeros", "zeros_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, make=make, **kwargs: make(*args, **kwargs).as_subclass(OnGpu))
    made(verb, flags(output_dir="./on_gpu", **changes), "./on_gpu")
    files = [str(path.relative_to("plain")) for path in Path("plain").rglob("*.safetensors")]
    assert files
    for file in files:
        assert Path("on_gpu", file).read_bytes() == Path("plain", file).read_bytes()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft_model": "./nowhere"}, ["SFT model ./nowhere does not exist"]),
        ({"policy": "./nowhere"}, ["policy ./nowhere does not exist"]),
        ({"policy": "./stranger"}, ["residuals add up only on one base", "stranger"]),
        ({"policy": "./gpt2"}, ["gpt2", "residuals need equal names and shapes"]),
        ({"policy": "./prompts"}, ["prompts", "has neither model.safetensors nor"]),
        ({"dataset_name": "./gone.jsonl"}, ["dataset file ./gone.jsonl does not exist"]),
        ({"max_prompt_length": 1}, ["prompts are longer than 1 tokens"]),
        ({"split": "trian"}, ["unknown split 'trian'", "did you mean 'train'?"]),
        ({"num_prompts": 0}, ["num_prompts is 0, expected at least 1"]),
        ({"max_new_tokens": 0, "batch_size": -1}, ["max_new_tokens is 0", "batch_size is -1"]),
        ({"max_new_tokens": 30}, ["longest prompt has 15 tokens and max_new_tokens is 30", "40 positions"]),
        ({"max_memory": "much"}, ["max_memory 'much' is not a size"]),
        ({"max_memory": "1KB"}, ["max_memory is 1,000 bytes, but what is summed up for", "give more"]),
        ({"parameters": "some"}, ["unknown parameters 'some'; known: adapted, all"]),
        ({"dtype": "int8"}, ["dtype is 'int8', expected float32 or bfloat16"]),
        ({"output_dir": "./lora"}, ["output_dir lora exists: choose another folder, or add --overwrite"]),
        ({"policies": "./lora"}, ["unknown flag '--policies'"]),
    ],
    ids=lambda value: "-".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_sentence(folder, flags, capsys, verb, changes, words):
    sentence = refused(capsys, folder, [verb, *flags(**changes)])
    assert all(word in sentence for word in words), sentence


def test_mistakes_of_one_verb(folder, flags, capsys):
    assert "unknown inputs 'prompt'" in refused(capsys, folder, ["gram", *flags(inputs="prompt")])
    assert "unknown flag '--inputs'" in refused(capsys, folder, ["fisher", *flags(inputs="prompts")])
    assert "dtype is 'float16', expected" in refused(capsys, folder, ["fisher", *flags(dtype="float16")])


def test_several_processes_are_refused(folder, flags):
    before = everything(folder)
    done = torchrun(["-m", "rlhf_lines.cli", "fisher", *flags()], cwd=folder)
    sentence = "rlhf-lines fisher: fisher runs in one process, but 2 were started: leave out the launcher"
    assert done.returncode != 0
    assert done.stderr.splitlines().count(sentence) == 1, done.stderr
    assert everything(folder) == before


def test_a_quantised_model_is_refused(folder, flags, capsys):
    shutil.copytree("sft", "small")
    config = json.loads(Path("small/config.json").read_text())
    Path("small/config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_8bit": True}}))
    sentence = refused(capsys, folder, ["gram", *flags(sft_model="./small", policy="./dense")])
    assert "'small' is quantised" in sentence


def test_an_adapter_on_a_tied_weight_is_refused(folder, flags, capsys):
    """Where the file holds the head beside the embedding, s B A of the head would change the embedding too."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    shutil.copytree("tied", "both")
    tensors = load_file("both/model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file({**tensors, **head}, "both/model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM", ensure_weight_tying=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("./both"), config)
    model.save_pretrained("head", save_embedding_layers=False)
    sentence = refused(capsys, folder, ["fisher", *flags(sft_model="./both", policy="./head")])
    assert "'head' changes 'lm_head.weight', which the SFT model also uses in another place" in sentence


@pytest.mark.parametrize("verb", VERBS)
def test_what_exists_is_kept_or_replaced_as_asked(folder, flags, capsys, verb):
    first = made(verb, flags())
    before = everything(folder / "out")
    assert "exists" in refused(capsys, folder, [verb, *flags(seed=1)])
    assert "was made without seed, now it is 1" in refused(capsys, folder, [verb, *flags(seed=1), "--resume"])
    assert made(verb, [*flags(), "--resume"]) == first and everything(folder / "out") == before
    path = Path("lora/adapter_config.json")
    config = path.read_text()
    path.write_text(json.dumps({**json.loads(config), "lora_alpha": 160}))
    changed = refused(capsys, folder, [verb, *flags(), "--resume"])
    assert "policy lora has changed since out was made (adapter_config.json)" in changed
    path.write_text(config)
    assert made(verb, [*flags(seed=1), "--overwrite"])["samples_sha256"] != first["samples_sha256"]
    shutil.copytree("lora", "mine")
    sentence = refused(capsys, folder, [verb, *flags(policy="./mine", output_dir="./mine"), "--overwrite"])
    assert "output_dir mine contains mine, which --overwrite would delete" in sentence


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_run_that_fails_leaves_nothing(folder, flags, monkeypatch, verb, error):
    from rlhf_lines.merge.tensors.tensor_file import NewTensorFile

    written, write = [], NewTensorFile.write

    def fail(self, name, start, tensor):
        if len(written) == 3:
            raise error
        written.append(name)
        write(self, name, start, tensor)

    monkeypatch.setattr(NewTensorFile, "write", fail)
    before = everything(folder)
    assert cli.main([verb, *flags()]) == (1 if isinstance(error, OSError) else 130)
    assert len(written) == 3 and everything(folder) == before


def test_a_run_that_is_killed_has_no_folder_under_its_name(folder, flags):
    script = (
        "import os, signal, sys\n"
        "from rlhf_lines import cli\n"
        "from rlhf_lines.merge.tensors.tensor_file import NewTensorFile\n"
        "write = NewTensorFile.write\n"
        "def killed(self, name, start, tensor):\n"
        "    write(self, name, start, tensor)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "NewTensorFile.write = killed\n"
        "cli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "fisher", *flags()]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (folder / "out").exists()
    made("fisher", flags())  # and what it left is in nobody's way
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_record_says_what_the_statistics_are_of(folder, flags, verb, capsys):
    settings = flags(split="train", num_prompts=5)
    made(verb, settings)
    record = json.loads((folder / "out" / "rlhf_lines.json").read_text())
    assert "5 sequences" in capsys.readouterr().out
    weights = (folder / "lora" / "adapter_model.safetensors").read_bytes()
    assert record["stage"] == verb and record["sequences"] == 5 and record["seed"] == 0
    assert record["policy_sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["sft_sha256"] == checkpoint_sha256("sft")
    assert record["prompt_tokens"] == sum(map(len, ["ab", "the cat", "a dog", "it is", "zebra crossing"]))
    assert record["lost_residual"] is None and record["dtype"] == "float32"
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "config.yaml", f"{verb}.safetensors", "rlhf_lines.json",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_config_file_is_overridden_by_flags_and_repeats_the_run(folder, flags, verb):
    config = {
        "sft_model": "./sft",
        "policy": "./lora",
        "dataset_name": "./prompts",
        "output_dir": "./never",
        "max_new_tokens": 12,
        "max_memory": 100_000,
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    made(verb, ["--config", "c.yaml", "--output_dir", "./out"])
    made(verb, ["--config", "out/config.yaml", "--output_dir", "./again"], "./again")
    file = f"{verb}.safetensors"
    assert (folder / "out" / file).read_bytes() == (folder / "again" / file).read_bytes()
    assert not Path("never").exists()


def test_the_package_imports_no_trainer():
    script = "import sys; from rlhf_lines.statistics import read_gram, fisher, gram; sys.exit('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_without_a_tokenizer_is_one_sentence(folder, flags, capsys, verb):
    shutil.copytree("sft", "bare")
    for path in Path("bare").glob("*token*"):
        path.unlink()
    sentence = refused(capsys, folder, [verb, *flags(sft_model="./bare", policy="./dense")])
    assert "'bare' holds no tokenizer" in sentence and "tokenizer.save_pretrained(folder)" in sentence


@pytest.mark.parametrize("key", ["dtype", "split", "num_prompts"])
def test_an_empty_value_is_told_once(key):
    with pytest.raises(ValueError, match=rf"^{key} is empty, expected a value$"):
        FisherConfig(**{"sft_model": "sft", "policy": "policy", "output_dir": "out", key: None})
