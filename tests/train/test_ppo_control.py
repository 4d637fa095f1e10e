"""What steers a PPO run: several rewards on one scale, the KL coefficient, and when updates stop."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from reward_models import FunctionReward
from reward_models.normalize import Normalization
from rlhf_lines.stages import run_stage
from rlhf_lines.train.advantages import adapted_kl_coef
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests.tiny import QUIET, WORDS


PROMPTS = [f"{x} {y}" for x in WORDS for y in WORDS]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}


def length(prompts, completions):
    return [10.0 * len(completion.split()) for completion in completions]


def count_a(prompts, completions):
    return [completion.split().count("a") for completion in completions]


@pytest.fixture
def make_trainer(tmp_path, llama, tokenizer):
    def make(*functions, **settings):
        defaults = {"per_device_train_batch_size": 16, "max_completion_length": 6, "logging_steps": 1, "max_steps": 4}
        return PPOTrainer(
            llama(),
            [FunctionReward(function) for function in functions or (length,)],
            PPOConfig(output_dir=str(tmp_path / "trainer"), **{**QUIET, **defaults, **settings}),
            peft_config=LoraConfig(**LORA),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
        )

    return make


def trained(trainer):
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


# --- several rewards


def test_the_reward_is_the_weighted_sum_of_normalised_and_clipped_scores(make_trainer, tokenizer):
    trainer = make_trainer(length, count_a, reward_weights=[0.25, 2.0], kl_coef=0.0, lam=1.0, num_iterations=1)
    trainer.normalizations = [Normalization(mean=20.0, std=8.0, clip=1.5), Normalization()]
    trainer.model.train()
    rollout = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS[:16]])
    # Between words the tokenizer writes a blank, so a completion begins with one.
    completions = [f" {text}" if text else "" for text in tokenizer.batch_decode(rollout["completion_ids"], True)]
    raw = [length([], completions), count_a([], completions)]
    expected = [0.25 * min(max((a - 20.0) / 8.0, -1.5), 1.5) + 2.0 * b for a, b in zip(*raw, strict=True)]
    assert max(abs((a - 20.0) / 8.0) for a in raw[0]) > 1.5, "the limit must matter"
    # With gamma and lambda 1, no values and no KL cost, the return of the first token is the reward of the completion.
    assert rollout["returns"][:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/length/mean"] == [pytest.approx(statistics.fmean(raw[0]))], "logged raw"
    assert metrics["rewards/count_a/std"] == [pytest.approx(statistics.stdev(raw[1]))]
    assert metrics["reward"] == [pytest.approx(statistics.fmean(expected))]
    assert metrics["reward_std"] == [pytest.approx(statistics.stdev(expected))]


@pytest.fixture
def stage_flags(flags, base, write_rows, tmp_path, monkeypatch):
    (tmp_path / "control_rewards.py").write_text(
        "calls = []\n"
        "def letters(prompts, completions):\n"
        "    calls.append((list(prompts), list(completions)))\n"
        "    return [len(c) for c in completions]\n"
        "def spaces(prompts, completions):\n"
        "    return [c.count(' ') for c in completions]\n"
        "def same(prompts, completions):\n"
        "    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS for y in WORDS[:3]])

    def make(**changes):
        settings = {
            **{"model_name_or_path": base, "output_dir": tmp_path / "policy", "dataset_name": data.parent},
            **{"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_target_modules": "all-linear"},
            **{"per_device_train_batch_size": 4, "num_iterations": 1, "max_steps": 2, "max_completion_length": 4},
            **{"logging_steps": 1, "learning_rate": 1e-2, "normalization_samples": 20},
        }
        return flags(**{**settings, **changes})

    return make


def test_a_function_of_trl_gets_columns_tokens_and_ways_to_log(stage_flags, write_rows, tokenizer, tmp_path, caplog):
    (tmp_path / "trl_rewards.py").write_text(
        "calls = []\n"
        "def right(completions, answer, completion_ids, log_metric, trainer_state, **columns):\n"
        "    calls.append((completions, answer, completion_ids, trainer_state.global_step, columns))\n"
        "    log_metric('right', 0.5)\n"
        "    return [float(a in c) for a, c in zip(answer, completions)]\n"
    )
    import trl_rewards

    rows = [{"prompt": f"{x} {y}", "answer": y, "more": {"n": [1, None]}} for x in WORDS for y in WORDS[:3]]
    write_rows("data/train.jsonl", rows)
    reward = '{"model": "trl_rewards:right", "normalize": true}'
    out = run_stage("ppo", stage_flags(rewards=[reward], max_steps=1, normalization_samples=31))
    told = "measured on 30 completions, not on normalization_samples (31): the training data has no more prompts"
    assert told in caplog.text
    assert json.loads((out / "normalization.json").read_text())["right"]["samples"] == 30

    assert [len(call[0]) for call in trl_rewards.calls] == [1, 30, 4]
    answer_of = {row["prompt"]: row["answer"] for row in rows}
    for completions, answers, ids, step, columns in trl_rewards.calls:
        assert set(columns) == {"prompts", "more", "log_extra"} and columns["more"][0] == {"n": [1, None]} and step == 0
        assert answers == [answer_of[prompt] for prompt in columns["prompts"]]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert completions == [f" {text}" if text else "" for text in texts]
    history = json.loads((out / "rlhf_lines.json").read_text())["history"]
    assert history[0]["right"] == 0.5


def test_scales_are_measured_on_the_sft_model_and_saved(stage_flags, base, llama, tokenizer, caplog):
    import control_rewards

    from rlhf_lines.sampling import prompt_key, sample_tokens
    from rlhf_lines.train.normalization import SAMPLE

    control_rewards.calls.clear()
    letters = '{"model": "control_rewards:letters", "normalize": true, "clip": 2.0, "weight": 0.3}'
    out = run_stage("ppo", stage_flags(rewards=[letters, "control_rewards:spaces"]))
    trial = control_rewards.calls.pop(0)
    assert trial == (["a a"], [" a a"]), "one row, before anything is loaded"
    prompts, completions = control_rewards.calls[0]
    assert prompts == [f"{x} {y}" for x in WORDS for y in WORDS[:3]][:20]
    # The same completions, sampled from the SFT model alone.
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    settings = {"max_new_tokens": 4, "temperature": 1.0, "eos_token_ids": [1], "pad_token_id": 0, "seed": 42}
    tokens = sample_tokens(llama(), ids, [(prompt_key(i), SAMPLE) for i in ids], **settings).tokens
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert completions == [f" {text}" if text else "" for text in texts]
    scores = [len(completion) for completion in completions]
    saved = json.loads((out / "normalization.json").read_text())
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    assert saved == {"letters": {"mean": pytest.approx(mean), "std": pytest.approx(std), "clip": 2.0, "samples": 20}}
    assert "not on normalization_samples" not in caplog.text
    first = json.loads((out / "rlhf_lines.json").read_text())["history"][0]
    letters = [len(completion) for completion in control_rewards.calls[1][1]]
    spaces = [completion.count(" ") for completion in control_rewards.calls[1][1]]
    reward = [0.3 * min(max((a - mean) / std, -2), 2) + b for a, b in zip(letters, spaces, strict=True)]
    assert first["reward"] == pytest.approx(statistics.fmean(reward), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ['{"model": "control_rewards:same", "normalize": true}']}, "all 20 samples scored 1.0"),
        (
            {"rewards": ['{"model": "control_rewards:letters", "wieght": 2}']},
            "unknown key 'wieght': did you mean 'weight'?",
        ),
        ({"rewards": ['{"model": "control_rewards:letters", "clip": 0}']}, "has clip 0, expected a positive number"),
        ({"rewards": ['{"name": "letters"}']}, "expected the text of a model or a mapping with the key model"),
        ({"rewards": ['{"model": ']}, "which is no valid JSON"),
        (
            {"rewards": ["control_rewards:letters"], "report_to": "wandb"},
            "report_to names wandb, which is not installed: pip install wandb, or leave it out",
        ),
        (
            {"rewards": ["control_rewards:letters", "control_rewards.letters"]},
            "rewards have the names letters, letters",
        ),
        (
            {"rewards": ['{"model": "control_rewards:letters", "weight": 2.0}'], "reward_weights": [1.0]},
            "reward_weights was given and rewards holds weights: keep one of the two",
        ),
    ],
)
def test_rewards_that_are_refused(stage_flags, tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        run_stage("ppo", stage_flags(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("rewards: []", ValueError, "rewards is empty, expected one reward model or more"),
        ("resume_from_checkpoint: true", FileNotFoundError, "resume_from_checkpoint true does not exist"),
    ],
)
def test_values_of_a_yaml_file_that_are_refused(stage_flags, tmp_path, config, error, message):
    path = tmp_path / "ppo.yaml"
    path.write_text(config)
    flags = stage_flags() if "rewards" in config else stage_flags(rewards=["control_rewards:letters"])
    with pytest.raises(error, match=message):
        run_stage("ppo", ["--config", str(path), *flags])
    assert not (tmp_path / "policy").exists()


def test_items_of_a_yaml_file_may_be_mappings(stage_flags, tmp_path):
    import yaml

    config = tmp_path / "ppo.yaml"
    rewards = [{"model": "control_rewards:letters", "weight": 0.5, "name": "chars"}, "control_rewards:spaces"]
    config.write_text(yaml.safe_dump({"rewards": rewards}))
    out = run_stage("ppo", ["--config", str(config), *stage_flags()])
    assert yaml.safe_load((out / "config.yaml").read_text())["rewards"] == rewards
    history = json.loads((out / "rlhf_lines.json").read_text())["history"]
    assert {"rewards/chars/mean", "rewards/spaces/mean"} <= history[0].keys()
    first = history[0]
    expected = 0.5 * first["rewards/chars/mean"] + first["rewards/spaces/mean"]
    assert first["reward"] == pytest.approx(expected, abs=1e-5)


# --- the KL


@pytest.mark.parametrize(
    ("kl", "gain", "expected"),
    # 0.1 (1 + gain clip(kl / 6 - 1, -0.2, 0.2)), by hand
    [(6.0, 0.1, 0.1), (6.6, 0.1, 0.101), (600.0, 0.1, 0.102), (0.0, 0.1, 0.098), (5.4, 1.0, 0.09), (-3.0, 0.5, 0.09)],
)
def test_the_coefficient_moves_towards_the_target(kl, gain, expected):
    assert adapted_kl_coef(0.1, kl, 6.0, gain) == pytest.approx(expected, rel=1e-12)


def test_an_adaptive_coefficient_follows_the_kl_of_every_rollout(make_trainer):
    settings = {"num_iterations": 2, "max_steps": 8, "learning_rate": 1e-2, "kl_coef": 0.3}
    rows = trained(make_trainer(kl_target=0.5, kl_gain=1.0, **settings))
    measured = [(row["kl"], row["kl_coef"]) for row in rows if "kl" in row]
    assert len(measured) == 4
    expected = 0.3
    for kl, kl_coef in measured:
        assert kl_coef == pytest.approx(expected, rel=1e-9)
        expected = adapted_kl_coef(expected, kl, 0.5, 1.0)
    assert len({kl_coef for _, kl_coef in measured}) > 1
    fixed = trained(make_trainer(**settings))
    assert {row["kl_coef"] for row in fixed if "kl" in row} == {0.3}


def test_a_run_stops_once_its_kl_exceeds_the_limit(make_trainer):
    settings = {"num_iterations": 1, "max_steps": 12, "learning_rate": 5e-2, "kl_coef": 0.0}
    free = [row["kl"] for row in trained(make_trainer(**settings))]
    limit = 0.9 * max(free)
    last = next(i for i, kl in enumerate(free) if kl > limit)
    assert 1 < last < 11, "the KL must grow"
    trainer = make_trainer(**settings, max_kl=limit)
    stopped = [row["kl"] for row in trained(trainer)]
    assert stopped == free[: last + 1] and trainer.state.global_step == last + 1


def test_the_rest_of_a_rollout_is_left_out_once_the_policy_has_moved_too_far(make_trainer):
    settings = {"num_iterations": 6, "max_steps": 12, "learning_rate": 5e-2, "weight_decay": 0.1}
    free = trained(make_trainer(**settings))
    # The policy that samples is the one that is updated: no distance before the first update of a rollout.
    assert free[0]["update_kl"] == pytest.approx(0.0, abs=1e-6) and free[1]["update_kl"] > 1e-3
    limit = 0.9 * free[1]["update_kl"]

    trainer, states = make_trainer(**settings, max_update_kl=limit), []
    own = trainer.training_step

    def recording(*args, **kwargs):
        states.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
        return own(*args, **kwargs)

    trainer.training_step = recording
    rows = trained(trainer)
    assert [row["update_kl"] for row in rows[:2]] == [row["update_kl"] for row in free[:2]]
    assert [("update_kl" in row) for row in rows[:6]] == [True] * 2 + [False] * 4
    for name in states[0]:
        assert torch.equal(states[2][name], states[6][name]), "no update, and no weight decay or momentum either"
    assert any(not torch.equal(states[1][name], states[2][name]) for name in states[0])
    assert "update_kl" in rows[6], "the next rollout starts anew"


def test_the_kl_is_not_negative_on_average(make_trainer):
    """k1 of single completions is often negative; its mean over many, and k3 always, is not."""
    trainer = make_trainer(learning_rate=3e-2, max_steps=8, num_iterations=2, kl_coef=0.0)
    trainer.train()
    trainer.model.train()
    trainer._buffered_inputs = None
    ids = [trainer._tokenize_prompts([prompt])[0][0] for prompt in PROMPTS]
    completions = [trainer.sample(ids, [1000 + i] * len(ids)) for i in range(20)]
    kls = []
    for own in completions:
        width = max(map(len, own))
        rollout = {
            "prompt_ids": torch.tensor(ids),
            "prompt_mask": torch.ones(len(ids), 2, dtype=torch.long),
            "completion_ids": torch.tensor([c + [0] * (width - len(c)) for c in own]),
            "completion_mask": torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in own]),
        }
        trainer._score_policy(rollout)
        difference = rollout["old_per_token_logps"] - trainer._reference_logprobs(rollout)
        kls += (difference * rollout["completion_mask"]).sum(dim=1).tolist()
    mean, error = statistics.fmean(kls), statistics.stdev(kls) / math.sqrt(len(kls))
    assert min(kls) < 0, "single completions can be negative"
    assert mean > 5 * error


def test_a_generation_config_of_the_checkpoint_changes_no_sample(make_trainer, llama, tokenizer, tmp_path):
    """LLaMA-2's checkpoint asks for temperature 0.6 and top_p 0.9: its samples would not be those of the policy."""
    plain = make_trainer()
    odd = make_trainer()
    config = odd.model.get_base_model().generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k, config.min_p = True, 0.1, 0.2, 1, 0.5
    config.repetition_penalty, config.no_repeat_ngram_size = 1.7, 1
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert plain.sample(ids, [0] * len(ids)) == odd.sample(ids, [0] * len(ids))


