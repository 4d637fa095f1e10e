"""What PPOTrainer takes of what a user gives it in Python, and what it refuses in one sentence before the work."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import AdaLoraConfig, IA3Config, LoraConfig, TrainableTokensConfig, get_peft_model

import reward_models
from reward_models import FunctionReward
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests import tiny
from tests.tiny import QUIET


PROMPTS = ["a", "b c d", "e f", "g h"]
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


class Own:
    """A reward model of a user's own."""

    name = "own"

    def score(self, prompts, completions):
        return [1.0] * len(completions)


@pytest.fixture
def make(tmp_path, llama, tokenizer):
    """Return a maker of trainers on the tiny Llama, which takes everything that the class takes."""

    def trainer(rewards=shortness, *, model=None, lora=LORA, rows=None, settings=None, **arguments):
        defaults = {"per_device_train_batch_size": 4, "max_completion_length": 4, "max_steps": 1, "num_iterations": 1}
        args = PPOConfig(output_dir=str(tmp_path / "out"), **{**QUIET, **defaults, **(settings or {})})
        return PPOTrainer(
            llama() if model is None else model,
            rewards,
            args,
            peft_config=LoraConfig(**lora) if isinstance(lora, dict) else lora,
            **{
                "train_dataset": Dataset.from_dict(rows or {"prompt": PROMPTS}),
                "processing_class": tokenizer,
                **arguments,
            },
        )

    return trainer


def roll_out(trainer):
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])


# --- the policy

MOVES = "so the base without the adapter, PPO's reference, would not be the SFT model; leave it out"
NOT_SWEPT = "so the policy could be neither merged nor swept"


@pytest.mark.parametrize("name", ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changes_the_base_is_refused_before_it_does(make, llama, name):
    model = llama()
    config = LoraConfig(**LORA)
    config.init_lora_weights = name  # PEFT itself asks for more settings of some
    with pytest.raises(ValueError, match=rf"init_lora_weights of peft_config is '{name}', which .*, {MOVES}$"):
        make(model=model, lora=config)
    for (key, found), expected in zip(model.state_dict().items(), llama().state_dict().values(), strict=True):
        assert torch.equal(found, expected), key


@pytest.mark.parametrize("name", [True, "gaussian", "orthogonal"])
def test_the_reference_of_other_initialisations_is_the_sft_model(make, llama, name):
    trainer = make(lora={**LORA, "init_lora_weights": name})
    base = {key.replace(".base_layer", ""): value for key, value in trainer.model.get_base_model().state_dict().items()}
    for key, expected in llama().state_dict().items():
        assert torch.equal(base[key], expected), key


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bias": "lora_only"}, f"bias of peft_config is 'lora_only': biases are outside s B A, {NOT_SWEPT}"),
        ({"use_dora": True}, f"use_dora of peft_config is true: DoRA rescales .*, {NOT_SWEPT}; leave it out"),
        ({"lora_bias": True}, "lora_bias of peft_config is true: biases of LoRA factors are outside s B A"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save of peft_config is \['lm_head'\]: whole modules"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices of peft_config is \[1\]: rows of the embedding"),
        ({"lora_dropout": 0.1}, "lora_dropout of peft_config is 0.1, expected 0: with dropout a policy differs"),
        ({"task_type": "SEQ_CLS"}, "task_type of peft_config is SEQ_CLS, expected CAUSAL_LM: a policy writes text"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"^target_modules \['embed_tokens', 'q_proj'\] hold 'model"),
    ],
)
def test_an_adapter_that_no_later_stage_takes_is_refused(make, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(lora={**LORA, **changes})


def test_all_that_is_wrong_with_an_adapter_is_told(make):
    with pytest.raises(ValueError, match=r"^3 problems: \(1\) bias .*; \(2\) lora_dropout .*; \(3\) use_dora"):
        make(lora={**LORA, "bias": "all", "use_dora": True, "lora_dropout": 0.5})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (lambda: IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "IA3Config"),
        (lambda: AdaLoraConfig(total_step=10), "AdaLoraConfig"),
        (lambda: TrainableTokensConfig(token_indices=[1]), "TrainableTokensConfig"),
        (lambda: dict(LORA, r=1).keys(), "dict_keys"),
    ],
)
def test_what_is_no_lora_is_refused(make, config, name):
    with pytest.raises(ValueError, match=f"peft_config is a {name}, expected a LoraConfig: later stages"):
        make(lora=config())


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_model_that_has_an_adapter_is_told_what_to_give(make, llama, lora):
    model = get_peft_model(llama(), LoraConfig(**LORA))
    with pytest.raises(ValueError, match=r"the model has an adapter already, expected the SFT model alone"):
        make(model=model, lora=lora)


# --- arguments of TRL's trainer


@pytest.mark.parametrize(
    "arguments",
    [
        {"rollout_func": lambda *args: {}},
        {"tools": [shortness]},
        {"environment_factory": object},
        {"reward_processing_classes": [object()]},
    ],
)
def test_arguments_that_ppo_does_not_take_are_refused(make, arguments):
    with pytest.raises(
        ValueError, match=f"^{next(iter(arguments))} is given, which PPO does not take: .*leave it out$"
    ):
        make(**arguments)


