"""PPOTrainer against independent forwards of unpadded sequences and the formulas in plain double precision."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer

from reward_models import FunctionReward
from rlhf_lines.artifact import read_record
from rlhf_lines.merge import checkpoint_sha256
from rlhf_lines.stages import run_stage
from rlhf_lines.train import ppo_trainer
from rlhf_lines.train.between_rollouts import BetweenRollouts
from rlhf_lines.train.card import OwnCard
from rlhf_lines.train.checkpoints import WholeCheckpoints
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import STATE, VALUE_HEAD, PPOTrainer
from tests import tiny
from tests.tiny import QUIET, WORDS


EOS = 1
PROMPTS = ["a", "b c d", "e f", "g h i j a b", "c c", "d", "j i h g", "f a"]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}


def count_a(prompts, completions):
    return [completion.split().count("a") for completion in completions]


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


@pytest.fixture
def make_trainer(tmp_path, llama, tokenizer):
    """Return a maker of trainers on the tiny Llama."""

    def make(*functions, model=None, prompts=PROMPTS, lora=LORA, **settings):
        defaults = {"per_device_train_batch_size": len(PROMPTS), "max_completion_length": 6, "max_grad_norm": 0.0}
        args = PPOConfig(output_dir=str(tmp_path / "trainer"), **{**QUIET, **defaults, **settings})
        return PPOTrainer(
            llama() if model is None else model,
            [f if hasattr(f, "score") else FunctionReward(f) for f in functions or (count_a,)],
            args,
            peft_config=LoraConfig(**lora),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
        )

    return make


def randomise(trainer, *, seed=1, std=0.1):
    """Give the adapter and the value head random weights, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name or "value_head" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.0 if "value" in name else std))
    return trainer


def roll_out(trainer, prompts=PROMPTS):
    torch.manual_seed(3)
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])


class Independent:
    """The same policy, reference and value head in float64, rebuilt by PEFT on a second copy of the SFT model."""

    def __init__(self, trainer, sft):
        self.policy = get_peft_model(sft, LoraConfig(**LORA), autocast_adapter_dtype=False).double().eval()
        state = {name: tensor.double() for name, tensor in get_peft_model_state_dict(trainer.model).items()}
        report = set_peft_model_state_dict(self.policy, state)
        assert not report.unexpected_keys
        self.head = torch.nn.Linear(16, 1, dtype=torch.float64)
        self.head.load_state_dict({k: v.double() for k, v in trainer.model.value_head.state_dict().items()})
        self.temperature = trainer.args.temperature

    def forward(self, prompt_ids, completion_ids):
        """Return log-probabilities and values of the tokens of one completion, and reference log-probabilities."""
        ids = torch.tensor([prompt_ids + completion_ids])
        states = slice(len(prompt_ids) - 1, -1)  # the state in which token t is chosen ends at token t - 1
        chosen = torch.tensor(completion_ids).unsqueeze(1)

        def logprobs(output):
            logits = output.logits[0, states] / self.temperature
            return logits.log_softmax(-1).gather(1, chosen).squeeze(1)

        output = self.policy(ids, output_hidden_states=True)
        with torch.no_grad(), self.policy.disable_adapter():
            reference = logprobs(self.policy(ids))
        return logprobs(output), self.head(output.hidden_states[-1][0, states]).squeeze(1), reference


def unpadded(rollout):
    """Return (prompt ids, completion ids) of every row, without padding."""
    for row in range(len(rollout["prompt_ids"])):
        yield tuple(
            rollout[f"{part}_ids"][row][rollout[f"{part}_mask"][row].bool()].tolist()
            for part in ("prompt", "completion")
        )


def assert_rows(padded, rows, tolerance):
    """Assert that a padded tensor holds the given rows of different lengths."""
    assert len(padded) == len(rows)
    for got, want in zip(padded, rows, strict=True):
        torch.testing.assert_close(got[: len(want)].double(), want.detach().double(), rtol=0, atol=tolerance)


# --- what PPOTrainer relies on in TRL


SEAM = {
    "_get_per_token_logps_and_entropies": (
        "model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss pixel_values "
        "image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids "
        "mm_token_type_ids image_position_ids"
    ),
    "_generate_and_score_completions": "inputs",
    "_calculate_rewards": "inputs prompts completions completion_ids_list",
    "_compute_loss": "model inputs",
    "_generate": "prompts",
    "_generate_single_turn": "prompt_ids images multimodal_fields num_generations has_tool_images",
    "_tokenize_prompts": "prompts",
    "_prepare_inputs": "generation_batch",
    "_get_train_sampler": "dataset",
    "training_step": "model inputs num_items_in_batch",
    "_save": "output_dir state_dict",
    "_save_checkpoint": "model trial",
    "_get_output_dir": "trial",
    "_run_epoch": (
        "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval start_time "
        "resume_from_checkpoint epochs_trained steps_trained_in_current_epoch"
    ),
    "_maybe_log_save_evaluate": "tr_loss grad_norm model trial epoch ignore_keys_for_eval start_time learning_rate",
    "_finalize_training": "trial num_train_samples start_time",
    "_evaluate": "trial ignore_keys_for_eval skip_scheduler",
    "_load_from_checkpoint": "resume_from_checkpoint model",
    "_load_optimizer_and_scheduler": "checkpoint",
    "create_optimizer": "model",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "prediction_step": "model inputs prediction_loss_only ignore_keys",
    "log": "logs start_time",
    "create_model_card": "model_name dataset_name tags",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
}
CALLED = {"compute_loss", "_tokenize_prompts"}  # and not overridden


