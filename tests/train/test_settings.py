"""Settings of every stage that trains: the machine's own where they are open, one sentence where they are wrong."""

from __future__ import annotations

import pytest
import torch
from trl import ModelConfig

from rlhf_lines import distributed
from rlhf_lines.train import settings
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.settings import PolicyModelConfig, RewardSettings, SFTSettings, check_model, has_bf16, plain


STAGES = (SFTSettings, RewardSettings, PPOConfig)


@pytest.fixture
def machine(monkeypatch):
    """Return a setter of what the CPU says that it can."""

    def be(**capabilities):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return be


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_a_machine_without_a_gpu_trains_on_its_cpu_in_what_it_computes(machine, tmp_path, stage, capabilities, bf16):
    machine(**capabilities)
    args = stage(output_dir=str(tmp_path))
    assert args.use_cpu is True and args.bf16 is bf16
    assert args.chosen["use_cpu"] == "true (no GPU here)"
    what = "bfloat16" if bf16 else "float32, not in bfloat16"
    assert args.chosen["bf16"] == f"{str(bf16).lower()} (this CPU computes in {what})"


def test_what_is_given_is_kept_and_not_told_as_chosen(machine, tmp_path):
    machine(avx512_bf16=True)
    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, per_device_train_batch_size=4, save_steps=8)
    assert args.bf16 is False and args.per_device_train_batch_size == 4 and args.save_steps == 8
    assert args.chosen == {}
    machine(avx2=True)
    assert PPOConfig(output_dir=str(tmp_path), bf16=True).bf16 is True


def test_a_gpu_decides_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert has_bf16(cpu=False) == (False, "this GPU computes in float32, not in bfloat16")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, expected at least 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, expected a number >= 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a number >= 0"),
        ({"logging_steps": float("inf")}, "logging_steps is inf, expected a positive number"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 4294967295"),
        ({"seed": 2**63}, f"seed is {2**63}, expected a whole number from 0 to 4294967295"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1, or -1 to count epochs (num_train_epochs)"),
        ({"num_train_epochs": 0.0}, "num_train_epochs is 0.0, expected a positive number"),
        ({"neftune_noise_alpha": -1.0}, "neftune_noise_alpha is -1.0, expected a number >= 0"),
        ({"fp16": True}, "fp16 is true, expected false, or a GPU: there is none here (a CPU computes in bf16)"),
        ({"do_eval": True}, "do_eval is true, expected its default, or an eval_strategy beside it"),
        ({"eval_on_start": True}, "eval_on_start is true, expected its default, or an eval_strategy beside it"),
        ({"eval_steps": 5}, "eval_steps is 5, expected its default, or an eval_strategy beside it"),
        ({"do_predict": True}, "do_predict is true, expected false: a stage trains, and predicts nothing"),
        ({"deepspeed": "zero.json"}, "deepspeed is zero.json, expected none: deepspeed is not installed"),
        ({"use_liger_kernel": True}, "use_liger_kernel is true, expected false: liger-kernel is not installed"),
        ({"fsdp": "full_shard"}, "fsdp is full_shard, expected none in one process: start several with accelerate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_no_trainer_can_run_is_one_sentence(machine, monkeypatch, tmp_path, stage, changes, sentence):
    machine()
    monkeypatch.setattr(settings, "installed", lambda module: False)
    with pytest.raises(ValueError) as caught:
        stage(output_dir=str(tmp_path), **changes)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "value", "alone", "counts", "beside"),
    [
        ("save_steps", 8, {"save_strategy": "no"}, {}, "save_strategy: steps"),
        ("save_steps", 8, {"save_strategy": "epoch"}, {}, "save_strategy: steps"),
        ("save_total_limit", 2, {"save_strategy": "no"}, {"save_strategy": "epoch"}, "a save_strategy"),
        ("eval_steps", 5, {"eval_strategy": "epoch"}, {"eval_strategy": "steps"}, "eval_strategy: steps"),
        ("logging_steps", 3, {"logging_strategy": "epoch"}, {}, "logging_strategy: steps"),
        ("logging_steps", 3, {"logging_strategy": "no"}, {"eval_strategy": "steps"}, "logging_strategy: steps"),
        ("hub_model_id", "a/b", {}, {"push_to_hub": True}, "push_to_hub: true"),
        ("hub_private_repo", True, {}, {"push_to_hub": True}, "push_to_hub: true"),
        ("per_device_eval_batch_size", 4, {}, {"eval_strategy": "epoch"}, "an eval_strategy"),
        ("eval_delay", 4, {}, {"eval_strategy": "epoch"}, "an eval_strategy"),
    ],
)
def test_a_setting_that_counts_only_beside_another_one_is_told_alone(
    tmp_path, stage, name, value, alone, counts, beside
):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, name: value}
    sentence = f"{name} {plain(value)} has no effect: it counts only with {beside}"
    assert stage(**settings, **alone).without_effect == [sentence]
    assert stage(**settings, **counts).without_effect == []


