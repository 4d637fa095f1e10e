"""A folder written after TRL's RewardTrainer is scored on the tokens and at the position that it was trained on."""

from __future__ import annotations

import pytest
import torch

from reward_models import Classifier, Format


trl = pytest.importorskip("trl")

PAIRS = [
    {"prompt": "the cat", "chosen": " sat.", "rejected": " looked<eos>"},
    {"prompt": "", "chosen": "a good answer", "rejected": " and more!"},
]


@pytest.mark.parametrize("pad_token", ["<pad>", None], ids=["pad", "pad-becomes-eos"])
def test_tokens_and_scores_are_those_of_the_reward_trainer(make_model, make_tokenizer, tmp_path, pad_token):
    from datasets import Dataset

    tokenizer = make_tokenizer("bos", pad_token=pad_token)
    arguments = trl.RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False)
    trainer = trl.RewardTrainer(
        make_model("llama"), arguments, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer
    )
    classifier = Classifier(trainer.model, trainer.processing_class, Format(append_eos=True), name="tiny")
    trained = list(trainer.train_dataset)
    for pair, row in zip(PAIRS, trained, strict=True):
        assert classifier.encode(pair["prompt"], pair["chosen"])["input_ids"] == row["chosen_ids"]
        assert classifier.encode(pair["prompt"], pair["rejected"])["input_ids"] == row["rejected_ids"]
    batch = trainer.data_collator(trained)
    with torch.no_grad():
        expected = (
            trainer.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].tolist()
        )
    prompts = [pair["prompt"] for pair in PAIRS] * 2
    completions = [pair[name] for name in ("chosen", "rejected") for pair in PAIRS]
    assert classifier.score(prompts, completions) == pytest.approx(expected, abs=1e-5)