@pytest.mark.parametrize("method", SEAM)
def test_the_methods_of_grpo_trainer_are_as_expected(method):
    function = inspect.unwrap(getattr(GRPOTrainer, method))
    assert list(inspect.signature(function).parameters) == ["self", *SEAM[method].split()]


def test_ppo_trainer_overrides_these_methods_and_no_other():
    """A helper of PPOTrainer that TRL starts to use the name of would show here."""
    members = {**vars(BetweenRollouts), **vars(WholeCheckpoints), **vars(OwnCard), **vars(PPOTrainer)}
    own = {name for name, member in members.items() if inspect.isfunction(member)}
    assert own & set(dir(GRPOTrainer)) == {"__init__", *SEAM} - CALLED
    attributes = {name for name in members.keys() - own if not name.startswith("__")}
    assert attributes == {"_tag_names", "_name", "_rates", "_writes_checkpoint", "_rollout_ends", "_saves_later"}
    assert attributes & set(dir(GRPOTrainer)) == {"_tag_names", "_name"}


def test_what_a_turn_of_generation_returns(make_trainer, tokenizer):
    """PPOTrainer's own rollouts take the place of GRPOTrainer's: both return lists of tokens."""
    trainer = make_trainer()
    trainer.model.train()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    for generate in (PPOTrainer._generate_single_turn, GRPOTrainer._generate_single_turn):
        completions, logprobs = generate(trainer, ids, None, {}, 1)
        assert logprobs is None and len(completions) == len(PROMPTS)
        for completion in completions:
            assert 1 <= len(completion) <= 6 and all(isinstance(token, int) for token in completion)
            assert EOS not in completion[:-1] and (len(completion) == 6 or completion[-1] == EOS)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_the_keys_of_a_rollout(make_trainer, num_iterations):
    trainer = make_trainer(num_iterations=num_iterations)
    trainer.model.train()
    rollout = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": prompt} for prompt in PROMPTS])
    keys = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"}
    # GRPO needs no old log-probabilities where every rollout is used for one update.
    assert set(rollout) == (keys if num_iterations == 1 else keys | {"old_per_token_logps"})
    assert rollout["advantages"].shape == (8,)
    assert rollout["num_items_in_batch"] == rollout["completion_mask"].sum()
    own = roll_out(trainer)
    assert set(own) == keys | {"old_per_token_logps", "returns", "old_values"}
    for key in ("advantages", "returns", "old_values", "old_per_token_logps"):
        assert own[key].shape == own["completion_ids"].shape
        assert not own[key].requires_grad


def test_prompts_are_padded_on_the_left_and_completions_on_the_right(make_trainer, tokenizer):
    rollout = roll_out(make_trainer())
    assert {len(completion) for _, completion in unpadded(rollout)} > {6}, "the seed must give different lengths"
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt)["input_ids"]
        assert rollout["prompt_ids"][row, -len(ids) :].tolist() == ids
        mask = rollout["completion_mask"][row].tolist()
        assert mask == sorted(mask, reverse=True) and mask[0] == 1


# --- values and log-probabilities


