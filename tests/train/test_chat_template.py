"""What a policy whose tokenizer has a chat template reads, and what its reward models are shown."""

from __future__ import annotations

import pytest
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer

from reward_models import FunctionReward
from rlhf_lines.data.config import TrainingDataConfig
from rlhf_lines.stages import run_stage
from rlhf_lines.train.ppo_trainer import PPOConfig, PPOTrainer
from tests.tiny import QUIET
from tests.train.test_sft import ONE_STEP, descended


# Words that the tiny tokenizer knows: a turn of the user is "i ... ", a reply is "j ... <eos>".
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}i {{ message['content'] }} {% else %}"
    "j {{ message['content'] }} <eos>{% endif %}{% endfor %}{% if add_generation_prompt %}j{% endif %}"
)
ROWS = [{"prompt": "a b", "completion": " c d e"}, {"prompt": "c", "completion": " d"}]


@pytest.fixture
def chat_base(tmp_path, llama, tokenizer):
    """Return the folder of the tiny Llama with a tokenizer that has a chat template."""
    folder = tmp_path / "chat"
    llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    chat = AutoTokenizer.from_pretrained(folder)
    chat.chat_template = CHAT_TEMPLATE
    chat.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(write_rows):
    """Return a folder whose train split is all rows."""
    return write_rows("data/train.jsonl", ROWS).parent


def test_sft_trains_on_the_turn_of_the_assistant_and_one_end(flags, chat_base, rows, llama, tmp_path):
    settings = {"model_name_or_path": chat_base, "dataset_name": rows, "output_dir": tmp_path / "sft"}
    out = run_stage("sft", flags(**settings, **ONE_STEP))
    tokenizer = AutoTokenizer.from_pretrained(chat_base)
    texts = [("i a b j", " c d e <eos>"), ("i c j", " d <eos>")]
    sequences = [(tokenizer(p + c)["input_ids"], len(tokenizer(p)["input_ids"])) for p, c in texts]
    expected, _ = descended(llama(), sequences)
    written = load_file(out / "model.safetensors")
    for name in expected:
        assert (written[name].double() - expected[name]).abs().max() < 1e-6, name
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE


def test_ppo_samples_from_the_chat_prompt_and_scores_the_prompt_of_the_data(chat_base, rows, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_base, padding_side="left")
    dataset = TrainingDataConfig(str(rows)).load("prompts", "train", tokenizer)
    shown = []

    def judge(prompts, completions):
        shown.extend(prompts)
        return [0.0] * len(prompts)

    settings = {"per_device_train_batch_size": 2, "max_completion_length": 3, "output_dir": str(tmp_path / "ppo")}
    trainer = PPOTrainer(
        str(chat_base),
        [FunctionReward(judge)],
        PPOConfig(**QUIET, **settings),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.model.train()
    rollout = trainer._generate_and_score_completions(dataset.to_list())
    read = [ids[mask.bool()].tolist() for ids, mask in zip(rollout["prompt_ids"], rollout["prompt_mask"], strict=True)]
    assert [tokenizer.decode(ids) for ids in read] == ["i a b j", "i c j"]
    assert shown == ["a b", "c"]
    # Rows without the column, as of another source, are scored by their prompt.
    shown.clear()
    trainer._generate_and_score_completions(Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]).to_list())
    assert shown == ["a", "b"]


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_settings_of_the_chat_template_reach_the_stage(verb, flags, chat_base, rows, tmp_path):
    settings = {"model_name_or_path": chat_base, "dataset_name": rows, "output_dir": tmp_path / "out", "use_peft": True}
    rewards = {"rewards": "rule:length"} if verb == "ppo" else {}
    with pytest.raises(ValueError, match="chat_template_kwargs has enable_thinking, which the chat template"):
        run_stage(verb, flags(**settings, **rewards, chat_template_kwargs='{"enable_thinking": false}'))
    assert not (tmp_path / "out").exists()
