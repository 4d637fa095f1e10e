"""The stage ``reward``: the saved judge scores as the one in memory did, and its accuracy is that of its scores."""

from __future__ import annotations

import gc
import json
import math
import weakref

import pytest
import torch
from safetensors.torch import load_file

import reward_models
from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.stages import run_stage
from rlhf_lines.summary import summary
from rlhf_lines.train import reward
from rlhf_lines.train.settings import RewardSettings
from tests.tiny import TWO_LAYERS, WORDS, llama, save, widened, word_tokenizer


def pairs(words, others):
    """Return pairs in which the completion with more of the letter a is the better one."""
    return [{"prompt": f"{x} {y}", "chosen": f" a a {y}", "rejected": f" {x} b"} for x in words for y in others]


TRAIN, TEST = pairs(WORDS, WORDS[:4]), pairs(WORDS[2:7], WORDS[4:7])


def write_encoder(folder):
    """Write a tiny random BERT whose tokenizer frames texts as [CLS] ... [SEP] and knows no end token."""
    from tokenizers import processors
    from transformers import BertConfig, BertForSequenceClassification

    names = {"eos_token": None, "cls_token": "<cls>", "sep_token": "<sep>"}
    tokenizer = word_tokenizer(**names)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("<sep>", sep), ("<cls>", cls))
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 24, "max_position_embeddings": 32, "num_labels": 1, "pad_token_id": 0},
    )
    return save(widened(BertForSequenceClassification(config)), tokenizer, folder)


def write_decoder(folder):
    """Write a causal language model without a score head, which is what users start from."""
    save(llama(word_tokenizer(), **TWO_LAYERS), word_tokenizer(), folder)
    return folder


BASES = {"encoder": write_encoder, "decoder": write_decoder}
LORA = {
    **{"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_task_type": "SEQ_CLS"},
    **{"learning_rate": 1e-2},
}
TARGETS = {"encoder": ["query", "value"], "decoder": ["q_proj", "v_proj"]}


@pytest.fixture
def run_reward(flags, write_rows, tmp_path):
    """Return a runner of the stage, which gives the folder that it made."""

    def run(base, *, train=TRAIN, test=TEST, **settings):
        write_rows("data/train.jsonl", train)
        data = write_rows("data/test.jsonl", test).parent
        output = {"model_name_or_path": base, "dataset_name": data, "output_dir": tmp_path / "out" / "letters"}
        training = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "max_length": 16}
        return run_stage("reward", flags(**{**output, **training, **settings}))

    return run


@pytest.fixture
def in_memory(monkeypatch):
    """Return scores that the trainer's model gives, before it is saved, to every text as the trainer tokenized it."""
    found = {}
    save_model = reward.RewardTrainer.save_model

    def look_and_save(trainer, *arguments, **options):
        training = trainer.model.training
        trainer.model.eval()
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                rows = [torch.tensor([ids]) for ids in trainer.train_dataset[f"{side}_ids"]]
                found[side] = [float(trainer.model(input_ids=ids).logits) for ids in rows]
        found["head"] = {
            name: parameter.detach().clone()
            for name, parameter in trainer.model.named_parameters()
            if ("score" in name or "classifier" in name) and parameter.requires_grad
        }
        trainer.model.train(training)
        return save_model(trainer, *arguments, **options)

    monkeypatch.setattr(reward.RewardTrainer, "save_model", look_and_save)
    return found


@pytest.mark.parametrize("kind", ["full", "lora", "lora with the default task", "lora with its head named"])
@pytest.mark.parametrize("architecture", BASES)
def test_the_saved_judge_scores_as_the_one_in_memory(run_reward, in_memory, tmp_path, architecture, kind):
    """The score head of a LoRA judge is easily lost on the way to disk (huggingface/trl#1379, peft#1070)."""
    base = BASES[architecture](tmp_path / "base")
    settings = {} if kind == "full" else {**LORA, "lora_target_modules": TARGETS[architecture]}
    if kind == "lora with the default task":
        settings.pop("lora_task_type")
    if kind == "lora with its head named":
        settings["lora_modules_to_save"] = ["score" if architecture == "decoder" else "classifier"]
    out = run_reward(base, **settings)
    judge = reward_models.load(out)
    prompts = [row["prompt"] for row in TRAIN]
    for side in ("chosen", "rejected"):
        scores = judge.score(prompts, [row[side] for row in TRAIN])
        assert scores == pytest.approx(in_memory[side], abs=1e-5)
    assert max(in_memory["chosen"]) - min(in_memory["rejected"]) > 1e-2
    assert in_memory["head"], "the head was trained"
    assert (out / "adapter_config.json").exists() == (kind != "full")
    assert not (out / "training_args.bin").exists()


