"""What bitsandbytes cannot compute in 4 bits on this CPU is known before, and told in one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from rlhf_lines import cli, skeleton
from tests import tiny


pytest.importorskip("bitsandbytes")
from bitsandbytes.functional import has_avx512bf16


pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not has_avx512bf16(), reason="a GPU, or a CPU whose kernel takes any width"
)


class OneMap(nn.Module):
    """A linear map that is not the head."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.map = nn.Linear(inputs, outputs)

    def get_output_embeddings(self):
        return None


def computes(inputs: int, outputs: int) -> bool:
    """Whether the library reads a text through a map of these widths."""
    from bitsandbytes.nn import Linear4bit

    packed = Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu").eval()
    try:
        with torch.no_grad():
            packed(torch.ones(2, inputs, dtype=torch.bfloat16))
    except (AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("inputs", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("outputs", [16, 32, 48, 64, 96])
def test_the_rule_is_the_kernels(inputs, outputs):
    if computes(inputs, outputs):
        skeleton.check_4bit_on_cpu(OneMap(inputs, outputs))
    else:
        sentence = rf"but 'map' has {inputs} inputs and {outputs} outputs: leave it out"
        with pytest.raises(ValueError, match=sentence):
            skeleton.check_4bit_on_cpu(OneMap(inputs, outputs))


@pytest.mark.parametrize("verb", ["sweep", "ppo", "sft"])
def test_stages_say_so_before_the_work(verb, tmp_path, capsys):
    tokenizer = tiny.word_tokenizer()
    sft = tiny.save(tiny.llama(tokenizer, hidden_size=64, intermediate_size=96), tokenizer, tmp_path / "sft")
    policies = [str(tiny.save_adapter(sft, tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    rows = tmp_path / "rows.jsonl"
    texts = [" ".join(tiny.WORDS[(step * i) % 10] for i in range(1, 5)) for step in range(1, 10)]
    rows.write_text("\n".join(json.dumps({"prompt": text, "completion": " a b"}) for text in texts))
    flags = {
        "sweep": ["--sft_model", str(sft), "--policies", *policies, "--rewards", "rule:length", "rule:lexical"],
        "ppo": ["--model_name_or_path", str(sft), "--rewards", "rule:length", "--max_steps", "4"],
        "sft": ["--model_name_or_path", str(sft), "--use_peft", "--eval_strategy", "epoch"],
    }[verb]
    out = tmp_path / "out"
    given = [*flags, "--load_in_4bit", "--dataset_name", str(rows), "--output_dir", str(out)]
    assert cli.main([verb, *given]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "load_in_4bit on a CPU takes widths that are multiples of 64 (inputs) and 32 (outputs)" in said
    assert "mlp.down_proj' has 96 inputs and 64 outputs" in said
    assert not out.exists()
