"""Learning rates by depth and layers that are not trained, against the formulas and against the plain run."""

from __future__ import annotations

import itertools

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, get_scheduler

from reward_models import FunctionReward
from rlhf_lines import cli
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.layers import layer_of
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.plan import Options, plan
from rlhf_lines.stages import run_stage
from rlhf_lines.train.layerwise import Layers, layer_factors, split_by_depth, without_first_layers
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import VALUE_HEAD, PPOTrainer
from rlhf_lines.train.settings import SFTSettings
from rlhf_lines.train.sft import SFTTrainer
from tests import tiny
from tests.architectures import ARCHITECTURES


ROWS = [{"prompt": f"a {word} c", "completion": " d e"} for word in tiny.WORDS]
LORA = {"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
STEP = {"max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0, "logging_steps": 1}
SGD = {**STEP, "optim": "sgd", "learning_rate": 0.5, "per_device_train_batch_size": 16}
ADAM = {**STEP, "optim": "adamw_torch", "learning_rate": 0.01, "per_device_train_batch_size": 16}
FACTORS = {"linear": [0.25, 0.5, 0.75, 1.0], "exponential": [0.125, 0.25, 0.5, 1.0]}  # of four layers, decay 1/2
POLICY = {
    "linear": {"layer_learning_rates": "linear"},
    "exponential": {"layer_learning_rates": "exponential", "layer_decay": 0.5},
}


@pytest.fixture(scope="session")
def four(tmp_path_factory, tokenizer):
    """Return the folder of a Llama of four layers."""
    return tiny.save(tiny.llama(tokenizer), tokenizer, tmp_path_factory.mktemp("four") / "base")


@pytest.fixture
def run(four, flags, write_rows, tmp_path, monkeypatch):
    """Return a runner of a stage on that model, which gives the folder that it made."""
    (tmp_path / "tiny_rewards.py").write_text(
        "def letters(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write_rows("data/train.jsonl", ROWS).parent

    def make(verb, name="out", **changes):
        given = {"model_name_or_path": four, "dataset_name": data, "output_dir": tmp_path / name}
        if verb == "ppo":
            given |= {"rewards": "tiny_rewards:letters", "max_completion_length": 4, "num_iterations": 1}
            changes = {**changes, "per_device_train_batch_size": 4}
        return run_stage(verb, flags(**{**given, **changes}))

    return make


def moved(folder, four):
    """The change of every parameter of a dense checkpoint, in float64."""
    before = AutoModelForCausalLM.from_pretrained(four, dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return {name: after[name].double() - before[name].double() for name in before}


def letters(completions, **_):
    """A reward that likes long completions."""
    return [*map(len, completions)]


def factor_of(name, factors):
    return factors[layer_of(name)[1] if layer_of(name) else 0]


# --- formulas ---


def test_the_linear_factors_are_those_of_lines_from_one_layer_up():
    for count in (1, 2, 7, 32):
        expected = lines_scales(count, alpha=1 / count, beta=1 - 1 / count)
        torch.testing.assert_close(torch.tensor(layer_factors("linear", count), dtype=torch.float64), expected)


def test_the_exponential_factors_fall_by_one_ratio_from_the_last_layer_down():
    factors = layer_factors("exponential", 12, 1 / 2.6)  # ULMFiT's
    assert factors[-1] == 1.0
    for lower, upper in itertools.pairwise(factors):
        assert upper / lower == pytest.approx(2.6, rel=1e-12)
    assert layer_factors("exponential", 3) == pytest.approx([0.81, 0.9, 1.0])  # without a decay


# --- a real step of the stages ---


@pytest.mark.parametrize("policy", FACTORS)
def test_a_step_of_sgd_on_all_weights_is_that_of_the_plain_run_times_the_factors(run, four, policy):
    plain = moved(run("sft", "plain", use_peft=False, **SGD), four)
    scaled = moved(run("sft", "scaled", use_peft=False, **SGD, **POLICY[policy]), four)
    for name, change in plain.items():
        expected = factor_of(name, FACTORS[policy]) * change
        torch.testing.assert_close(scaled[name], expected, rtol=0, atol=1e-6, msg=name)
        assert change.abs().max() > 1e-4, name


@pytest.mark.parametrize("policy", FACTORS)
@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_a_step_of_adam_on_an_adapter_is_that_of_the_plain_run_times_the_factors(run, verb, policy):
    """B begins at zero, so that after one step it is the update; A has no gradient then."""
    folders = [run(verb, "plain", **LORA, **ADAM), run(verb, "scaled", **LORA, **ADAM, **POLICY[policy])]
    plain, scaled = (load_file(next(f.rglob("adapter_model.safetensors"))) for f in folders)
    assert plain.keys() == scaled.keys() and len(plain) == 2 * 4 * 7
    for name, update in plain.items():
        if ".lora_A." in name:
            assert torch.equal(update, scaled[name])
            continue
        expected = factor_of(name, FACTORS[policy]) * update.double()
        torch.testing.assert_close(scaled[name].double(), expected, rtol=1e-6, atol=1e-12, msg=name)
        assert update.abs().max() == pytest.approx(0.01, rel=1e-3)  # Adam's first step is the sign times the rate
    if verb == "ppo":
        heads = [load_file(folder / VALUE_HEAD) for folder in folders]
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], None])
@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_frozen_layers_have_no_adapter(run, four, verb, targets):
    lora = {key: value for key, value in {**LORA, "lora_target_modules": targets}.items() if value is not None}
    out = run(verb, **lora, **ADAM, frozen_layers=2)
    adapter = load_adapter(out if verb == "ppo" else out / "adapter")
    assert {layer_of(module)[1] for module in adapter.modules} == {2, 3}
    per_layer = {"all-linear": 7}.get(targets if isinstance(targets, str) else "", 2)
    assert len(adapter.modules) == 2 * per_layer
    if verb == "sft":
        for name, change in moved(out, four).items():
            assert bool(change.any()) == (name.removesuffix(".weight") in adapter.modules), name


def test_all_weights_but_those_of_frozen_layers_are_trained(run, four):
    plain = moved(run("sft", "plain", use_peft=False, **SGD), four)
    frozen = moved(run("sft", "frozen", use_peft=False, frozen_layers=3, **SGD, gradient_checkpointing=True), four)
    for name, change in frozen.items():
        if layer_of(name) and layer_of(name)[1] == 3:
            torch.testing.assert_close(change, plain[name], rtol=0, atol=1e-6, msg=name)
            assert change.any(), name
        else:
            assert not change.any(), name


def test_frozen_layers_and_learning_rates_go_together(run):
    plain = run("sft", "plain", **LORA, **ADAM, frozen_layers=2)
    scaled = run("sft", "scaled", **LORA, **ADAM, frozen_layers=2, layer_learning_rates="linear")
    plain, scaled = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (plain, scaled))
    for name, update in plain.items():
        if ".lora_B." in name:
            expected = factor_of(name, FACTORS["linear"]) * update.double()
            torch.testing.assert_close(scaled[name].double(), expected, rtol=1e-6, atol=1e-12, msg=name)