@pytest.mark.parametrize("settings", [{"value_learning_rate": 0.1}, {"layer_learning_rates": "linear"}])
def test_rates_beside_an_optimizer_of_ones_own_are_refused(make, settings):
    """They had no effect. An optimizer that the trainer made is its own, however often it is asked for one."""
    (name, value), model = next(iter(settings.items())), tiny.llama(tiny.word_tokenizer(), num_hidden_layers=2)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sentence = rf"{name} is {value}, but an optimizer is given \(SGD\), which has learning rates of its own"
    with pytest.raises(ValueError, match=sentence):
        make(model=model, settings=settings, optimizers=(own, None))
    trainer = make(settings=settings)
    trainer.optimizer = own
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    trainer = make(settings=settings)
    made = trainer.create_optimizer()
    assert trainer.create_optimizer() is made and len({group["lr"] for group in made.param_groups}) > 1
    assert make(optimizers=(own, None)).create_optimizer() is own


# --- rewards


def of_four(trainer):
    roll_out(trainer)
    return trainer._metrics["train"]


@pytest.mark.parametrize(
    ("rewards", "name"),
    [
        (shortness, "shortness"),
        ([shortness], "shortness"),
        ((FunctionReward(shortness, name="brief"),), "brief"),
        ("rule:length", "length"),
        (functools.partial(shortness), "shortness"),
        (reward_models.load("rule:length"), "length"),
    ],
)
def test_functions_texts_and_single_rewards_are_taken(make, rewards, name):
    metrics = of_four(make(rewards))
    texts = [text for text in metrics if text.startswith("rewards/") and text.endswith("/mean")]
    assert texts == [f"rewards/{name}/mean"]
    assert metrics["reward"] == metrics[texts[0]] and -4 <= metrics["reward"][0] <= 0


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        ([], "rewards is empty, expected one reward model or more"),
        (
            [shortness, FunctionReward(len, name="shortness")],
            r"two are equal, so give one another name, as FunctionReward\(function, name",
        ),
        (["rule:length", "rule:length"], "names length, length: two are equal, so give one another name$"),
        ([Own], r"reward_models holds <class .*Own'>, expected reward models, as Own\(...\) makes one: objects"),
        (Path("no/such/folder"), "the reward model no/such/folder does not exist"),
        (torch.nn.Linear(1, 1), r"reward_models holds Linear\(.*, as reward_models.load or Classifier.from_pretrained"),
        (3, "reward_models holds 3, expected reward models: objects with a name and a method score, functions, or"),
        ([FunctionReward], "reward_models holds <class 'reward_models.function.FunctionReward'>, expected"),
        ("rule:lenght", "did you mean 'rule:length'"),
        (lambda completions, answer: [], "cannot be called: missing a required argument: 'answer'; it may ask for"),
    ],
)
def test_rewards_that_cannot_be_taken_are_refused(make, rewards, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        make(rewards)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 values, but rewards has 1"),
        ({"reward_weights": [0.0]}, "every reward has the weight 0"),
        (
            {
                "metric_for_best_model": "eval_rewards/brevity/mean",
                "lr_scheduler_type": "greedy",
                "eval_strategy": "steps",
            },
            "unknown metric_for_best_model 'rewards/brevity/mean'",
        ),
    ],
)
def test_settings_that_do_not_fit_the_rewards_are_refused(make, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(settings={"eval_steps": 1, **settings} if "eval_strategy" in settings else settings)


def test_functions_are_given_the_columns_of_the_data(make):
    """By name, and by **kwargs; a JSON column, as the stage's rows have one, is beside them."""
    seen = []

    def right(prompts, completions, answer, **others):
        seen.append((prompts, answer, sorted(others)))
        return [float(number) for number in answer]

    rows = {"prompt": PROMPTS, "answer": [1, 2, 3, 5], "scored_prompt": list("wxyz"), "columns": ['{"hint": "no"}'] * 4}
    metrics = of_four(make(right, rows=rows))
    (prompts, answer, others), *again = seen
    assert not again and prompts == list("wxyz") and answer == [1, 2, 3, 5]
    assert others == ["completion_ids", "hint", "log_extra", "log_metric", "trainer_state"]
    assert metrics["rewards/right/mean"] == [11 / 4]


@pytest.mark.parametrize(
    "name", ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"]
)
def test_columns_of_names_that_functions_are_given_are_refused(make, name):
    """They ended the first rollout in a TypeError, or were replaced in silence."""
    with pytest.raises(ValueError, match=f"the data has the column {name}, a name by which functions are given what"):
        make(rows={"prompt": PROMPTS, name: PROMPTS})


def test_what_a_run_gives_functions_comes_before_further_columns(make):
    """A file may have any column; TRL's functions note by these names."""
    seen = []

    def noted(completions, log_metric, completion_ids):
        log_metric("mine", 1.0)
        seen.extend(completion_ids)
        return [1.0] * 4

    further = json.dumps({"log_metric": "text", "completion_ids": "text"})
    assert of_four(make(noted, rows={"prompt": PROMPTS, "columns": [further] * 4}))["mine"] == [1.0]
    assert all(isinstance(ids, list) and ids for ids in seen)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("blank", 1, "the column blank of the data holds 1, expected a text: mend it, or rename it"),
        ("conversation", "a b", r"the column conversation of the data holds 'a b', expected turns \(mappings"),
        (
            "conversation",
            [{"user": "a"}],
            r"the column conversation .* holds \[\{'user': 'a'\}\], expected turns",
        ),
        ("scored_prompt", 1, "the column scored_prompt of the data holds 1, expected a text or turns"),
        ("prompt", 1, "the column prompt of the data holds 1, expected a text or turns .*: mend it$"),
        ("prompt", None, "the column prompt of the data holds None, expected a text or turns"),
    ],
)
def test_a_column_with_a_meaning_of_its_own_of_another_type_is_named(make, name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(rows={"prompt": PROMPTS, name: [value] * 4})


def test_columns_with_a_meaning_of_their_own_may_be_empty(make):
    rows = {"prompt": PROMPTS, **dict.fromkeys(("blank", "conversation", "scored_prompt", "columns"), [None] * 4)}
    assert len(of_four(make(rows=rows))["reward"]) == 1


def test_a_column_of_that_name_that_is_no_json_is_told(make):
    with pytest.raises(ValueError, match="the column columns of the data, which is a JSON text of further columns"):
        make(rows={"prompt": PROMPTS, "columns": ["id, name"] * 4})


def test_data_without_prompts_is_refused(make):
    with pytest.raises(ValueError, match="the data has the columns id, question, expected a column prompt"):
        make(rows={"question": PROMPTS, "id": [1, 2, 3, 4]})


# --- conversations, and how texts end

TURNS = {"prompt": [[{"role": "user", "content": prompt}] for prompt in PROMPTS]}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def chat_tokenizer():
    return tiny.word_tokenizer(chat_template=TEMPLATE)


@pytest.mark.parametrize(
    ("reward", "way_out"),
    [
        (
            shortness,
            r"make it FunctionReward\(function, template='chat'\), which is given turns, or add a column scored",
        ),
        ("rule:length", "add a column scored_prompt of texts"),
        (Own(), "set reads_turns = True on it if its score takes turns, or add a column scored_prompt of texts"),
    ],
)
def test_conversations_for_a_reward_that_reads_texts_are_refused(make, chat_tokenizer, reward, way_out):
    with pytest.raises(ValueError, match=rf"reads texts, but the data has the prompt \[.*'a'.*\]: {way_out}"):
        make(reward, rows=TURNS, processing_class=chat_tokenizer)


def test_conversations_are_taken_where_rewards_can_read_them(make, chat_tokenizer):
    seen = []

    def of_turns(prompts, completions):
        seen.extend((prompts, [[turn["role"] for turn in completion] for completion in completions]))
        return [1.0] * 4

    roll_out(make(FunctionReward(of_turns, template="chat"), rows=TURNS, processing_class=chat_tokenizer))
    assert seen == [TURNS["prompt"], [["assistant"]] * 4]
    trainer = make(rows={**TURNS, "scored_prompt": PROMPTS}, processing_class=chat_tokenizer)
    assert len(of_four(trainer)["reward"]) == 1


def test_conversations_without_a_chat_template_are_refused(make):
    with pytest.raises(ValueError, match=r"the data has conversations as prompts, but the tokenizer of .* has no chat"):
        make(FunctionReward(shortness, template="chat"), rows=TURNS)


def test_a_tokenizer_without_end_token_is_refused(make):
    tokenizer = tiny.word_tokenizer(eos_token=None)
    with pytest.raises(ValueError, match=r"has no end token, and the model's configs declare none, so no completion"):
        make(processing_class=tokenizer)


def right(prompts, completions, answer):
    return [1.0] * len(completions)


def test_rows_that_are_evaluated_are_checked_and_named(make):
    rows = {"prompt": PROMPTS, "answer": PROMPTS}
    without, answered = Dataset.from_dict({"prompt": PROMPTS}), Dataset.from_dict(rows)
    sentence = "the reward function 'right' cannot be called: missing a required argument: 'answer'"
    for sets, name in ((without, "eval_dataset"), ({"a": answered, "b": without}, "eval_dataset 'b'")):
        with pytest.raises(ValueError, match=f"^the first row of {name}: {sentence}"):
            make(right, rows=rows, eval_dataset=sets, settings={"eval_strategy": "steps", "eval_steps": 1})
    with pytest.raises(ValueError, match=f"^the first row of train_dataset: {sentence}"):
        make(right)


def test_rows_that_are_never_evaluated_stop_no_run(make):
    rows, without = {"prompt": PROMPTS, "answer": PROMPTS}, Dataset.from_dict({"prompt": PROMPTS})
    assert len(of_four(make(right, rows=rows, eval_dataset=without))["reward"]) == 1


def test_a_stream_of_prompts_is_taken(make):
    stream = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in PROMPTS))
    assert make(train_dataset=stream).train_dataset is stream