@pytest.mark.parametrize("batch_size", [None, 3, 1])
def test_values_are_those_of_the_state_before_each_token(make_trainer, llama, batch_size):
    trainer = randomise(make_trainer())
    rollout = roll_out(trainer)
    independent = Independent(trainer, llama())
    trainer._values = None
    with torch.no_grad():
        trainer._get_per_token_logps_and_entropies(trainer.model, *trainer._sequences(rollout), batch_size=batch_size)
    expected = [independent.forward(*ids)[1] for ids in unpadded(rollout)]
    assert torch.cat(expected).std() > 0.3
    assert_rows(trainer._values, expected, 1e-5)
    assert_rows(rollout["old_values"], expected, 1e-5)
    assert (rollout["old_values"][rollout["completion_mask"] == 0] == 0).all()


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_are_those_of_policy_and_sft_model(make_trainer, llama, temperature, num_iterations):
    trainer = randomise(make_trainer(temperature=temperature, num_iterations=num_iterations))
    rollout = roll_out(trainer)
    independent = Independent(trainer, llama())
    policy, _, reference = zip(*(independent.forward(*ids) for ids in unpadded(rollout)), strict=True)
    assert max((p - r).abs().max() for p, r in zip(policy, reference, strict=True)) > 0.1
    assert_rows(rollout["old_per_token_logps"], policy, 1e-5)
    assert_rows(trainer._reference_logprobs(rollout), reference, 1e-5)
    # The reference is the untouched SFT model itself, not only PEFT with its adapter off.
    sft = llama().double()
    for prompt_ids, completion_ids in unpadded(rollout):
        logits = sft(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1] / temperature
        own = logits.log_softmax(-1)[range(len(completion_ids)), completion_ids]
        torch.testing.assert_close(own, independent.forward(prompt_ids, completion_ids)[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "readings"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_only_coarse_numbers_of_the_policy_are_read_again(make_trainer, llama, dtype, readings):
    trainer, widths = make_trainer(model=llama().to(dtype)), []
    trainer._trunk.register_forward_hook(lambda module, inputs, output: widths.append(output[0].shape[1]))
    rollout = roll_out(trainer)
    whole = rollout["prompt_ids"].shape[1] + rollout["completion_ids"].shape[1]
    assert widths.count(whole) == readings  # of the reference, and perhaps of the policy


def test_the_reference_forward_leaves_values_and_adapter_as_they_were(make_trainer):
    trainer = randomise(make_trainer())
    rollout = roll_out(trainer)
    with torch.no_grad():
        before = trainer._get_per_token_logps_and_entropies(trainer.model, *trainer._sequences(rollout))[0]
        values = trainer._values
        trainer._reference_logprobs(rollout)
        assert trainer._values is values
        after = trainer._get_per_token_logps_and_entropies(trainer.model, *trainer._sequences(rollout))[0]
    assert torch.equal(before, after)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "value_head" in name for name in trained)


# --- advantages and returns


def expected_targets(trainer, rollout, independent, scores):
    """Return advantages and returns of every row, and sums of kl and reward per row, from the formulas."""
    args = trainer.args
    advantages, returns, kls, rewards = [], [], [], []
    for (prompt_ids, completion_ids), score in zip(unpadded(rollout), scores, strict=True):
        with torch.no_grad():
            logprobs, values, reference = (x.tolist() for x in independent.forward(prompt_ids, completion_ids))
        difference = [p - q for p, q in zip(logprobs, reference, strict=True)]
        kl = difference if args.kl_estimator == "k1" else [math.exp(-d) - 1 + d for d in difference]
        if completion_ids[-1] != EOS:
            score -= args.missing_eos_penalty or 0.0
        reward = [-args.kl_coef * k for k in kl]
        reward[-1] += score
        values.append(0.0)
        row, following = [], 0.0
        for t in reversed(range(len(completion_ids))):
            following = reward[t] + args.gamma * values[t + 1] - values[t] + args.gamma * args.lam * following
            row.insert(0, following)
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, values[:-1], strict=True)])
        kls.append(math.fsum(kl))
        rewards.append(math.fsum(reward))
    if args.whiten_advantages:
        tokens = [a for row in advantages for a in row]
        mean = math.fsum(tokens) / len(tokens)
        deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in tokens) / len(tokens) + 1e-8)
        advantages = [[(a - mean) / deviation for a in row] for row in advantages]
    return [torch.tensor(row) for row in advantages], [torch.tensor(row) for row in returns], kls, rewards


@pytest.mark.parametrize(
    "settings",
    [
        {"whiten_advantages": True},
        {"whiten_advantages": False},
        {"whiten_advantages": False, "missing_eos_penalty": 2.5, "gamma": 0.9, "lam": 0.8},
        {"whiten_advantages": False, "kl_estimator": "k3", "kl_coef": 0.7, "temperature": 1.4},
        {"whiten_advantages": True, "num_generations": 4, "num_iterations": 1, "missing_eos_penalty": 1.0},
        {"whiten_advantages": True, "steps_per_generation": 4, "per_device_train_batch_size": 2},
    ],
    ids=["whitened", "plain", "penalty", "k3", "groups", "microbatches"],
)
def test_advantages_and_returns_follow_the_formulas(make_trainer, llama, tokenizer, settings):
    weights = [0.5, -2.0]
    trainer = randomise(make_trainer(count_a, shortness, reward_weights=weights, **settings))
    rollout = roll_out(trainer)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in unpadded(rollout)]
    scores = [0.5 * text.split().count("a") + 2.0 * len(text.split()) for text in texts]
    assert {ids[-1] == EOS for _, ids in unpadded(rollout)} == {True, False}, "the seed must give both kinds of ends"
    advantages, returns, kls, rewards = expected_targets(trainer, rollout, Independent(trainer, llama()), scores)
    assert_rows(rollout["advantages"], advantages, 2e-5)
    assert_rows(rollout["returns"], returns, 2e-5)
    for key in ("advantages", "returns", "old_values"):
        assert (rollout[key][rollout["completion_mask"] == 0] == 0).all()
    metrics = trainer._metrics["train"]
    assert metrics["kl"] == [pytest.approx(sum(kls) / 8, abs=1e-5)]
    assert metrics["reward_minus_kl"] == [pytest.approx(sum(rewards) / 8, abs=1e-5)]


