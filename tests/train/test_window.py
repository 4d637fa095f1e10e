"""What is logged is of all tokens, completions and rollouts since the last time, however they came in."""

from __future__ import annotations

import pandas
import pytest
from datasets import Dataset
from peft import LoraConfig

from reward_models import FunctionReward
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from rlhf_lines.train.window import TOKENS, check_noted, of_window
from tests.tiny import QUIET, WORDS


PROMPTS = [f"{x} {y}" for x in WORDS[:4] for y in WORDS[:4]]


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


@pytest.fixture
def make(tmp_path, llama, tokenizer):
    """Return a maker of trainers with rollouts of 16, two updates each, that clip."""

    def trainer(name="run", reward=shortness, *, eval_dataset=None, **settings):
        defaults = {"per_device_train_batch_size": 16, "max_completion_length": 8, "num_iterations": 2, "epsilon": 0.01}
        defaults |= {"learning_rate": 2e-2, "max_steps": 4, "logging_steps": 1, "value_clip_range": 0.02}
        return PPOTrainer(
            llama(),
            [FunctionReward(reward)],
            PPOConfig(output_dir=str(tmp_path / name), **{**QUIET, **defaults, **settings}),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )

    return trainer


def logged(trainer):
    trainer.train()
    return [row for row in trainer.state.log_history if "update_kl" in row]


def test_numbers_per_token_are_weighed_and_extremes_are_extremes():
    """(1 * 3 + 5 * 1) / 4 = 2; of two rollouts one of 4 completions has none that ends, the other 3 of mean 2."""
    noted = {name: [1.0, 5.0] for name in ("update_kl", "entropy", "clip_ratio/region_mean", "reward")}
    noted |= {"clip_ratio/low_min": [0.25, 0.0], "clip_ratio/high_max": [0.0, 0.5], TOKENS: [3.0, 1.0]}
    noted |= {"completions/clipped_ratio": [1.0, 0.25, 0.5]}
    noted |= {f"completions/{kind}_terminated_length": [0.0, of, 5.0] for kind, of in (("mean", 2.0), ("min", 1.0))}
    found = of_window(noted)
    assert TOKENS not in found and found["reward"] == [1.0, 5.0]
    assert all(found[name] == [2.0] for name in ("update_kl", "entropy", "clip_ratio/region_mean"))
    assert found["clip_ratio/low_min"] == [0.0] and found["clip_ratio/high_max"] == [0.5]
    assert found["completions/mean_terminated_length"] == [pytest.approx((2 * 0.75 + 5 * 0.5) / 1.25)]
    assert found["completions/min_terminated_length"] == [1.0]
    none = {"completions/clipped_ratio": [1.0], "completions/min_terminated_length": [0.0]}
    assert of_window(none) == none


def noting(name):
    """A reward function that notes the mean length of its completions."""

    def noted(prompts, completions, log_metric):
        scores = shortness(prompts, completions)
        log_metric(name, -sum(scores) / len(scores))
        return scores

    return noted


@pytest.mark.parametrize("name", ["tokens", "brevity", "completions/mine"])
def test_what_a_function_notes_is_averaged_over_rollouts(make, name):
    """Two rollouts in one log; `tokens` was taken for the weights of minibatches, and the run ended in a ValueError."""
    (row,) = logged(make(reward=noting(name), logging_steps=4))
    assert row[name] == pytest.approx(-row["reward"]) and row[name] > 0


def test_names_of_ppo_are_refused_as_names_of_what_functions_note(make):
    trainer = make(max_steps=1)
    (row,) = logged(trainer)
    own = row.keys() | {TOKENS}
    assert len(own) > 30
    for name in own:
        with pytest.raises(ValueError, match=f"a reward function notes '{name}' by log_metric, a name under which PPO"):
            check_noted(["fine", name], ["shortness"])
    with pytest.raises(ValueError, match="a reward function notes 'entropy' by log_metric"):
        make(reward=noting("entropy")).train()


def test_microbatches_change_no_logged_number(make):
    whole = logged(make())
    parts = logged(make(per_device_train_batch_size=2, gradient_accumulation_steps=8))
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    assert (
        sum(row["clip_ratio/region_mean"] > 0 for row in whole)
        == sum(row["value_clip_ratio"] > 0 for row in whole)
        == 2
    )
    for row, twin in zip(whole, parts, strict=True):
        assert row.keys() == twin.keys()
        for name in row.keys() - {"step_time", "tokens_per_second"}:
            assert twin[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), name


def test_extremes_of_several_updates_and_rollouts_are_extremes(make):
    each, (all_of_them,) = logged(make()), logged(make(logging_steps=4))
    for name, extreme in (
        *(("clip_ratio/low_min", min), ("clip_ratio/high_max", max)),
        *(("completions/min_length", min), ("completions/max_length", max)),
    ):
        values = [row[name] for row in each if name in row]
        assert len(values) in (2, 4) and all_of_them[name] == extreme(values), name


def test_a_table_holds_a_rollout_once(make, tmp_path):
    """A log of an update that sampled nothing writes none; of several rollouts since the last log it has the newest."""
    make("each").train()
    make("second", logging_steps=4).train()
    for name, steps in (("each", ["00001", "00003"]), ("second", ["00004"])):
        tables = sorted((tmp_path / name / "completions").iterdir())
        assert [table.stem.removeprefix("completions_") for table in tables] == steps
        assert all(len(pandas.read_parquet(table)) == 16 for table in tables)
    newest = [
        tmp_path / "each/completions/completions_00003.parquet",
        tmp_path / "second" / "completions" / tables[0].name,
    ]
    first, second = (pandas.read_parquet(path)["completion"].tolist() for path in newest)
    assert first == second


def test_evaluations_on_several_data_sets_are_told_apart(make, tmp_path):
    sets = {"few": Dataset.from_dict({"prompt": PROMPTS[:3]}), "more": Dataset.from_dict({"prompt": PROMPTS[3:8]})}
    trainer = make(eval_dataset=sets, eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=2)
    trainer.train()
    rows = {name: row for name in sets for row in trainer.state.log_history if f"eval_{name}_reward" in row}
    for name, data in sets.items():
        table = pandas.read_parquet(tmp_path / "run" / "eval_completions" / name / "completions_00004.parquet")
        assert sorted(table["prompt"]) == sorted(data["prompt"])
        assert rows[name][f"eval_{name}_rewards/shortness/mean"] == pytest.approx(table["shortness"].mean())
        assert not any(key.startswith("eval_rewards") or key == "eval_reward" for key in rows[name])
        alone = trainer.evaluate(data)  # under its own name
        assert alone["eval_reward"] == pytest.approx(rows[name][f"eval_{name}_reward"], abs=1e-6)
    assert rows["few"] is not rows["more"]
    assert trainer.evaluate(sets["few"], metric_key_prefix="test")["test_reward"] <= 0


def test_the_best_checkpoint_is_chosen_by_one_of_several_data_sets(make):
    sets = {"few": Dataset.from_dict({"prompt": PROMPTS[:3]})}
    settings = {"eval_strategy": "steps", "eval_steps": 4, "lr_scheduler_type": "greedy"}
    with pytest.raises(ValueError, match="unknown metric_for_best_model 'reward'; known: few_"):
        make(eval_dataset=sets, metric_for_best_model="eval_reward", **settings)
    assert make(eval_dataset=sets, metric_for_best_model="eval_few_reward", **settings)
