"""Everything that makes tokens of an input comes along with a merge, and nothing else."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from rlhf_lines.merge import MergeSpec, merge_policies
from tests import tiny


# Of Qwen (1), GPT-2, T5, XLM-R, Marian, PhoBERT, Whisper, Mistral, Mixtral, Qwen2-VL, LLaVA, Phi-4, and older saves.
COME_ALONG = (
    "qwen.tiktoken", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "bpe.codes", "normalizer.json", "tekken.json", "tokenizer.model.v3", "tokenizer.model", "preprocessor_config.json",
    "video_preprocessor_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja", "vocab.txt",
    "added_tokens.json", "special_tokens_map.json", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip
STAY = (
    "modeling_own.py", "tokenization_own.py", "training_args.bin", "pytorch_model.bin", "rlhf_lines.json",
    "config.yaml", "README.md", "trainer_state.json", "optimizer.pt", "adapter/adapter_model.safetensors", "notes.txt",
)  # fmt: skip


@pytest.mark.parametrize("save", ["dense", "adapter"])
def test_every_file_of_the_tokenizer_comes_along(sft, copy_of, tmp_path, save):
    model = copy_of(sft)
    policy = tiny.save_adapter(model, tmp_path / "policy", seed=1)
    for name in (*COME_ALONG, *STAY):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(f'{{"from": "{name}"}}')
    (model / "generation_config.json").write_text('{"eos_token_id": 5}')
    out = merge_policies(model, [policy], MergeSpec("linear", (0.5,)), save=save, output_dir=tmp_path / "out")
    for name in (*COME_ALONG, "tokenizer.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    own = {"README.md"}  # of the merge
    assert [name for name in STAY if (out / name).exists() and name not in own] == []
    assert "from" not in (out / "README.md").read_text().split("---")[0]
    assert (out / "generation_config.json").exists() == (save == "dense")


def test_named_chat_templates_and_the_adapter_alone(tmp_path):
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    sft = tiny.save(tiny.llama(tokenizer), tokenizer, tmp_path / "sft")
    policy = tiny.save_adapter(sft, tmp_path / "policy", seed=1)
    for save in ("adapter", "dense"):
        out = merge_policies(sft, [policy], MergeSpec("linear", (1.0,)), save=save, output_dir=tmp_path / save)
        read = AutoTokenizer.from_pretrained(out)
        assert read.chat_template == tokenizer.chat_template and read.get_vocab() == tokenizer.get_vocab()