def test_the_penalty_falls_on_completions_without_end_token_only(make_trainer):
    plain = roll_out(make_trainer(lam=1.0, whiten_advantages=False))
    penalised = roll_out(make_trainer(lam=1.0, whiten_advantages=False, missing_eos_penalty=3.0))
    assert torch.equal(plain["completion_ids"], penalised["completion_ids"])
    cut = torch.tensor([ids[-1] != EOS for _, ids in unpadded(plain)])
    assert 0 < cut.sum() < len(cut)
    # With gamma = lam = 1 every token of a completion returns the sum of what follows: 3 less where it was cut.
    expected = plain["returns"] - 3.0 * cut.unsqueeze(1) * plain["completion_mask"]
    torch.testing.assert_close(penalised["returns"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_fresh_adapter_has_no_kl_and_the_head_predicts_zero(make_trainer, estimator):
    trainer = make_trainer(kl_estimator=estimator, kl_coef=10.0, whiten_advantages=False, lam=1.0)
    rollout = roll_out(trainer)
    assert trainer._metrics["train"]["kl"] == pytest.approx([0.0], abs=1e-5)
    assert (rollout["old_values"] == 0).all()
    # No cost, no value: what returns is the score.
    expected = trainer._scores * rollout["completion_mask"]
    for name in (
        "returns",
        "advantages",
    ):  # but for rounding: the policy was read token by token, the SFT model at once
        torch.testing.assert_close(rollout[name], expected, rtol=0, atol=1e-4)


# --- loss and gradient


class Gradients(TrainerCallback):
    """Keeps the gradients of every update."""

    def __init__(self):
        self.updates = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.updates.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


def train_on(trainer, rollout):
    """Train on a given rollout and return the gradients of every update."""
    trainer._generate_and_score_completions = lambda inputs: {key: x.clone() for key, x in rollout.items()}
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.updates


def independent_loss(independent, rollout, args, tokens):
    """Return sum over tokens of [clipped policy loss + vf_coef * value loss] / tokens."""
    total, clipped = 0.0, 0
    for row, ids in enumerate(unpadded(rollout)):
        logprobs, values, _ = independent.forward(*ids)
        old_logprobs, advantages, returns, old_values = (
            rollout[key][row, : len(ids[1])].double()
            for key in ("old_per_token_logps", "advantages", "returns", "old_values")
        )
        ratio = torch.exp(logprobs - old_logprobs)
        bounded = ratio.clamp(1 - args.epsilon, 1 + args.epsilon)
        policy = -torch.minimum(ratio * advantages, bounded * advantages)
        clipped += int((ratio * advantages > bounded * advantages).sum())
        near = old_values + (values - old_values).clamp(-args.value_clip_range, args.value_clip_range)
        value = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        total = total + (policy + args.vf_coef * value).sum()
    return total / tokens, clipped


UPDATE = {"num_iterations": 1, "max_steps": 1, "vf_coef": 0.3, "epsilon": 0.1, "value_clip_range": 0.5}


@pytest.fixture
def moved(make_trainer):
    """Return a maker of trainers whose policy has moved since ``rollout``, and that rollout."""
    rollout = roll_out(randomise(make_trainer(count_a, **UPDATE), seed=1))

    def make(**settings):
        return randomise(make_trainer(count_a, **{**UPDATE, **settings}), seed=2)

    return make, rollout


def test_the_loss_is_the_clipped_policy_loss_and_the_value_loss(moved, llama):
    make, rollout = moved
    trainer = make()
    tokens = int(rollout["completion_mask"].sum())
    expected, clipped = independent_loss(Independent(trainer, llama()), rollout, trainer.args, tokens)
    assert 0 < clipped < tokens
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, rollout).item() == pytest.approx(expected.item(), abs=1e-5)
    without = make(vf_coef=0.0)
    without.model.train()
    without.current_gradient_accumulation_steps = 1
    policy_loss = without._compute_loss(without.model, rollout).item()
    value_loss = trainer._metrics["train"]["value_loss"][0]
    assert expected.item() == pytest.approx(policy_loss + 0.3 * value_loss, abs=1e-5)


def test_the_gradient_of_an_update_does_not_depend_on_microbatches(moved, llama):
    make, rollout = moved
    reference = make()
    independent = Independent(reference, llama())
    tokens = int(rollout["completion_mask"].sum())
    independent_loss(independent, rollout, reference.args, tokens)[0].backward()
    expected = {
        name.replace(".default.", "."): parameter.grad
        for name, parameter in independent.policy.named_parameters()
        if parameter.grad is not None
    } | {f"value_head.{name}": parameter.grad for name, parameter in independent.head.named_parameters()}
    for batch_size, steps in ((8, 1), (2, 4), (1, 8)):
        trainer = make(per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps)
        (gradients,) = train_on(trainer, rollout)
        assert len(gradients) == 2 * 2 * 7 + 2  # A and B of 7 matrices in 2 layers, and the value head
        for name, gradient in gradients.items():
            want = expected[name.replace(".default.", ".")]
            assert want.abs().max() > 1e-4
            torch.testing.assert_close(
                gradient.double(), want, rtol=1e-4, atol=1e-5, msg=f"{name} {batch_size}x{steps}"
            )


def test_gradient_checkpointing_changes_no_gradient(moved):
    make, rollout = moved
    (plain,) = train_on(make(), rollout)
    checkpointed = make(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    (gradients,) = train_on(checkpointed, rollout)
    assert checkpointed.model.is_gradient_checkpointing
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-6)


def test_values_stay_in_single_precision_where_the_model_is_in_half(make_trainer, llama):
    trainer = randomise(make_trainer(bf16=True, model=llama().bfloat16()))
    rollout = roll_out(trainer)
    assert trainer.model.value_head.weight.dtype == torch.float32
    for key in ("old_values", "returns", "advantages"):
        assert rollout[key].dtype == torch.float32
    # bfloat16 resolves 8 bits: the values would all be multiples of 2^-8 of their size.
    values = rollout["old_values"][rollout["completion_mask"].bool()]
    assert (values != values.bfloat16().float()).float().mean() > 0.9


def test_several_updates_share_the_divisor_of_the_rollout(moved, llama):
    """Two updates of 4 completions: both divide by half of the tokens of the rollout, whatever their own number."""
    make, rollout = moved
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer = make(**settings, max_steps=2, learning_rate=0.0)
    first, second = train_on(trainer, rollout)
    (whole,) = train_on(make(), rollout)
    for name, gradient in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, gradient, rtol=1e-4, atol=1e-5)
    assert any((first[name] - gradient).abs().max() > 1e-3 for name, gradient in whole.items())