def test_a_policy_without_first_layers_is_merged_as_it_is(run, four, tmp_path):
    out = run("ppo", **LORA, **ADAM, frozen_layers=3)
    arguments = ["merge", "--sft_model", str(four), "--policies", str(out), "--weights", "1", "--save", "dense"]
    assert cli.main([*arguments, "--output_dir", str(tmp_path / "merged")]) == 0
    changes = moved(tmp_path / "merged", four)
    assert {layer_of(name)[1] for name, change in changes.items() if change.any()} == {3}


def test_a_stopped_run_goes_on_with_its_rates(run, tmp_path, monkeypatch):
    given = {**LORA, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    given |= {"layer_learning_rates": "linear", "frozen_layers": 1, "value_lora": True}
    whole = run("ppo", "whole", **given)
    steps, step = itertools.count(), PPOTrainer.training_step

    def stopped(*args, **kwargs):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PPOTrainer, "training_step", stopped)
        run("ppo", "stopped", **given)
    with pytest.raises(ValueError, match="layer_learning_rates"):
        run("ppo", "stopped", **{**given, "layer_learning_rates": "exponential"}, resume=True)
    again = run("ppo", "stopped", **given, resume=True)
    for file in ("adapter_model.safetensors", "value/adapter_model.safetensors", VALUE_HEAD):
        a, b = load_file(whole / file), load_file(again / file)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert all("layers.0." not in name for name in a)


# --- groups of an optimizer ---