def test_packing_of_an_evaluation_alone_counts(tmp_path):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "packing_strategy": "wrapped"}
    of_evaluation = {**settings, "eval_packing": True}
    assert SFTSettings(**of_evaluation, eval_strategy="epoch").without_effect == []
    assert SFTSettings(**of_evaluation).without_effect == [
        "eval_packing true has no effect: it counts only with an eval_strategy"
    ]
    assert SFTSettings(**settings).without_effect == [
        "packing_strategy wrapped has no effect: it counts only with packing: true"
    ]


@pytest.mark.parametrize("name", ["save_strategy", "logging_strategy", "eval_strategy"])
@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_no_settings_without_effect(tmp_path, stage, name):
    for strategy in ("no", "epoch", "steps"):
        assert not stage(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: strategy}).without_effect


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"packing": True, "dataset_text_field": "content"},
            "dataset_text_field is content, expected text, the column that is read: rename that of the data",
        ),
        (
            {"dataset_kwargs": '{"skip_prepare_dataset": true}'},
            'dataset_kwargs is {"skip_prepare_dataset": true}, expected none that skips the preparation: rows are '
            "texts, no tokens",
        ),
    ],
)
def test_settings_of_rows_that_sft_cannot_follow_are_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError) as caught:
        SFTSettings(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
    assert str(caught.value) == sentence
    SFTSettings(output_dir=str(tmp_path), use_cpu=True, bf16=False, packing=True, packing_strategy="wrapped")


@pytest.mark.parametrize(
    ("stage", "known", "unknown"),
    [
        (SFTSettings, "mean_token_accuracy", "accuracy"),
        (RewardSettings, "eval_accuracy", "mean_token_accuracy"),
    ],
)
def test_a_metric_that_no_evaluation_measures_is_told_before_the_training(tmp_path, stage, known, unknown):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "eval_strategy": "epoch"}
    assert stage(**settings, metric_for_best_model=known).metric_for_best_model == known
    with pytest.raises(ValueError) as caught:
        stage(**settings, metric_for_best_model=unknown)
    *others, last = stage.metrics
    assert str(caught.value) == f"metric_for_best_model is {unknown}, expected {', '.join(others)} or {last}"


def test_the_schedule_of_ppo_waits_for_a_metric_that_there_is(tmp_path):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "eval_strategy": "epoch"}
    plateau = {**settings, "lr_scheduler_type": "reduce_lr_on_plateau"}
    for metric in (None, "reward", "eval_kl", "rewards/brief/mean"):
        PPOConfig(**plateau, metric_for_best_model=metric).check_metric(["brief"])
    PPOConfig(**settings).check_metric(["brief"])
    with pytest.raises(ValueError, match=r"^unknown metric_for_best_model 'rewards/bref/mean'.*'rewards/brief/mean'"):
        PPOConfig(**plateau, metric_for_best_model="rewards/bref/mean").check_metric(["brief"])


@pytest.mark.parametrize(
    ("config", "given", "sentence"),
    [
        ({"lora_r": 0}, {}, "lora_r is 0, expected at least 1"),
        ({"lora_alpha": 0}, {}, "lora_alpha is 0, expected a positive number"),
        ({"lora_dropout": 1.0}, {}, "lora_dropout is 1.0, expected a number in [0, 1)"),
        ({"lora_task_type": "SEQ_CLS"}, {}, "lora_task_type is SEQ_CLS, expected CAUSAL_LM"),
        (
            {"use_peft": False, "lora_r": 8},
            {"lora_r": 8},
            "lora_r is 8, which counts only with use_peft: true: add that, or use_peft: false",
        ),
        (
            {"use_peft": False, "load_in_8bit": True},
            {},
            "load_in_8bit is true, but use_peft is false: quantised weights are not trained, set use_peft: true",
        ),
        (
            {"use_bnb_nested_quant": True},
            {"use_bnb_nested_quant": True},
            "use_bnb_nested_quant is True, but load_in_4bit is false, so it has no effect",
        ),
    ],
)
def test_settings_of_lora_that_mean_nothing_are_refused(config, given, sentence):
    with pytest.raises(ValueError) as caught:
        check_model(ModelConfig(**{"use_peft": True, **config}), given, causal=True)
    assert str(caught.value) == sentence