# --- training


def test_training_moves_adapter_and_value_head_and_nothing_else(make_trainer, llama, tmp_path):
    trainer = make_trainer(max_steps=4, num_iterations=2, learning_rate=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        changed = not torch.equal(before[name], parameter)
        assert changed == ("lora_" in name or "value_head" in name), name
    for name, parameter in llama().named_parameters():  # the base as it was before PEFT had it
        assert name in {n.removeprefix("base_model.model.").replace(".base_layer", "") for n in before}
        found = [p for n, p in before.items() if n.removeprefix("base_model.model.").replace(".base_layer", "") == name]
        assert torch.equal(found[0], parameter)

    trainer.save_model(str(tmp_path / "saved"))
    adapter = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert len(adapter) == 28 and all("lora_" in name for name in adapter)
    head = load_file(tmp_path / "saved" / VALUE_HEAD)
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {"weight": (1, 16), "bias": (1,)}
    assert all(torch.equal(head[name], trainer.model.value_head.state_dict()[name]) for name in head)
    reloaded = PeftModel.from_pretrained(llama(), tmp_path / "saved").eval()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, trainer.model(input_ids=ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value_learning_rate", [None, 0.05])
def test_the_learning_rate_of_the_value_head(make_trainer, value_learning_rate):
    trainer = make_trainer(
        learning_rate=1e-3,
        value_learning_rate=value_learning_rate,
        weight_decay=0.1,
        max_steps=2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    groups = trainer.optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == 28 + 2  # every parameter once
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            expected = value_learning_rate if "value_head" in name and value_learning_rate else 1e-3
            assert rates[id(parameter)] == expected, name


def test_a_checkpoint_is_resumed_with_its_value_head(make_trainer, tmp_path):
    settings = {"max_steps": 4, "num_iterations": 2, "learning_rate": 1e-2, "value_learning_rate": 0.05}
    settings["prompts"] = PROMPTS * 2  # both rollouts in one epoch: TRL's sampler forgets the epochs before
    first = make_trainer(**settings, save_strategy="steps", save_steps=2)
    first.train()
    checkpoint = tmp_path / "trainer" / "checkpoint-2"
    saved = load_file(checkpoint / VALUE_HEAD)
    assert not torch.equal(saved["weight"], first.model.value_head.weight)

    second = make_trainer(**settings)
    at_start = {}

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            at_start.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
            at_start["step"] = state.global_step

    second.add_callback(Start())
    second.train(resume_from_checkpoint=str(checkpoint))
    assert at_start.pop("step") == 2 and second.state.global_step == 4
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    for name, parameter in at_start.items():
        if "value_head" in name:
            assert torch.equal(parameter, saved[name.removeprefix("value_head.")])
        else:
            assert torch.equal(parameter, adapter[name.replace(".default.", ".")])
    # The rest goes as if nothing had happened: same prompts, same noise, same optimizer state.
    for (name, a), (_, b) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_evaluation_scores_a_whole_data_set(make_trainer, llama, tokenizer):
    trainer = make_trainer(per_device_eval_batch_size=4)
    found = trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS}))
    assert math.isfinite(found["eval_loss"]) and found["eval_kl"] == pytest.approx(0.0, abs=1e-5)
    assert found["eval_reward"] == found["eval_rewards/count_a/mean"] >= 0.0


