"""An evaluation of PPO: its numbers are of all its rows, its completions stay apart, its record has every row."""

from __future__ import annotations

import json

import pandas
import pytest
import torch

from rlhf_lines.stages import run_stage
from rlhf_lines.train.advantages import explained_variance, value_loss
from rlhf_lines.train.evaluation import FOLDER, completion_rows, evaluation_metrics, metric_names
from tests.tiny import WORDS


def test_numbers_are_those_of_all_tokens_and_completions_at_once():
    """Against the same numbers from whole matrices, as training computes them."""
    generator = torch.Generator().manual_seed(0)
    returns, values, advantages, entropies = torch.randn(4, 5, 3, dtype=torch.float64, generator=generator).unbind(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    scores, rewards, kl = torch.randn(3, 5, dtype=torch.float64, generator=generator).unbind(0)
    raw = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    ends = torch.tensor([False, True, True, False, True])

    def rows(of: slice):
        per_token = {"returns": returns, "values": values, "advantages": advantages, "entropies": entropies}
        return completion_rows(
            scores[of], rewards[of], kl[of], mask[of], ends=ends[of], terminated=ends[of],
            **{name: x[of] for name, x in per_token.items()},
        )  # fmt: skip

    batches = torch.cat([rows(slice(0, 2)), rows(slice(2, 5))])
    found = evaluation_metrics(batches, raw, ["a", "b"], vf_coef=0.1, whitened=False)
    lost = value_loss(values, values, returns, 1.0)[mask.bool()].mean()
    expected = {
        "loss": 0.1 * lost - advantages[mask.bool()].mean(),
        **{"reward": scores.mean(), "reward_std": scores.std(), "kl": kl.mean(), "reward_minus_kl": rewards.mean()},
        **{"value_loss": lost, "explained_variance": explained_variance(values, returns, mask)},
        **{"entropy": entropies[mask.bool()].mean(), "eos_rate": 3 / 5, "completions/clipped_ratio": 2 / 5},
        **{"completions/mean_length": 2.0, "completions/min_length": 1.0, "completions/max_length": 3.0},
        "completions/mean_terminated_length": (1 + 2 + 1) / 3,
        **{"completions/min_terminated_length": 1.0, "completions/max_terminated_length": 2.0},
        **{f"rewards/{name}/mean": raw[:, i].mean() for i, name in enumerate("ab")},
        **{f"rewards/{name}/std": raw[:, i].std() for i, name in enumerate("ab")},
    }
    assert found == {name: pytest.approx(float(value), abs=1e-12) for name, value in expected.items()}
    whitened = evaluation_metrics(batches, raw, ["a", "b"], vf_coef=0.1, whitened=True)
    assert whitened["loss"] == pytest.approx(0.1 * float(lost), abs=1e-12)


@pytest.fixture
def evaluated(flags, base, write_rows, tmp_path):
    """Return a runner of PPO with 7 held-out prompts, two completions each, and rollouts of 4."""
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS[:4] for y in WORDS[:3]]).parent
    write_rows("data/validation.jsonl", [{"prompt": f"{x} a b"} for x in WORDS[:7]])

    def run(name, **changes):
        settings = {
            **{
                "model_name_or_path": base,
                "dataset_name": data,
                "rewards": "rule:length",
                "output_dir": tmp_path / name,
            },
            **{"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "learning_rate": 1e-2},
            **{"per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 4, "max_completion_length": 4},
            **{"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
            **{"num_generations_eval": 2, "whiten_advantages": False},
        }
        out = run_stage("ppo", flags(**{**settings, **changes}))
        return out, json.loads((out / "rlhf_lines.json").read_text())["history"]

    return run


def test_an_evaluation_does_not_depend_on_its_batches_and_is_recorded(evaluated):
    """14 completions: batches of 4 leave two for the last one, and one of 14 is larger than a rollout."""
    (small, history), (_, other) = (evaluated(f"by{size}", per_device_eval_batch_size=size) for size in (4, 14))
    rows, of_other = ([row for row in rows if "eval_reward" in row] for rows in (history, other))
    assert [row["step"] for row in rows] == [row["step"] for row in of_other] == [0, 2, 4]
    timed = {
        name
        for row in rows
        for name in row
        if not name.startswith("eval_") or name.endswith(("runtime", "_per_second"))
    }
    for row, twin in zip(rows, of_other, strict=True):
        assert row.keys() == twin.keys()
        for name in row.keys() - timed:
            assert row[name] == pytest.approx(twin[name], abs=1e-5), name
    assert {f"eval_{name}" for name in metric_names(["length"])} == {
        name for name in rows[0] if "eval_" in name
    } - timed
    assert rows[0]["eval_kl"] == pytest.approx(0, abs=1e-5), "before the first update the policy is the SFT model"

    # Every update is there, also those that sampled nothing, and only these move away from the sampler.
    updates = [row for row in history if "update_kl" in row]
    assert [row["step"] for row in updates] == [1, 2, 3, 4]
    assert ["reward" in row for row in updates] == [True, False, True, False]
    assert [row["update_kl"] > 1e-6 for row in updates] == [False, True, False, True]
    # A row a step: the evaluation before training has one of its own, the others stand beside what was trained there.
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4] and "train_runtime" in history[-1]

    tables = {path.name: pandas.read_parquet(path) for path in sorted((small / FOLDER).iterdir())}
    assert list(tables) == ["completions_00000.parquet", "completions_00002.parquet", "completions_00004.parquet"]
    for row, table in zip(rows, tables.values(), strict=True):
        assert len(table) == 14 and set(table["prompt"].value_counts()) == {2}
        assert table["length"].mean() == pytest.approx(row["eval_rewards/length/mean"], abs=1e-5)
        assert table["kl"].mean() == pytest.approx(row["eval_kl"], abs=1e-5)
    pairs = tables["completions_00000.parquet"].groupby("prompt")["completion"].nunique()
    assert pairs.max() == 2, "the two completions of a prompt have noise of their own"
    of_training = {path.stem[-1]: pandas.read_parquet(path) for path in (small / "completions").iterdir()}
    assert sorted(of_training) == ["1", "3"], "each rollout stands once, at the first log after it"
    of_training = of_training["1"]
    assert len(of_training) == 4 and not of_training["prompt"].str.contains("a b", regex=False).all()