def test_ppo_refuses_a_dropout_that_it_would_switch_off():
    assert PolicyModelConfig(lora_dropout=0.0).lora_dropout == 0
    with pytest.raises(ValueError, match=r"^lora_dropout is 0\.1, expected 0: with dropout a policy differs"):
        PolicyModelConfig(lora_dropout=0.1)


def test_who_switches_lora_off_may_leave_its_settings():
    off = {"use_peft": False, "lora_r": 8}
    check_model(ModelConfig(**off), off, causal=True)
    check_model(ModelConfig(use_peft=True, lora_task_type="SEQ_CLS"), {}, causal=False)


# --- PPO


@pytest.mark.parametrize(
    ("changes", "batch", "save_steps"),
    [
        ({}, 8, 500),
        ({"num_iterations": 3}, 8, 501),
        ({"num_iterations": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, 8, 504),
        ({"num_generations": 3}, 9, 500),
        ({"num_generations": 16, "gradient_accumulation_steps": 4, "num_iterations": 1}, 8, 500),
        ({"num_generations": 12, "gradient_accumulation_steps": 4, "num_iterations": 1}, 9, 500),
    ],
)
def test_open_settings_of_ppo_fit_each_other(tmp_path, changes, batch, save_steps):
    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes)
    assert (args.per_device_train_batch_size, args.save_steps) == (batch, save_steps)
    assert args.generation_batch_size % args.num_generations == 0
    assert args.chosen == {"per_device_train_batch_size": str(batch), "save_steps": str(save_steps)}


@pytest.mark.parametrize(
    ("prompts", "changes", "batch"), [(5, {}, 5), (2, {"num_generations": 3}, 6), (100, {}, 8), (None, {}, 8)]
)
def test_an_open_batch_takes_as_many_prompts_as_there_are(tmp_path, prompts, changes, batch):
    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **changes)
    args.fit(prompts)
    assert args.per_device_train_batch_size == args.generation_batch_size == batch
    args.check_run(has_lora=True, prompts=prompts)


def test_a_batch_that_was_given_is_not_changed(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, per_device_train_batch_size=8)
    args.fit(5)
    assert args.per_device_train_batch_size == 8
    with pytest.raises(ValueError, match="train_dataset has 5 prompts, but one rollout takes 8"):
        args.check_run(has_lora=True, prompts=5)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("neftune_noise_alpha", 5.0, "none: noise on embeddings makes a policy differ from itself"),
        ("disable_dropout", False, "true: with dropout a policy differs from itself between two passes"),
        ("router_aux_loss_coef", 0.01, "0: PPO has no loss that balances the experts of a mixture"),
        ("label_smoothing_factor", 0.1, "its default: the loss is PPO's"),
        ("vespo_k_pos", 1.0, "its default: the loss is PPO's"),
        ("sync_ref_model", True, "its default: the reference is the base without its adapter"),
        ("data_seed", 1, "its default: prompts are drawn by seed and epoch"),
        ("bf16_full_eval", True, "its default: an evaluation samples and scores, and keeps no predictions"),
        ("cache_implementation", "static", "its default: rollouts keep a cache of their own"),
        ("entropy_target", 0.1, "its default: it counts only with use_adaptive_entropy"),
        ("kl_gain", 0.2, "its default: it counts only with kl_target"),
        ("vllm_mode", "server", "its default: it counts only with use_vllm"),
        ("remove_unused_columns", True, "false: reward models are shown other columns than the prompt"),
        ("max_completion_length", 0, "at least 1"),
    ],
)
def test_settings_without_effect_or_that_spoil_the_estimate_are_refused(tmp_path, name, value, reason):
    with pytest.raises(ValueError) as caught:
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: value})
    said = str(value).lower() if isinstance(value, bool) else value
    assert str(caught.value) == f"{name} is {said}, expected {reason}"


def test_what_counts_beside_its_switch_is_accepted(tmp_path):
    PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, kl_target=1.0, kl_gain=0.2, top_entropy_quantile=0.5)


def test_completions_are_printed_only_where_they_are_kept(tmp_path):
    quiet = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "log_completions": False}
    PPOConfig(**quiet)
    with pytest.raises(ValueError, match=r"^num_completions_to_print is 3, .*: it counts only with log_completions$"):
        PPOConfig(**quiet, num_completions_to_print=3)


def test_a_rollout_of_one_completion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a rollout has 1 completion, expected at least 2: raise per_device_train"):
        PPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=1)


def test_a_launch_that_is_not_heard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert distributed.count() == 2
    with pytest.raises(ValueError) as caught:
        SFTSettings(output_dir=str(tmp_path))
    assert str(caught.value) == (
        "SLURM_STEP_NUM_TASKS says that 2 processes were started, but this one hears of 1: start them with accelerate "
        "launch or torchrun, or start one"
    )