@pytest.mark.parametrize(
    ("reward", "untrained", "trained"), [(count_a, 0.8, 3.0), (shortness, -3.0, -1.2)], ids=["word", "shortness"]
)
def test_it_learns(make_trainer, llama, reward, untrained, trained):
    torch.manual_seed(0)
    trainer = make_trainer(
        reward,
        prompts=[f"{x} {y}" for x in WORDS for y in WORDS],
        per_device_train_batch_size=64,
        max_steps=100,
        num_iterations=4,
        learning_rate=1e-2,
        value_learning_rate=5e-2,
        value_clip_range=2.0,
        kl_coef=0.01,
        lr_scheduler_type="constant",
        logging_steps=4,
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert rewards[0] < untrained
    assert sum(rewards[-5:]) / 5 > trained


@pytest.fixture
def gpt2(tokenizer):
    """A tiny random GPT-2: absolute positions, and dropout as its config has it by default."""
    model = tiny.gpt2(tokenizer, n_embd=16, n_positions=64, initializer_range=0.5)
    assert model.config.resid_pdrop > 0
    return model


def test_absolute_positions_and_dropout_change_no_probability(make_trainer, gpt2):
    """Left padding must not move the positions of a model that counts them, nor dropout make a policy another one."""
    sft = copy.deepcopy(gpt2).double()
    lora = {**LORA, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    trainer = make_trainer(model=gpt2, lora=lora, num_iterations=2)
    rollout = roll_out(trainer)
    assert (rollout["prompt_mask"] == 0).any()
    assert trainer._metrics["train"]["kl"] == [pytest.approx(0.0, abs=1e-5)]
    for row, (prompt, completion) in enumerate(unpadded(rollout)):
        with torch.no_grad():
            logits = sft(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        got = rollout["old_per_token_logps"][row, : len(completion)].double()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# --- what is refused


class Broken:
    """A reward model that does not check its scores."""

    name = "broken"

    def __init__(self, value):
        self.value = value

    def score(self, prompts, completions):
        return [self.value if prompt == "g h i j a b" else 1.0 for prompt in prompts]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_stops_with_the_prompt(make_trainer, value):
    trainer = make_trainer(Broken(value), max_steps=1)
    with pytest.raises(ValueError, match=f"reward model 'broken' returned {value} .* the prompt 'g h i j a b'"):
        trainer.train()


REFUSED = {
    "num_generations is 0, expected at least 1": {"num_generations": 0},
    "num_generations is None, expected at least 1": {"num_generations": None},
    "beta is 0.1, expected 0 (the KL cost is set by kl_coef)": {"beta": 0.1},
    "kl_estimator is k2, expected k1 or k3": {"kl_estimator": "k2"},
    "kl_coef is -0.1, expected a number >= 0": {"kl_coef": -0.1},
    "kl_coef is nan, expected a number >= 0": {"kl_coef": math.nan},
    "vf_coef is nan, expected a number >= 0": {"vf_coef": math.nan},
    "num_iterations is 0, expected at least 1": {"num_iterations": 0},
    "value_learning_rate is 0.0, expected a positive number": {"value_learning_rate": 0.0},
    "missing_eos_penalty is -1.0, expected a number >= 0": {"missing_eos_penalty": -1.0},
    "multi_objective_aggregation is normalize_then_sum, expected sum_then_normalize (PPO adds weighted scores)": {
        "multi_objective_aggregation": "normalize_then_sum"
    },
    "scale_rewards is group, expected none (advantages are whitened)": {"scale_rewards": "group"},
    "importance_sampling_level is sequence, expected token": {"importance_sampling_level": "sequence"},
    "off_policy_mask_threshold is 0.1, expected none": {"off_policy_mask_threshold": 0.1},
    "gamma is 1.1, expected a number in [0, 1]": {"gamma": 1.1},
    "lam is -0.1, expected a number in [0, 1]": {"lam": -0.1},
    "value_clip_range is 0.0, expected a positive number": {"value_clip_range": 0.0},
    "mask_truncated_completions is true, expected false (use missing_eos_penalty)": {
        "mask_truncated_completions": True
    },
    "loss_type is grpo, expected dapo (the mean over tokens)": {"loss_type": "grpo"},
    "save_strategy is best, expected steps, epoch or no": {
        "save_strategy": "best",
        "metric_for_best_model": "reward",
        "eval_strategy": "epoch",
    },
    "gradient_accumulation_steps is 3, expected a divisor or a multiple of 4, the passes of a rollout: no update ends "
    "inside one and begins in another": {
        "gradient_accumulation_steps": 3,
        "steps_per_generation": 2,
        "num_iterations": 2,
    },
    "epsilon is -1.0, expected a positive number": {"epsilon": -1.0},
    "epsilon is nan, expected a positive number": {"epsilon": math.nan},
    "epsilon_high is 0.1, expected a number >= epsilon (0.2)": {"epsilon_high": 0.1},
    "epsilon_high is nan, expected a number >= epsilon (0.2)": {"epsilon_high": math.nan},
    "delta is -1.0, expected a number > 1: it bounds the ratio, which begins at 1": {"delta": -1.0},
    "top_entropy_quantile is 0.0, expected a number in (0, 1]": {"top_entropy_quantile": 0.0},
    "top_entropy_quantile is nan, expected a number in (0, 1]": {"top_entropy_quantile": math.nan},
    "generation_batch_size is 6, expected a multiple of num_generations (4)": {
        "per_device_train_batch_size": 6,
        "num_generations": 4,
    },
    "2 problems: (1) kl_estimator is k2, expected k1 or k3; (2) gamma is 2, expected a number in [0, 1]": {
        "kl_estimator": "k2",
        "gamma": 2,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_are_refused(tmp_path, message):
    with pytest.raises(ValueError) as caught:
        PPOConfig(output_dir=str(tmp_path), **{**QUIET, **REFUSED[message]})
    assert str(caught.value) == message


def test_clips_and_whole_rollouts_are_taken(tmp_path):
    PPOConfig(output_dir=str(tmp_path), **QUIET, epsilon=0.2, epsilon_high=0.2, delta=1.5, top_entropy_quantile=1.0)
    passes = {"steps_per_generation": 2, "num_iterations": 2}
    for steps in (1, 2, 4, 8):
        PPOConfig(output_dir=str(tmp_path), **QUIET, gradient_accumulation_steps=steps, **passes)


@pytest.mark.parametrize(
    ("settings", "rollout"),
    [
        ({"per_device_train_batch_size": 7}, 7),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}, 15),
        ({"per_device_train_batch_size": 3, "steps_per_generation": 3}, 9),
        ({"per_device_train_batch_size": 3, "generation_batch_size": 21}, 21),
        ({"per_device_train_batch_size": 64, "eval_strategy": "steps", "eval_steps": 1}, 64),
        ({"per_device_train_batch_size": 6, "num_generations": 3}, 6),
    ],
)
def test_rollouts_of_any_size(tmp_path, settings, rollout):
    config = PPOConfig(output_dir=str(tmp_path), **QUIET, **settings)
    assert config.generation_batch_size == rollout
    assert config.num_generations == settings.get("num_generations", 1)
    assert config.num_generations_eval is None


def test_an_odd_rollout_of_single_completions_trains(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=3, gradient_accumulation_steps=1, num_iterations=2, max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert len([row for row in trainer.state.log_history if "train_loss" in row]) == 1


@pytest.mark.parametrize(
    ("count", "num_generations", "refused"), [(7, 1, True), (8, 1, False), (1, 4, True), (2, 4, False)]
)
def test_fewer_prompts_than_a_rollout_takes_are_refused(make_trainer, count, num_generations, refused):
    """Trainer says "not a single sample", stops at step 0, and an untrained policy is saved as if it were trained."""
    settings = {"prompts": PROMPTS[:count], "num_generations": num_generations, "max_steps": 2}
    if refused:
        wanted = 8 // num_generations
        with pytest.raises(ValueError, match=f"train_dataset has {count} prompts, but one rollout takes {wanted}"):
            make_trainer(**settings)
    else:
        trainer = make_trainer(**settings)
        trainer.train()
        assert trainer.state.global_step == 2


def test_full_fine_tuning_is_refused(tmp_path, llama, tokenizer):
    with pytest.raises(ValueError, match="peft_config is None, expected a LoraConfig"):
        PPOTrainer(
            llama(),
            [FunctionReward(count_a)],
            PPOConfig(output_dir=str(tmp_path), **QUIET),
            peft_config=None,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer,
        )


# --- the stage


@pytest.fixture
def stage_flags(flags, base, write_rows, tmp_path, monkeypatch):
    """Return a maker of the flags of a small ppo stage; the reward function is in a module of its own."""
    (tmp_path / "tiny_rewards.py").write_text(
        "def letters(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS for y in WORDS[:3]])

    def make(**changes):
        settings = {
            **{"model_name_or_path": base, "output_dir": tmp_path / "out" / "policy", "dataset_name": data.parent},
            **{"rewards": ["tiny_rewards:letters"], "use_peft": True, "lora_r": 2, "lora_alpha": 4},
            **{"lora_target_modules": "all-linear", "per_device_train_batch_size": 4, "num_iterations": 2},
            **{"max_steps": 4, "max_completion_length": 4, "logging_steps": 2, "learning_rate": 1e-2},
        }
        return flags(**{key: value for key, value in {**settings, **changes}.items() if value is not None})

    return make


def test_the_stage_writes_an_adapter_and_how_it_was_made(stage_flags, base, tmp_path):
    out = run_stage("ppo", stage_flags())
    assert out == tmp_path / "out" / "policy"
    assert {path.name for path in out.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", VALUE_HEAD, STATE, "README.md", "completions"),
        *("tokenizer.json", "tokenizer_config.json", "config.yaml", "rlhf_lines.json"),
    }
    assert sorted(path.name for path in out.parent.iterdir()) == ["policy"]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    card = (out / "README.md").read_text()
    assert "letters | 1 | no |" in card and str(base.name) in card and "GRPO" not in card
    record = read_record(out)
    assert record["stage"] == "ppo" and record["seed"] == 42
    assert record["sft_model"] == str(base) and record["sft_sha256"] == checkpoint_sha256(base)
    assert [row["step"] for row in record["history"]] == [2, 4] and "train_runtime" in record["history"][-1]
    assert all(math.isfinite(row["reward"]) for row in record["history"])
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert any(bool(p.abs().max() > 0) for name, p in policy.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "down_proj"], "all-linear"])
def test_target_modules_by_name(stage_flags, targets):
    out = run_stage("ppo", stage_flags(lora_target_modules=targets, max_steps=1))
    adapted = {name.split(".")[-3] for name in load_file(out / "adapter_model.safetensors")}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (linear if targets == "all-linear" else set(targets))


def test_the_config_of_the_stage_makes_the_same_policy_again(stage_flags, tmp_path):
    first = run_stage("ppo", stage_flags())
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["rewards"] == ["tiny_rewards:letters"] and config["lora_r"] == 2
    second = run_stage("ppo", ["--config", str(first / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward_weights": [0.5, 0.5]}, ValueError, "reward_weights has 2 values, but rewards has 1"),
        ({"model_name_or_path": "/nowhere/sft"}, FileNotFoundError, "SFT model /nowhere/sft does not exist"),
        ({"rewards": ["/nowhere/judge"]}, FileNotFoundError, "the reward model /nowhere/judge does not exist"),
        ({"use_peft": False}, ValueError, "PPO trains LoRA policies, but use_peft is false"),
        ({"dataset_name": "/nowhere/rows.jsonl"}, FileNotFoundError, "dataset file /nowhere/rows.jsonl does not exist"),
        ({"kl_estimator": "k2"}, ValueError, "kl_estimator is k2, expected k1 or k3"),
        ({"lora_target_modules": ["query"]}, ValueError, "lora_target_modules ['query'] do not fit a llama model"),
    ],
    ids=["weights", "sft", "judge", "peft", "data", "config", "targets"],
)
def test_a_stage_that_fails_leaves_nothing(stage_flags, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        run_stage("ppo", stage_flags(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()
    assert not (tmp_path / "out" / "policy").exists()


def test_a_stage_that_fails_in_training_leaves_nothing(stage_flags, tmp_path):
    (tmp_path / "nan_rewards.py").write_text(
        "def broken(prompts, completions):\n    return [float('nan') if len(prompts) > 1 else 0.0] * len(prompts)\n"
    )
    with pytest.raises(ValueError, match="nan"):
        run_stage("ppo", stage_flags(rewards=["nan_rewards:broken"]))
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_stopped_stage_goes_on_from_its_checkpoint(stage_flags, tmp_path, monkeypatch):
    """The stopped and resumed stage ends with the adapter of one that was not stopped, and keeps no pickle."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    run_stage("ppo", stage_flags(**saving, output_dir=tmp_path / "whole"))
    train = PPOTrainer.training_step

    def stop(trainer, *args, **kwargs):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return train(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage("ppo", stage_flags(**saving, output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    checkpoint = tmp_path / ".out.partial" / "checkpoint-2"
    run_stage("ppo", stage_flags(**saving, output_dir=tmp_path / "out", resume_from_checkpoint=checkpoint))
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.suffix in (".pt", ".pth", ".bin")] == []
    with pytest.raises(FileNotFoundError, match=r"resume_from_checkpoint .*nowhere does not exist"):
        run_stage("ppo", stage_flags(output_dir=tmp_path / "new", resume_from_checkpoint=tmp_path / "nowhere"))


def test_an_existing_folder_is_refused_or_kept_or_replaced(stage_flags, tmp_path):
    out = tmp_path / "out" / "policy"
    out.mkdir(parents=True)
    (out / "precious").write_text("x")
    with pytest.raises(FileExistsError, match=f"output_dir {out} exists"):
        run_stage("ppo", stage_flags())
    assert [path.name for path in out.iterdir()] == ["precious"]
    run_stage("ppo", stage_flags(overwrite=True))
    assert not (out / "precious").exists() and (out / "adapter_model.safetensors").exists()
    finished = (out / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_stage("ppo", stage_flags(resume=True)) == Path(out)
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == finished


def test_fsdp1_is_refused(make_trainer, monkeypatch):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    monkeypatch.setattr("accelerate.state.AcceleratorState.fsdp_plugin", plugin, raising=False)
    with pytest.raises(ValueError, match="FSDP2 only: set fsdp_version: 2"):
        make_trainer()


# --- two readings of one batch


def test_what_draws_noise_after_all_is_refused_before_the_first_update(make_trainer, llama):
    """A module that is noisy in either mode, as no switch of ours reaches."""
    trainer = make_trainer(max_steps=1)
    noise = torch.Generator().manual_seed(0)
    block = trainer.model.get_base_model().model.layers[0].mlp
    block.register_forward_hook(lambda module, args, output: output + torch.randn(output.shape, generator=noise))
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(ValueError) as caught:
        trainer.train()
    assert "log-probabilities in training mode and in evaluation mode are" in str(caught.value)
    assert "PPO cannot train this llama model, which draws noise" in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_what_samples_otherwise_than_it_reads_is_refused(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1)
    sample = ppo_trainer.sample_tokens
    monkeypatch.setattr(
        ppo_trainer, "sample_tokens", lambda *a, **k: (s := sample(*a, **k))._replace(logprobs=s.logprobs - 0.01)
    )
    with pytest.raises(ValueError, match=r"and token by token, with a cache are 0.01 nats apart per token"):
        trainer.train()