def of_layers(model, *, optimizer=torch.optim.AdamW, weight_decay=0.1, **settings):
    """An optimizer with two groups, as a Trainer makes it, split by the linear factors of four layers."""
    named = list(model.named_parameters())
    plain = [parameter for name, parameter in named if "norm" in name]
    decayed = [parameter for name, parameter in named if "norm" not in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    made = optimizer(groups, lr=0.01)
    split_by_depth(made, model, FACTORS["linear"], **settings)
    return made


def test_groups_keep_their_weight_decay_and_every_parameter_is_in_one(tokenizer):
    model = tiny.llama(tokenizer)
    optimizer = of_layers(model)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        expected = 0.01 * factor_of(name, FACTORS["linear"]), 0.0 if "norm" in name else 0.1
        assert found[id(parameter)] == pytest.approx(expected), name
    assert optimizer.param_groups[0]["lr"] == 0.01  # the one that is logged


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "polynomial"])
def test_a_schedule_keeps_the_ratios(tokenizer, schedule):
    optimizer = of_layers(tiny.llama(tokenizer))
    at_start = [group["lr"] for group in optimizer.param_groups]
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=10)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        now = [group["lr"] for group in optimizer.param_groups]
        assert now[0] > 0
        if schedule != "polynomial":  # which ends at a rate that is the same for all
            assert [rate / now[0] for rate in now] == pytest.approx([rate / at_start[0] for rate in at_start])


def test_layers_are_found_under_the_names_of_wrappers(tokenizer):
    model = tiny.llama(tokenizer)
    assert Layers.of(model) == ("model.layers.", 4)
    model.model.layers[2].mlp = nn.ModuleDict({"_checkpoint_wrapped_module": model.model.layers[2].mlp})
    layers = Layers.of(model)
    assert layers == ("model.layers.", 4)
    assert layers.index("model.layers._fsdp_wrapped_module.3._checkpoint_wrapped_module.mlp.up_proj.weight") == 3
    assert layers.index("base_model.model.model.layers.2.mlp.up_proj.lora_A.default.weight") == 2
    assert [layers.index(name) for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")] == [
        0
    ] * 3
    with pytest.raises(ValueError, match="has no layers of a known name"):
        Layers.of(nn.Linear(2, 2))


@pytest.mark.parametrize("value_learning_rate", [None, 0.05])
def test_the_value_function_keeps_its_rate(run, monkeypatch, value_learning_rate):
    rates = {}

    def seen(self):
        of = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        rates.update({name: of[id(p)] for name, p in self.model.named_parameters() if p.requires_grad})

    save = PPOTrainer.save_model
    monkeypatch.setattr(
        PPOTrainer, "save_model", lambda self, *args, **kwargs: seen(self) or save(self, *args, **kwargs)
    )
    own = {} if value_learning_rate is None else {"value_learning_rate": value_learning_rate}
    run("ppo", **LORA, **ADAM, value_lora=True, layer_learning_rates="linear", **own)
    assert len(rates) == 2 * 2 * 4 * 7 + 2
    for name, rate in rates.items():
        is_value = ".value." in name or "value_head" in name
        expected = value_learning_rate or 0.01 if is_value else 0.01 * factor_of(name, FACTORS["linear"])
        assert rate == pytest.approx(expected), name


# --- what is refused, and planned ---


