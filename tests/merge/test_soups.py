"""Recipes for the weights of a linear merge."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec, apply_lines, greedy_soup, merge_residuals, metric_weights, uniform_soup, wise_ft
from rlhf_lines.merge.soups import checkpoint_weights
from tests.merge.reference import CASES, FOLDER


def theta(spec: MergeSpec, policies: list[str]) -> dict[str, torch.Tensor]:
    """The merged weights of policies of the reference model."""
    base = load_file(FOLDER / "model_base.safetensors")
    residuals = []
    for policy in policies:
        tensors = load_file(FOLDER / f"{policy}.safetensors")
        residuals.append({name: tensors[name] - base[name] for name in base})
    merged = apply_lines(merge_residuals(residuals, weights=spec.weights), spec.alpha, spec.beta)
    return {name: base[name] + merged[name] for name in base}


@pytest.mark.parametrize(
    ("case", "spec", "policies"),
    [
        ("uniform_soup_n3", uniform_soup(3), ["model_ft0", "model_ft1", "model_ft2"]),
        ("wise_ft_a0.3", wise_ft(0.3), ["model_ft0"]),
    ],
)
def test_soups_of_the_reference_codes(case, spec, policies):
    expected = load_file(FOLDER / f"{case}.safetensors")
    got = theta(spec, policies)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, **CASES[case]["tol"])


def test_greedy_soup_of_the_reference_code():
    """72 models of 8 numbers, scored by 1 / (1 + squared distance to a target)."""
    data = load_file(FOLDER / "greedy_soup_72.safetensors")
    tried = []

    def evaluate(weights):
        tried.append(weights)
        soup = torch.tensor(weights, dtype=torch.float64) @ data["pool"]
        return 1 / (1 + (soup - data["target"]).square().sum().item())

    spec = greedy_soup(data["scores"].tolist(), evaluate)
    chosen = data["ingredients"].tolist()
    assert spec == MergeSpec("linear", tuple(1 / len(chosen) if k in chosen else 0.0 for k in range(72)))
    soup = torch.tensor(spec.weights, dtype=torch.float64) @ data["pool"]
    torch.testing.assert_close(soup, data["greedy_soup"], **CASES["greedy_soup_72"]["tol"])
    # Tried by descending score, each beside those chosen so far.
    assert len(tried) == 71
    order = data["scores"].argsort(descending=True).tolist()
    assert [k for k in range(72) if tried[0][k]] == sorted(order[:2])


def test_greedy_soup_keeps_only_what_is_strictly_better():
    assert greedy_soup([1.0, 3.0, 2.0], lambda weights: 3.0).weights == (0.0, 1.0, 0.0)
    assert greedy_soup([1.0, 3.0, 2.0], lambda weights: 3.0 + len([w for w in weights if w])).weights == (1 / 3,) * 3
    assert greedy_soup([2.0, 2.0], lambda weights: 0.0).weights == (1.0, 0.0)
    assert greedy_soup([-1.0], lambda weights: 1 / 0).weights == (1.0,)


@pytest.mark.parametrize(
    ("values", "power", "lower_is_better", "expected"),
    [
        ((100, 200, 300), 1.0, False, (1 / 6, 2 / 6, 3 / 6)),
        ((100, 200), 2.0, False, (1 / 5, 4 / 5)),
        ((0.5, 1.0), 1.0, True, (2 / 3, 1 / 3)),
        ((0.5, 1.0), 3.0, True, (8 / 9, 1 / 9)),
        ((0.5, 1.0, 7.0), 0.0, True, (1 / 3, 1 / 3, 1 / 3)),
        ((7.0,), 1.0, True, (1.0,)),
        ((1e300, 1e299), 1.0, False, (10 / 11, 1 / 11)),
        ((1.0, 10.0), 1000.0, False, (0.0, 1.0)),
    ],
)
def test_metric_weights_by_hand(values, power, lower_is_better, expected):
    got = metric_weights(values, power=power, lower_is_better=lower_is_better)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert math.fsum(got) == pytest.approx(1, abs=1e-15)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="count is 0, expected at least one policy"):
        uniform_soup(0)
    with pytest.raises(ValueError, match="scores is empty"):
        greedy_soup([], lambda weights: 0.0)
    with pytest.raises(ValueError, match=r"scores\[1\] is nan, expected a finite number"):
        greedy_soup([1.0, math.nan], lambda weights: 0.0)
    with pytest.raises(ValueError, match="values is empty"):
        metric_weights([], lower_is_better=True)
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"checkpoint 2 is {value:g}, expected a positive finite number"):
            metric_weights([1.0, value], lower_is_better=True)
    with pytest.raises(ValueError, match="power is inf"):
        metric_weights([1.0], power=math.inf, lower_is_better=True)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that makes a checkpoint folder with a trainer state."""

    def make(step, losses=(), **state):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = [{"loss": loss, "step": k} for k, loss in enumerate(losses, start=1)] + [{"eval_loss": 9.0}]
        content = {"global_step": step, "log_history": history, **state}
        (folder / "trainer_state.json").write_text(json.dumps(content))
        return folder

    return make


def test_later_steps_and_lower_losses_count_more(checkpoint):
    folders = [checkpoint(10, [3.0, 2.0]), checkpoint(30, [3.0, 2.0, 0.5])]
    assert checkpoint_weights(folders, "step") == pytest.approx((0.25, 0.75))
    assert checkpoint_weights(folders, "step", power=2) == pytest.approx((0.1, 0.9))
    assert checkpoint_weights(folders, "loss") == pytest.approx((0.2, 0.8))
    assert checkpoint_weights(folders, "loss", power=0) == pytest.approx((0.5, 0.5))


def test_reads_what_the_trainer_of_transformers_writes(sft, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    settings = {"max_steps": 3, "save_steps": 1, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 4
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, **settings)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(sft), arguments, train_dataset=rows)
    trainer.train()
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 3)]
    assert checkpoint_weights(folders, "step") == pytest.approx((0.25, 0.75))
    first, _, last = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert checkpoint_weights(folders, "loss") == pytest.approx((last / (first + last), first / (first + last)))


def test_what_the_trainer_did_not_write_is_named(checkpoint, tmp_path):
    folders = [checkpoint(1, [2.0]), checkpoint(2, [-0.5]), checkpoint(3)]
    with pytest.raises(ValueError, match="unknown weights_by 'steps'; known: loss, step; did you mean 'step'"):
        checkpoint_weights(folders, "steps")
    with pytest.raises(
        ValueError, match=r"checkpoint-2' has loss -0.5 .*the loss of PPO may have any sign.*weights_by s"
    ):
        checkpoint_weights(folders, "loss")
    with pytest.raises(ValueError, match=r"checkpoint-3' has loss None in trainer_state.json, expected a positive num"):
        checkpoint_weights([folders[0], folders[2]], "loss")
    with pytest.raises(ValueError, match=r"checkpoint-0' has step 0 .* use --weights_by loss or --weights"):
        checkpoint_weights([checkpoint(0)], "step")
    (tmp_path / "policy").mkdir()
    with pytest.raises(FileNotFoundError, match=r"policy' has no trainer_state.json; weights_by needs the checkpoint"):
        checkpoint_weights([tmp_path / "policy"], "step")
