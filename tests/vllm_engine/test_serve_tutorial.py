"""The tutorial "serve it", every block of it in order, on vLLM's server: two preferences, answered by two merges."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

from rlhf_lines.pareto import pick, read_front
from rlhf_lines.serve.names import mix_name
from tests import tiny
from tests.tutorial import PORT, Block, blocks, do
from tests.vllm_engine.servers import free_port, running, smollm2


POLICIES = ["dpo-relevant", "grpo-brief"]
QUESTION = "Why is the sky blue?"
GIVEN = '{"max_model_len": 256}'  # to vLLM by the tutorial
HERE = {"max_model_len": 256, "max_num_seqs": 4, "enforce_eager": True}  # which starts sooner on a CPU


@pytest.fixture(params=["tiny", "SmolLM2"])
def swept(request, tmp_path, monkeypatch, without_pictures) -> Path:
    """The current folder of a reader who has done the sweep of the tutorial before."""
    real = smollm2()  # from a path that may be relative
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if request.param == "tiny":
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
        tiny.chat_model(Path(tiny.CHAT_MODEL), std=0.25, hidden_size=32, intermediate_size=48, **heads)
    elif real is None:
        pytest.skip("SmolLM2-135M-Instruct is not there: make test-vllm fetches it")
    else:
        Path(tiny.CHAT_MODEL).symlink_to(real)
    for seed, name in enumerate(POLICIES):
        std = 0.2 if request.param == "tiny" else 0.06
        tiny.save_adapter(tiny.CHAT_MODEL, Path(name), seed=seed, std=std, target_modules=["q_proj", "v_proj"])
    defined: dict = {}
    for block in blocks("own_adapters.md"):
        do(block, defined)
        if "rlhf-lines sweep" in block.text:
            return tmp_path
    pytest.fail("own_adapters.md has no sweep")


def test_a_reader_serves_the_sweep(swept, monkeypatch, capfd):
    port, defined, curled, before = free_port(), {}, [], []
    with contextlib.ExitStack() as stack:
        for block in blocks("serve_it.md"):
            here = Block(block.language, block.text.replace(PORT, str(port)).replace(GIVEN, json.dumps(HERE)))
            if "rlhf-lines serve" in block.text:
                stack.close()  # the reader stops the server before
                before.append(mixes())
                stack.enter_context(started_by(here, port, monkeypatch))
                assert "Application startup complete" in Path("log.txt").read_text()  # what the reader waits for
            elif "curl" in block.text:
                curled += answers_of(here)
            else:
                do(here, defined)
                if "urllib" in block.text:
                    refused_without_a_mix(defined["ask"])
        unknown = status(lambda: urlopen(f"http://127.0.0.1:{port}/v1/models"))
    by_name = {answer["model"]: text_of(answer) for answer in curled if "choices" in answer}
    names = [mix_name(weights, POLICIES) for weights in ((0.75, 0.25), (0.25, 0.75))]
    assert list(by_name) == names
    # Every client gets what the merge that it named writes, which is another one for another preference.
    assert defined["answers"] == {**by_name, "sft": defined["answers"]["sft"]}
    assert len(set(defined["answers"].values())) == 3
    assert by_name == {
        name: written_by(weights) for name, weights in zip(names, ((0.75, 0.25), (0.25, 0.75)), strict=True)
    }
    picked = pick(read_front("sweep"), preference=[0.8, 0.2], scale="range", group="lines").point["spec"]["weights"]
    assert f"{written_by(tuple(picked))}\n" in capfd.readouterr().out
    # The second server has found the mixes of the first, and asks for its key.
    assert before[0] == [] and len(before[1]) >= 2
    assert unknown == 401
    assert curled[-1]["data"][0]["id"] == "sft"


def started_by(block: Block, port: int, monkeypatch) -> AbstractContextManager:
    """A server as a block starts it, ready to be asked; what the block exports is known from then on."""
    *exports, command = block.text.replace("\\\n", " ").splitlines()
    for line in exports:
        name = line.removeprefix("export ").partition("=")[0]
        told = subprocess.run(
            ["bash", "-c", f'{line}; printf %s "${name}"'], capture_output=True, text=True, check=True
        )
        monkeypatch.setenv(name, told.stdout)
    return running(["bash", "-c", f"exec {command}"], port, Path("log.txt"), os.environ)


def answers_of(block: Block) -> list[dict]:
    """What the curl commands of a block print."""
    commands = [f"curl{command}" for command in block.text.split("curl")[1:]]
    printed = [subprocess.run(["bash", "-c", one], capture_output=True, text=True, check=True) for one in commands]
    return [json.loads(each.stdout) for each in printed]


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def mixes() -> list[str]:
    return [path.name for path in Path("sweep/mixes/adapters").glob("*") if not path.name.startswith(".")]


def status(ask) -> int:
    try:
        return ask().status
    except HTTPError as error:
        return error.code


def refused_without_a_mix(ask) -> None:
    """Numbers that do not sum to 1 are answered 400, with the sentence."""
    with pytest.raises(HTTPError) as refused:
        ask("mix/dpo-relevant=0.5", QUESTION)
    assert refused.value.code == 400
    assert "sum to 0.5, expected 1" in refused.value.read().decode()


def written_by(weights: tuple[float, ...]) -> str:
    """The greedy answer of an exported point, as PEFT loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    index = json.loads(Path("sweep/export/adapters/adapters.json").read_text())
    folder = next(each["folder"] for each in index["adapters"] if each["spec"]["weights"] == list(weights))
    model = AutoModelForCausalLM.from_pretrained(tiny.CHAT_MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, f"sweep/export/adapters/{folder}").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.CHAT_MODEL)
    asked = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