@pytest.mark.parametrize(
    "setting",
    [
        {"top_p": 0.9},
        {"top_k": 50},
        {"min_p": 0.1},
        {"repetition_penalty": 1.2},
        {"generation_kwargs": {"min_new_tokens": 5}},
    ],
)
def test_sampling_that_breaks_the_estimate_is_refused(tmp_path, setting):
    ((name, value),) = setting.items()
    with pytest.raises(
        ValueError, match="samples of another distribution than the policy's make the KL estimate wrong"
    ):
        PPOConfig(output_dir=str(tmp_path), **QUIET, **setting)
    with pytest.raises(ValueError) as caught:
        PPOConfig(output_dir=str(tmp_path), **QUIET, **setting)
    assert str(caught.value).startswith(f"{name} is {value}, expected ")


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(make_trainer, tokenizer):
    ids = [tokenizer(prompt)["input_ids"] for prompt in ["a", "b c d", "e f", *PROMPTS[:20]]]
    all_at_once = make_trainer().sample(ids, range(len(ids)))
    assert len({len(completion) for completion in all_at_once}) > 3
    for size in (1, 5, 100):
        assert make_trainer(sampling_batch_size=size).sample(ids, range(len(ids))) == all_at_once


# --- what is logged


def test_every_logged_name_is_explained(make_trainer):
    """docs/ppo.md explains what a run logs, no more and no less."""
    text = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
    explained = set(re.findall(r"^\| `([^`]+)`", text.split("## What is logged")[1], flags=re.MULTILINE))
    rows = trained(make_trainer(num_iterations=2, max_steps=6))
    logged = {name.replace("rewards/length/", "rewards/NAME/") for row in rows for name in row}
    assert logged | {"rewards/NAME/strayed"} == explained  # which a generative reward alone has