@pytest.mark.parametrize("stage", [SFTSettings, PPOConfig])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_learning_rates": "square"}, "layer_learning_rates is square, expected linear or exponential"),
        ({"layer_decay": 0.9}, "layer_decay is 0.9, expected none: it counts only with layer_learning_rates: expon"),
        (
            {"layer_learning_rates": "linear", "layer_decay": 0.9},
            "layer_decay is 0.9, expected none: it counts only with layer_learning_rates: exponential",
        ),
        (
            {"layer_learning_rates": "exponential", "layer_decay": 1.0},
            "layer_decay is 1.0, expected a number in (0, 1)",
        ),
        ({"frozen_layers": -1}, "frozen_layers is -1, expected a whole number >= 0"),
        (
            {"layer_learning_rates": "linear", "optim": "adalomo"},
            "optim is adalomo, expected one with a learning rate per layer, or no layer_learning_rates",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path, stage, changes, sentence):
    with pytest.raises(ValueError) as caught:
        stage(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("verb", ["sft", "ppo", "sft in full"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frozen_layers": 4}, "frozen_layers is 4, but the model has 4 layers: expected at most 3"),
        (
            {"frozen_layers": 3, "layer_learning_rates": "linear"},
            "layer_learning_rates is linear, but frozen_layers is 3, so that only the last layer is trained, at the "
            "full rate: leave it out",
        ),
    ],
)
def test_stage_and_plan_refuse_what_has_no_layers(four, flags, write_rows, tmp_path, capsys, verb, changes, sentence):
    data = write_rows("data/train.jsonl", ROWS).parent
    given = {"model_name_or_path": four, "dataset_name": data, "output_dir": tmp_path / "out", **changes}
    verb, *in_full = verb.split(" in ")
    given |= {"use_peft": False} if in_full else LORA
    given |= {"rewards": "rule:length"} if verb == "ppo" else {}
    for command in ([verb], ["plan", verb]):
        assert cli.main([*command, *flags(**given)]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_layers_are_left_out_in_one_way(tokenizer):
    model = tiny.llama(tokenizer)
    for own in ({"layers_to_transform": [1]}, {"exclude_modules": ["v_proj"]}):
        config = LoraConfig(target_modules=["q_proj", "v_proj"], **own)
        with pytest.raises(ValueError, match=f"frozen_layers is 1, but the LoRA config has {next(iter(own))} already"):
            without_first_layers(config, model, 1)
    config = LoraConfig(target_modules=["q_proj"])
    assert without_first_layers(config, model, 0) is config
    assert without_first_layers(config, model, 1).exclude_modules and config.exclude_modules is None


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.label)
def test_the_first_layer_has_no_adapter_in_any_architecture(architecture):
    model = architecture.model()
    layers = Layers.of(model)
    config = without_first_layers(LoraConfig(r=2, target_modules=list(architecture.targets)), model, 1)
    adapted = [name for name, parameter in get_peft_model(model, config).named_parameters() if parameter.requires_grad]
    assert {layer_of(name)[1] for name in adapted} == set(range(1, layers.count))
    assert {layers.index(name) for name in adapted} == set(range(1, layers.count))


def test_modules_that_are_only_in_frozen_layers_are_refused(four, flags, write_rows, tmp_path, capsys):
    data = write_rows("data/train.jsonl", ROWS).parent
    given = {"model_name_or_path": four, "dataset_name": data, "output_dir": tmp_path / "out", **LORA}
    given |= {"lora_target_modules": ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"], "frozen_layers": 2}
    for command in (["sft"], ["plan", "sft"]):
        assert cli.main([*command, *flags(**given)]) == 2
        sentence = "lora_target_modules hold only modules of the first 2 layers, or outside the layers, which "
        assert sentence + "frozen_layers leaves out" in capsys.readouterr().err


def test_a_trainer_whose_adapter_is_in_frozen_layers_is_refused(tmp_path, tokenizer):
    args = PPOConfig(
        **{**tiny.QUIET, "output_dir": str(tmp_path), "per_device_train_batch_size": 2, "frozen_layers": 2}
    )
    settings = {"train_dataset": Dataset.from_dict({"prompt": ["a", "b"]}), "processing_class": tokenizer}
    config, model = LoraConfig(target_modules=["q_proj"]), tiny.llama(tokenizer)
    with pytest.raises(ValueError, match=r"frozen_layers is 2, but peft_config adapts .*layers\.0\.self_attn\.q_proj"):
        PPOTrainer(model, [FunctionReward(letters)], args, peft_config=config, **settings)
    model = tiny.llama(tokenizer)
    config = without_first_layers(config, model, 2)
    trainer = PPOTrainer(model, [FunctionReward(letters)], args, peft_config=config, **settings)
    adapted = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(adapted) == 2 * 2 + 2


@pytest.mark.parametrize("verb", ["sft", "ppo", "sft in full"])
def test_a_plan_counts_what_is_trained(run, four, flags, tmp_path, verb, monkeypatch):
    verb, *in_full = verb.split(" in ")
    given = {"frozen_layers": 3, **({"use_peft": False} if in_full else LORA)}
    trained, train = [], PPOTrainer.train if verb == "ppo" else SFTTrainer.train

    def counted(self, *args, **kwargs):
        trained.append(sum(p.numel() for p in self.model.parameters() if p.requires_grad))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(PPOTrainer if verb == "ppo" else SFTTrainer, "train", counted)
    out = run(verb, **given, max_steps=1)
    arguments = ["--config", str(out / "config.yaml"), "--output_dir", str(tmp_path / "other")]
    assert plan(arguments, Options(stage=verb)).trainable == trained[0]
    layer = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(four).model.layers[3].parameters())
    lora = 2 * (4 * 16 + 2 * (16 + 8) + 3 * 40)  # rank 2; 4 heads of queries, 2 of keys and values; width 16, inner 24
    assert trained[0] == (layer if in_full else lora + 17 * (verb == "ppo"))