@pytest.mark.parametrize("architecture", BASES)
def test_the_recorded_accuracy_is_that_of_the_scores(run_reward, tmp_path, architecture):
    # Few and short steps, so that the judge is neither perfect nor a coin.
    test = [*TEST, *({**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in TEST[:5])]
    test += [{"prompt": "a", "chosen": " b", "rejected": " b"}]
    out = run_reward(BASES[architecture](tmp_path / "base"), test=test)
    judge = reward_models.load(str(out))
    right = 0.0
    for row in test:
        (chosen,), (rejected,) = (judge.score([row["prompt"]], [row[side]]) for side in ("chosen", "rejected"))
        right += 1.0 if chosen > rejected else 0.0 if chosen < rejected else 0.5
    record = read_record(out)
    assert record["accuracy"] == pytest.approx(right / 21, abs=1e-12) and record["held_out_pairs"] == 21
    assert 0.5 < record["accuracy"] < 1.0


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.float32),  # the weights are in float32, and autocast wraps the model in itself
        ({"bf16": True, "dtype": "bfloat16", **LORA}, torch.bfloat16),
        ({"bf16": True, "load_in_4bit": True, **LORA}, torch.bfloat16),
    ],
    ids=["float32", "autocast", "bfloat16", "4 bits"],
)
def test_a_model_is_read_back_in_the_dtype_of_its_training_once_that_is_gone(
    run_reward, tmp_path, monkeypatch, settings, dtype
):
    if "load_in_4bit" in settings:
        pytest.importorskip("bitsandbytes")
    trained, found = [], []
    save_model, load = reward.RewardTrainer.save_model, reward_models.load

    def look_and_save(trainer, *arguments, **options):
        trained.append(weakref.ref(trainer.model))
        return save_model(trainer, *arguments, **options)

    def look_and_load(*arguments, **options):
        held = trained[0]() is not None
        found.append((held, load(*arguments, **options)))
        return found[-1][1]

    monkeypatch.setattr(reward.RewardTrainer, "save_model", look_and_save)
    monkeypatch.setattr(reward_models, "load", look_and_load)
    base = save(
        llama(word_tokenizer(), **TWO_LAYERS, hidden_size=64, intermediate_size=64), word_tokenizer(), tmp_path / "base"
    )
    gc.disable()  # by itself it may or may not have come in time
    try:
        run_reward(base, **settings, max_steps=1)
    finally:
        gc.enable()
    ((held, judge),) = found
    assert not held and judge.model.dtype == dtype


def pair_of(chosen, rejected, *, first="a"):
    """Return a pair whose texts have these numbers of words: the shorter one has one word after the prompt."""
    shorter = min(chosen, rejected)
    prompt = " ".join([first, *["b"] * (shorter - 2)])
    return {"prompt": prompt, "chosen": " c" * (chosen - shorter + 1), "rejected": " d" * (rejected - shorter + 1)}


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("max_length", [9, 1024])
def test_texts_that_are_too_long_are_counted(run_reward, tmp_path, architecture, max_length):
    """Training leaves a long pair out, as RewardTrainer does; a held-out pair is cut; both are recorded."""
    base = BASES[architecture](tmp_path / "base")
    # The decoder reads 64 tokens, one of them <eos>; the encoder 32, with <cls>, the trainer's <sep> and its own <sep>.
    limit, extra = {"decoder": (min(64, max_length), 1), "encoder": (min(32, max_length), 3)}[architecture]
    room = limit - extra
    lengths = [(2, 3), (room, room), (room, room + 1), (room + 1, room), (70, 70)]
    train = [pair_of(*pair) for pair in lengths]
    test = [pair_of(*pair, first="e") for pair in lengths[1:]]  # no prompt is in both splits
    out = run_reward(base, train=train, test=test, max_length=max_length, max_steps=1)
    record = read_record(out)
    # The last three have a text that does not fit.
    assert (record["train_pairs"], record["train_pairs_left_out"]) == (2, 3)
    assert (record["held_out_pairs"], record["held_out_pairs_cut"]) == (4, 3)
    assert json.loads((out / "reward_model.json").read_text())["max_length"] == limit
    assert "3 training pairs, which were left out, and 3 held-out pairs, whose" in summary("reward", out)


