"""What a model cannot read or complete stops a stage before its first step, in one sentence, and leaves nothing."""

from __future__ import annotations

import pytest

from rlhf_lines.cli import main
from tests import tiny


WORDS = ["a b", "c d e", "f", "g h", "i j a", "b c d", "e", "f g"]


@pytest.fixture
def stop(tmp_path, write_rows, flags, capsys):
    """Return a function that runs a stage on a model, and returns what it says after exit status 2."""

    def run(verb, model, tokenizer, rows, **settings):
        base = tiny.save(model, tokenizer, tmp_path / "base")
        write_rows("rows/train.jsonl", rows)
        given = {"model_name_or_path": base, "dataset_name": tmp_path / "rows", "output_dir": tmp_path / "out"}
        assert main([verb, *flags(**given, **settings)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


PPO = {"rewards": "rule:length", "use_peft": True, "lora_target_modules": "all-linear", "max_completion_length": 6}


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (WORDS, "longest prompt has 3 tokens and max_completion_length is 6, but the model has 8 positions"),
        ([*WORDS, ""], "has a prompt without tokens"),
    ],
)
def test_ppo_reads_all_prompts_first(stop, tokenizer, prompts, sentence):
    model = tiny.gpt2(tokenizer, n_positions=8)
    assert sentence in stop("ppo", model, tokenizer, [{"prompt": prompt} for prompt in prompts], **PPO)


def test_sft_on_a_row_beyond_the_table_of_positions(stop, tokenizer):
    rows = [{"prompt": "a b", "completion": " c d e f g h i"}]
    said = stop("sft", tiny.gpt2(tokenizer, n_positions=8), tokenizer, rows, max_length=32)
    assert "a row has 10 tokens, but" in said and "has 8 positions" in said


@pytest.mark.parametrize("verb", ["ppo", "sft", "reward"])
def test_a_tokenizer_without_an_end(stop, verb):
    tokenizer = tiny.word_tokenizer(eos_token=None, pad_token=None)
    model = tiny.llama(vocab_size=len(tokenizer), eos_token_id=None, bos_token_id=None)
    rows = [{"prompt": w, "completion": " a", "chosen": " a", "rejected": " b"} for w in WORDS]
    columns = {"ppo": ["prompt"], "sft": ["prompt", "completion"], "reward": ["prompt", "chosen", "rejected"]}[verb]
    settings = PPO if verb == "ppo" else {}
    rows = [{name: row[name] for name in columns} for row in rows]
    assert "has no end token" in stop(verb, model, tokenizer, rows, **settings)
