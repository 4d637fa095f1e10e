"""A language model that grades as the reward of whole runs: PPO, sweeps, scores that are added, checks and plans."""

from __future__ import annotations

import json
import re
import string

import pytest

from reward_models import load
from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.task_rewards import RewardEntry, load_reward_models
from tests import tiny


PROMPTS = [f"{a} {b} {c}" for a in "abcd" for b in "efgh" for c in "ij"]
QUESTION = {"question": "{prompt}|{completion}|"}
REASONED = {**QUESTION, "reasoning": 3, "grades": [0, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an SFT model, a model that grades with another tokenizer, prompts and pairs."""
    folder = tmp_path_factory.mktemp("generative")
    tokenizer = tiny.word_tokenizer(padding_side="left")
    tiny.save(tiny.llama(tokenizer, num_hidden_layers=2), tokenizer, folder / "sft")
    letters = tiny.character_tokenizer(string.ascii_letters + string.digits + " :|<>\n")
    tiny.save(tiny.llama(letters, **tiny.TWO_LAYERS, max_position_embeddings=96), letters, folder / "grader")
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": prompt, "chosen": f" {prompt[:3]}", "rejected": f" {prompt[2:]} j"} for prompt in PROMPTS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def entry(folder, name, **options):
    return {"model": f"generative:{folder / 'grader'}", "name": name, "options": options}


@pytest.fixture(scope="module")
def ppo_flags(folder):
    quiet = [word for key, value in tiny.QUIET.items() for word in (f"--{key}", str(value).lower())]
    sizes = "--per_device_train_batch_size 4 --num_iterations 1 --max_steps 1 --max_completion_length 4 --lora_r 2"
    rewards = [json.dumps(entry(folder, "graded", **QUESTION)), json.dumps(entry(folder, "reasoned", **REASONED))]
    return [
        "--model_name_or_path", str(folder / "sft"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--rewards", *rewards, *sizes.split(), *quiet,
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
    return [*words, "--rewards", json.dumps(entry(folder, "graded", **QUESTION)), "rule:length"]


@pytest.fixture(scope="module")
def sweep(folder, sweep_flags):
    return run_stage("sweep", [*sweep_flags, "--output_dir", str(folder / "sweep")])


def scored(sweep, tmp_path, name):
    """Prompt, text and score of every completion of a sweep."""
    import pyarrow.parquet

    export(sweep, tmp_path / name, format="parquet")
    (path,) = (tmp_path / name).glob("completions.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [(row["prompt_text"], row["completion"], row[f"score_{name}"]) for row in rows]


def test_ppo_is_rewarded_by_the_grades_and_tells_where_they_are_none(policy):
    (row, *_) = [row for row in read_record(policy)["history"] if "rewards/graded/mean" in row]
    assert 1 < row["rewards/graded/mean"] < 5 and row["rewards/graded/std"] > 0
    assert 0 < row["rewards/reasoned/mean"] < 1
    # The model is random: of all four completions it would say something else.
    assert row["rewards/graded/strayed"] == row["rewards/reasoned/strayed"] == 4
    assert row["rewards/graded/truncated"] == 0


def test_a_sweep_has_the_grades_and_the_page_tells_where_they_are_none(folder, sweep, tmp_path):
    found = scored(sweep, tmp_path, "graded")
    assert len(found) >= 24 and len({score for *_, score in found}) > 6
    plain = load(f"generative:{folder / 'grader'}", options=QUESTION, batch_size=1)
    expected = plain.score([prompt for prompt, *_ in found], [text for _, text, _ in found])
    assert [score for *_, score in found] == pytest.approx(expected, abs=1e-5)
    told = f"in {len(found)} of {len(found)} texts less than half of the probability lay on the grades"
    page = (sweep / "report.html").read_text()
    assert told in page and "reward graded" in page and "judge graded" not in page


def test_of_grades_that_are_all_reused_nothing_is_counted(folder, sweep, sweep_flags):
    """The page said `in 0 of 0 texts`."""
    again = run_stage("sweep", [*sweep_flags, "--reuse", str(sweep), "--output_dir", str(folder / "reused")])
    assert "lay on the grades" not in (again / "report.html").read_text()


def test_a_score_that_is_added_is_the_same(folder, sweep, tmp_path, capsys):
    assert cli.main(["score", str(sweep), "--rewards", json.dumps(entry(folder, "reasoned", **REASONED))]) == 0
    found = scored(sweep, tmp_path, "reasoned")
    told = f"reasoned: in {len(found)} of {len(found)} texts less than half of the probability lay on the grades"
    assert told in capsys.readouterr().out
    plain = load(f"generative:{folder / 'grader'}", options=REASONED, batch_size=1)
    expected = plain.score([prompt for prompt, *_ in found], [text for _, text, _ in found])
    assert [score for *_, score in found] == pytest.approx(expected, abs=1e-5)
    other = entry(folder, "reasoned", **{**REASONED, "reasoning": 4})
    assert cli.main(["score", str(sweep), "--rewards", json.dumps(other)]) == 2
    assert "give it another name" in capsys.readouterr().err


def test_a_check_of_pairs(folder, capsys):
    flags = ["--dataset_name", str(folder / "pairs.jsonl"), "--test_size", "all"]
    rewards = [json.dumps(entry(folder, "graded", **QUESTION)), "rule:length"]
    assert cli.main(["reward", "--check", *flags, "--rewards", *rewards]) == 0
    told = capsys.readouterr().out
    count = 2 * len(PROMPTS)
    assert f"graded: in {count} of {count} texts less than half of the probability lay on the grades" in told
    plain = load(f"generative:{folder / 'grader'}", options=QUESTION)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    chosen, rejected = (
        plain.score([p["prompt"] for p in pairs], [p[side] for p in pairs]) for side in pairs[0] if side != "prompt"
    )
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
    assert re.search(rf"^graded +{100 * right:.1f} %", told, re.MULTILINE)


@pytest.mark.parametrize("stage", ["ppo", "sweep"])
def test_a_plan_counts_the_weights_once_and_shows_what_is_asked(folder, ppo_flags, sweep_flags, stage, capsys):
    flags = {"ppo": ppo_flags, "sweep": sweep_flags}[stage]
    assert cli.main(["plan", stage, *flags, "--output_dir", str(folder / "planned")]) == 0
    told = capsys.readouterr().out
    size = sum(
        tensor.numel() for tensor in load(f"generative:{folder / 'grader'}", options=QUESTION).model.parameters()
    )
    assert told.count(f"{size:,} parameters") == 1
    line = re.search(r"reward graded +'(.*)'", told)[1]
    prompt, _, answer = line.split("|")
    assert prompt in PROMPTS and answer == "Grade: "
    if stage == "ppo":
        assert "the weights of graded, once in memory" in told and re.search(r"reward reasoned +'.*\.\.\.|<unk>", told)


def test_one_loaded_model_is_asked_by_several_rewards(folder):
    entries = [RewardEntry.of(entry(folder, name, **options)) for name, options in (("a", QUESTION), ("b", REASONED))]
    other = RewardEntry.of({**entry(folder, "c", **QUESTION), "dtype": "bfloat16", "batch_size": 2})
    a, b, c = load_reward_models([*entries, other])
    assert a.model is b.model and c.model is not a.model
    assert [model.name for model in (a, b, c)] == ["a", "b", "c"] and (a.batch_size, c.batch_size) == (32, 2)
    assert b.encoder.grading.reasoning == 3 and a.encoder.grading.reasoning == 0
    a.score(["a"], ["b"])
    assert (a.graded, b.graded) == (1, 0)


def test_a_plan_without_a_tokenizer_at_hand_refuses_reasons_that_leave_no_room(folder, ppo_flags, tmp_path, capsys):
    """It ended with a traceback of torch."""
    import shutil

    mine = shutil.copytree(folder / "grader", tmp_path / "grader", ignore=shutil.ignore_patterns("token*"))
    rewards = json.dumps({**entry(folder, "graded", **QUESTION, reasoning=96), "model": f"generative:{mine}"})
    flags = [rewards if '"graded"' in word else word for word in ppo_flags if '"reasoned"' not in word]
    assert cli.main(["plan", "ppo", *flags, "--output_dir", str(tmp_path / "planned")]) == 2
    assert "reasoning of graded is 96, but the model reads 96 tokens with the question" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["ppo", "sweep", "plan"])
def test_grades_that_cannot_be_told_apart_are_refused_before_the_work(folder, ppo_flags, sweep_flags, stage, capsys):
    flags = sweep_flags if stage == "sweep" else ppo_flags
    wrong = json.dumps(entry(folder, "graded", **QUESTION, grades=list(range(11))))
    flags = [wrong if '"graded"' in word else word for word in flags]
    verb = ["plan", "ppo"] if stage == "plan" else [stage]
    assert cli.main([*verb, *flags, "--output_dir", str(folder / "refused")]) == 2
    told = capsys.readouterr().err
    assert "the grades '1' and '10' of graded begin with the same token" in told and "Traceback" not in told
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("kind", "told"), [("bert", "is an encoder (bert)"), ("llama", "is a classifier (LlamaForSequenceClassification)")]
)
@pytest.mark.parametrize("stage", ["ppo", "plan"])
def test_what_is_no_causal_language_model_is_refused_before_the_work(folder, ppo_flags, kind, told, stage, capsys):
    """A plan took them, and a run took an encoder."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

    letters = tiny.character_tokenizer(string.ascii_letters + string.digits + " :|<>\n")
    shape = {"hidden_size": 16, "intermediate_size": 24, **tiny.TWO_LAYERS, "vocab_size": len(letters)}
    maker = AutoModelForMaskedLM if kind == "bert" else AutoModelForSequenceClassification
    made = tiny.save(maker.from_config(AutoConfig.for_model(kind, **shape)), letters, folder / f"other_{kind}")
    flags = [word.replace(str(folder / "grader"), str(made)) for word in ppo_flags]
    verb = ["plan", "ppo"] if stage == "plan" else [stage]
    assert cli.main([*verb, *flags, "--output_dir", str(folder / "refused")]) == 2
    assert f"other_{kind} {told}" in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_other_weights_in_the_same_folder_are_noticed(folder, ppo_flags, tmp_path, capsys):
    import shutil

    mine = tmp_path / "grader"
    shutil.copytree(folder / "grader", mine)
    flags = [word.replace(str(folder / "grader"), str(mine)) for word in ppo_flags]
    run_stage("ppo", [*flags, "--output_dir", str(tmp_path / "ppo")])
    letters = tiny.character_tokenizer(string.ascii_letters + string.digits + " :|<>\n")
    tiny.llama(letters, **tiny.TWO_LAYERS, max_position_embeddings=96, seed=1).save_pretrained(mine)
    assert cli.main(["ppo", *flags, "--output_dir", str(tmp_path / "ppo"), "--resume", "true"]) == 2
    assert "reward model 1 (grader) has changed" in capsys.readouterr().err