def test_a_stage_whose_pairs_are_all_too_long_is_refused(run_reward, tmp_path):
    with pytest.raises(ValueError, match=r"each of the 40 pairs of .* has a text of more than 4 tokens"):
        run_reward(write_decoder(tmp_path / "base"), max_length=4)


def test_an_evaluation_whose_pairs_are_all_too_long_is_refused_before_the_work(run_reward, tmp_path):
    short = [{"prompt": word, "chosen": " a", "rejected": " b"} for word in WORDS]  # 3 tokens with EOS; held out: 6
    with pytest.raises(ValueError, match=r"each of the 1 pairs of .*, split validation has a text of more than 4"):
        run_reward(write_decoder(tmp_path / "base"), train=short, max_length=4, eval_strategy="steps", eval_steps=1)
    assert not (tmp_path / "out" / "letters").exists()


@pytest.mark.parametrize("architecture", BASES)
def test_it_learns_the_preference(run_reward, tmp_path, architecture):
    out = run_reward(BASES[architecture](tmp_path / "base"), max_steps=60, learning_rate=1e-2)
    assert read_record(out)["accuracy"] == 1.0
    judge = reward_models.load(out)
    better, worse = judge.score(["c d", "c d"], [" a a d", " c b"])
    assert better > worse + 1.0


def test_the_loss_asks_for_the_margin_of_a_pair(run_reward, tmp_path):
    """Of one pair: -log sigmoid(score of chosen - score of rejected - margin), of which TRL logs the difference."""
    pair = {**TRAIN[0], "margin": 3.0}
    settings = {"max_steps": 1, "per_device_train_batch_size": 1, "logging_steps": 1}
    out = run_reward(write_decoder(tmp_path / "base"), train=[pair], **settings)
    (row,) = json.loads((out / "rlhf_lines.json").read_text())["history"]
    assert row["loss"] == pytest.approx(math.log1p(math.exp(3.0 - row["margin"])), abs=1e-4)


def test_the_folder_says_how_texts_are_scored(run_reward, tmp_path):
    out = run_reward(write_decoder(tmp_path / "base"), max_length=9)
    assert {"model.safetensors", "config.json", "reward_model.json", "tokenizer.json", "config.yaml"} <= {
        path.name for path in out.iterdir()
    }
    settings = json.loads((out / "reward_model.json").read_text())
    assert settings["append_eos"] is True and settings["max_length"] == 9
    assert load_file(out / "model.safetensors")["score.weight"].shape == (1, 16)
    card = (out / "README.md").read_text()
    percent = 100 * read_record(out)["accuracy"]
    assert "base model: base\n" in card and f"Of 15 held-out pairs it prefers the better one in {percent:.1f} %" in card
    assert "None" not in card and "library_name: transformers" in card
    judge = reward_models.load(out)
    assert judge.name == "letters"
    assert judge.encode("a b", " c")["input_ids"] == [*word_tokenizer()("a b c")["input_ids"], 1]
    assert all(math.isfinite(score) for score in judge.score(["a " * 40], [" b"]))