def test_logged_rates_are_those_of_the_completions(make_trainer):
    trainer = make_trainer(num_iterations=1, max_steps=1)
    (row,) = trained(trainer)
    rollout = trainer._buffered_inputs[0]
    ends = [1 in ids.tolist() for ids in rollout["completion_ids"]]
    assert 0 < sum(ends) < len(ends)
    assert row["eos_rate"] == pytest.approx(sum(ends) / len(ends))
    assert row["completions/mean_length"] == rollout["completion_mask"].sum(dim=1).float().mean().item()
    assert row["value_clip_ratio"] == 0.0 and row["rewards/length/truncated"] == 0.0


def test_completions_are_kept_as_a_table(make_trainer):
    import pandas

    trainer = make_trainer(num_iterations=1, max_steps=2, kl_coef=0.1)
    (row, _) = trained(trainer)
    first, second = sorted((Path(trainer.args.output_dir) / "completions").iterdir())
    table = pandas.read_parquet(first)
    assert list(table.columns) == ["step", "prompt", "completion", "length", "reward", "kl", "advantage"]
    assert len(table) == 16 and set(table["step"]) == {1} and set(pandas.read_parquet(second)["step"]) == {2}
    assert table["length"].tolist() == length([], table["completion"].tolist())
    assert set(table["prompt"]) <= set(PROMPTS) and table["reward"].tolist() == table["length"].tolist()
    assert table["kl"].mean() == pytest.approx(row["kl"], abs=1e-6)
    # Whitened advantages: long completions are better than expected, short ones worse.
    assert table["advantage"].std() > 0.1 and table["advantage"].corr(table["length"]) > 0.5
