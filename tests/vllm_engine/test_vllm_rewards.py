"""A reward model that vLLM serves scores as the same folder scores here."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from reward_models import Classifier, Format, load
from tests import tiny
from tests.vllm_engine.servers import free_port, running


CHAT = "{% for m in messages %}{{ 'w3' if m['role'] == 'user' else 'w4' }} {{ m['content'] }} {% endfor %}"
PROMPTS = ["w5 w9 w14", "w7", "w22 w30 w4 w11"]
COMPLETIONS = [" w6 w8", " w12 w13 w20", " w31"]


@pytest.fixture(scope="module")
def folder(sft, tmp_path_factory):
    """A classifier with three outputs, whose words and sizes are the SFT model's, with a chat template."""
    torch.manual_seed(0)
    config = tiny.llama_config(
        hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=32, vocab_size=40,
        bos_token_id=None, eos_token_id=37, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(sft)
    tokenizer.chat_template = CHAT
    model = tiny.widened(LlamaForSequenceClassification(config))
    return tiny.save(model, tokenizer, tmp_path_factory.mktemp("served") / "reward")


@pytest.fixture(scope="module")
def address(folder):
    port, log = free_port(), folder.parent / "log.txt"
    flags = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager", "--max-model-len", "64"]
    flags += ["--kv-cache-memory-bytes", str(10**9)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *flags]
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], port, log, os.environ):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("path", "template", "label"),
    [
        ("/classify", "{prompt}{completion}", 1),
        ("/classify", "w10 {prompt} w11{completion}", (2, 0)),
        ("/classify", "chat", 2),
        ("/pooling", "{prompt}{completion}", 0),
        ("/pooling", "chat", (0, 1)),
    ],
)
def test_the_scores_are_those_of_the_folder(address, folder, path, template, label):
    local = Classifier.from_pretrained(folder, Format(template, label=label), device="cpu")
    remote = load(address + path, template=template, label=label, batch_size=2)
    expected = local.score(PROMPTS, COMPLETIONS)
    assert max(map(abs, expected)) > 1, "a sigmoid or softmax would show"
    assert remote.score(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_a_text_that_is_too_long_is_refused_in_one_sentence(address):
    with pytest.raises(ValueError, match=r"refused a request: 400 Bad Request: .*64"):
        load(address + "/classify", label=0).score(["w5 " * 100], [" w6"])