TOKENIZER_CODE = (None, "own.OwnTokenizer")
OWN_CODE = """
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass

class OwnConfig(BertConfig):
    model_type = "own"

class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
"""


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_base_with_code_of_its_own(run_reward, in_memory, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = write_encoder(tmp_path / "base")
    model_code = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnClassifier"}
    for file, changes in (
        ("config.json", {"model_type": "own", "auto_map": model_code}),
        ("tokenizer_config.json", {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": TOKENIZER_CODE}}),
    ):
        (base / file).write_text(json.dumps({**json.loads((base / file).read_text()), **changes}))
    (base / "own.py").write_text(OWN_CODE)
    settings = {**LORA, "lora_target_modules": TARGETS["encoder"]} if kind == "lora" else {}
    out = run_reward(base, trust_remote_code=True, **settings)
    judge = reward_models.load(out, trust_remote_code=True)
    scores = judge.score([row["prompt"] for row in TRAIN], [row["chosen"] for row in TRAIN])
    assert scores == pytest.approx(in_memory["chosen"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"base": "/nowhere/base"}, FileNotFoundError, "base model /nowhere/base does not exist"),
        ({"preference": "brief"}, ValueError, "preference 'brief' was given, but"),
        ({"train": [{"prompt": "a", "chosen": "b"}]}, ValueError, "lacks the column rejected for preferences"),
        ({"test": [{"prompt": "a", "rejected": "b"}]}, ValueError, "lacks the column chosen for preferences"),
    ],
    ids=["base", "preference", "train", "test"],
)
def test_wrong_input_leaves_nothing(run_reward, tmp_path, settings, error, message):
    base = settings.pop("base", None) or write_decoder(tmp_path / "base")
    with pytest.raises(error) as caught:
        run_reward(base, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_classifier_of_other_labels_is_refused_by_the_stage_and_its_plan_unless_it_gets_a_new_head(
    run_reward, flags, tmp_path, capsys
):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(write_encoder(tmp_path / "base"))
    for labels in (1, 3):
        config.num_labels = labels
        save(BertForSequenceClassification(config), word_tokenizer(), tmp_path / f"base{labels}")
    message = f"{tmp_path / 'base3'} is a classifier of 3 labels, expected one of 1, which is the score"
    with pytest.raises(ValueError, match=message):
        run_reward(tmp_path / "base3")
    assert not (tmp_path / "out").exists()
    settings = {"dataset_name": tmp_path / "data", "output_dir": tmp_path / "out", "max_length": 16}
    assert cli.main(["plan", "reward", *flags(model_name_or_path=tmp_path / "base3", **settings)]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["plan", "reward", *flags(model_name_or_path=tmp_path / "base1", **settings)]) == 0
    run_reward(tmp_path / "base1", max_steps=1)
    new_head = {"model_init_kwargs": '{"ignore_mismatched_sizes": true}'}
    new = run_reward(tmp_path / "base3", max_steps=1, overwrite=True, **new_head)
    assert load_file(new / "model.safetensors")["classifier.weight"].shape == (1, 16)


def test_an_evaluation_measures_what_a_checkpoint_may_be_the_best_by(run_reward, write_rows, tmp_path):
    base = write_decoder(tmp_path / "base")
    out = run_reward(base, max_steps=1, eval_strategy="steps", eval_steps=1, metric_for_best_model="margin")
    (row,) = read_record(out)["history"]
    assert {f"eval_{name}" for name in RewardSettings.metrics} <= row.keys()


CHAT = "{% for m in messages %}{{ 'i' if m['role'] == 'user' else 'j' }} {{ m['content'] }} {% endfor %}"


def test_a_reward_model_remembers_the_chat_template_that_it_was_trained_on(tmp_path, run_reward, monkeypatch):
    base = write_decoder(tmp_path / "base")
    tokenizer = word_tokenizer(chat_template=CHAT)
    tokenizer.save_pretrained(base)
    trained = []
    save_model = reward.RewardTrainer.save_model
    look = lambda trainer, *a, **k: (trained.extend(trainer.train_dataset["chosen_ids"]), save_model(trainer, *a, **k))  # noqa: E731
    monkeypatch.setattr(reward.RewardTrainer, "save_model", look)
    out = run_reward(base, template="chat", max_steps=2)
    model = reward_models.load(str(out))
    assert (model.format.template, model.format.append_eos, model.guessed) == ("chat", False, None)
    for pair, ids in zip(TRAIN, trained, strict=True):
        assert ids == tokenizer(f"i {pair['prompt']} j{pair['chosen']}")["input_ids"]
        assert model.encode(pair["prompt"], pair["chosen"])["input_ids"] == ids
    scores = [model.score([pair["prompt"] for pair in TEST], [pair[side] for pair in TEST]) for side in reward.SIDES]
    accuracy = sum((c > r) + 0.5 * (c == r) for c, r in zip(*scores, strict=True)) / len(TEST)
    assert read_record(out)["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "chat"}, "template is chat, but the tokenizer of the base has no chat template"),
        (
            {"chat_template_path": "somewhere"},
            "chat_template_path is somewhere, but the template is '{prompt}{completion}",
        ),
        ({"template": "{prompt}"}, "has no {completion}"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path, run_reward, settings, message):
    with pytest.raises(ValueError, match=message):
        run_reward(write_decoder(tmp_path / "base"), **settings)
    assert not (tmp_path / "out").exists()
