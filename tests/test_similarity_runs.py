"""A similarity as the reward of whole runs: PPO, a sweep, scores that are added later, and their plans."""

from __future__ import annotations

import json
import re

import pytest

from reward_models import load
from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.finished.export import export
from tests import tiny


TURNS = {
    f"{a} {b} {c}": f"{b} {c} {a} {a}" for a in "abcd" for b in "efgh" for c in "ij"
}  # what is asked, and a source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an SFT model, a sentence encoder and a data set."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("similarity")
    tokenizer = tiny.word_tokenizer(padding_side="left")
    tiny.save(tiny.llama(tokenizer, num_hidden_layers=2), tokenizer, folder / "sft")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, pad_token_id=tiny.PAD,
    )  # fmt: skip
    tiny.save(tiny.widened(BertModel(config)), tiny.word_tokenizer(), folder / "encoder")
    rows = [{"prompt": prompt, "article": article} for prompt, article in TURNS.items()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def ppo_flags(folder):
    quiet = [word for key, value in tiny.QUIET.items() for word in (f"--{key}", str(value).lower())]
    sizes = "--per_device_train_batch_size 4 --num_iterations 1 --max_steps 1 --max_completion_length 4 --lora_r 2"
    return [
        "--model_name_or_path", str(folder / "sft"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--rewards", json.dumps(entry(folder, "faithful", source="article")), *sizes.split(), *quiet,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def policy(folder, ppo_flags):
    return run_stage("ppo", [*ppo_flags, "--output_dir", str(folder / "ppo")])


@pytest.fixture(scope="module")
def sweep_flags(folder, policy):
    settings = {
        "sft_model": folder / "sft", "policies": policy, "dataset_name": folder / "prompts.jsonl", "test_size": "all",
        "test_prompts": 12, "num_weights": 2, "controls": "false", "alphas": "1", "betas": "1", "max_new_tokens": 4,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [*words, "--rewards", json.dumps(entry(folder, "faithful", source="article")), "rule:readability"]


@pytest.fixture(scope="module")
def sweep(folder, sweep_flags):
    return run_stage("sweep", [*sweep_flags, "--output_dir", str(folder / "sweep")])


def entry(folder, name, **options):
    return {"model": f"similarity:{folder / 'encoder'}", "name": name, "options": options}


def completions(sweep, tmp_path, name):
    """Prompt, text and score of every completion of a sweep."""
    import pyarrow.parquet

    export(sweep, tmp_path / name, format="parquet")
    (path,) = (tmp_path / name).glob("completions.parquet")
    return [
        (row["prompt_text"], row["completion"], row[f"score_{name}"])
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def test_ppo_is_rewarded_by_the_similarity(policy):
    (row, *_) = [row for row in read_record(policy)["history"] if "rewards/faithful/mean" in row]
    assert -1 <= row["rewards/faithful/mean"] <= 1 and row["rewards/faithful/std"] > 0


def test_a_sweep_compares_with_the_column(folder, sweep, tmp_path):
    found = completions(sweep, tmp_path, "faithful")
    assert len(found) >= 24 and len({score for *_, score in found}) > 6
    plain = load(f"similarity:{folder / 'encoder'}")
    expected = plain.score([TURNS[prompt] for prompt, *_ in found], [text for _, text, _ in found])
    assert [score for *_, score in found] == pytest.approx(expected, abs=1e-6)


def test_a_score_that_is_added_compares_with_what_was_asked(folder, sweep, tmp_path, capsys):
    added = entry(folder, "relevant", echo=0.5, ngram=1)
    assert cli.main(["score", str(sweep), "--rewards", json.dumps(added)]) == 0
    found = completions(sweep, tmp_path, "relevant")
    plain = load(f"similarity:{folder / 'encoder'}").score([p for p, *_ in found], [text for _, text, _ in found])
    for (prompt, text, score), cosine in zip(found, plain, strict=True):
        words = re.findall(r"\w+", text.replace("<unk>", " unk "))
        copied = sum(word in prompt.split() for word in words) / len(words) if words else 0
        assert score == pytest.approx(cosine - 0.5 * copied, abs=1e-6)


@pytest.mark.parametrize("stage", ["ppo", "sweep"])
def test_a_plan_counts_the_encoder_and_shows_what_it_reads(folder, ppo_flags, sweep_flags, stage, capsys):
    flags = {"ppo": ppo_flags, "sweep": sweep_flags}[stage]
    assert cli.main(["plan", stage, *flags, "--output_dir", str(folder / "planned")]) == 0
    told = capsys.readouterr().out
    size = sum(tensor.numel() for tensor in load(f"similarity:{folder / 'encoder'}").model.parameters())
    assert f"{size:,} parameters" in told
    (line,) = re.findall(r"reward faithful +(source .*)", told)
    source = re.fullmatch(r"source '(.*)', completion '.*'", line)[1]
    assert source in TURNS.values()


@pytest.mark.parametrize("stage", ["ppo", "sweep", "plan"])
def test_a_column_that_the_data_lacks_is_refused_before_the_work(folder, ppo_flags, sweep_flags, stage, capsys):
    flags = sweep_flags if stage == "sweep" else ppo_flags
    flags = [word.replace('"source": "article"', '"source": "articel"') for word in flags]
    verb = ["plan", "ppo"] if stage == "plan" else [stage]
    assert cli.main([*verb, *flags, "--output_dir", str(folder / "refused")]) == 2
    told = capsys.readouterr().err
    assert "the column 'articel', which the data lacks; did you mean 'article'" in told and "Traceback" not in told
    assert not (folder / "refused").exists()


def test_another_encoder_in_the_same_folder_is_noticed(folder, policy, ppo_flags, tmp_path, capsys):
    import shutil

    mine = tmp_path / "encoder"
    shutil.copytree(folder / "encoder", mine)
    flags = [word.replace(str(folder / "encoder"), str(mine)) for word in ppo_flags]
    run_stage("ppo", [*flags, "--output_dir", str(tmp_path / "ppo")])
    (mine / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')
    assert cli.main(["ppo", *flags, "--output_dir", str(tmp_path / "ppo"), "--resume", "true"]) == 2
    assert "reward model 1 (encoder) has changed" in capsys.readouterr().err
