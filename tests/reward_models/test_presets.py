"""The presets say what the models' cards and the papers' code say."""

from __future__ import annotations

import pytest

from reward_models import PRESETS, Classifier


TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "</s>", "sep_token": "[SEP]"}

# Texts as the papers' code builds them from a post or dialogue P and a completion C, and the outputs that it reads.
EXPECTED = {
    "tldr-preference": (("C <|endoftext|> P",), (0,)),
    "faithful-summary": (("C", "P"), (1, 0)),
    "assistant-deberta": (("P", "C"), (0,)),
    "hh-helpful": (("P", "C"), (0,)),
    "hh-harmless": (("P", "C"), (0,)),
    "humor": (("C",), (1,)),
}


def test_texts_and_labels():
    assert set(PRESETS) == set(EXPECTED)
    for name, preset in PRESETS.items():
        assert (preset.format.render("P", "C", TOKENS), preset.format.labels()) == EXPECTED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented(name):
    preset = PRESETS[name]
    assert preset.model.count("/") == 1 and preset.format.sign == 1
    assert preset.prompt and preset.meaning and preset.sources
    assert all(source.startswith("https://") for source in preset.sources)


def test_no_two_presets_are_the_same_model():
    assert len({preset.model for preset in PRESETS.values()}) == len(PRESETS)


def test_the_faithful_summary_format_scores_a_bart_model(make_model, make_tokenizer):
    # <bos> summary <eos> article <eos>: two EOS, of which BART's head reads the last.
    classifier = Classifier(
        make_model("bart", num_labels=2), make_tokenizer("encoder"), PRESETS["faithful-summary"].format, name="faithful"
    )
    ids = classifier.encode("the article", "the summary")["input_ids"]
    assert classifier.tokenizer.decode(ids) == "<bos>the summary<eos>the article<eos>"
    together = classifier.score(["the article", "b"], ["the summary", "c"])
    alone = classifier.score(["the article"], ["the summary"])
    assert together[:1] == pytest.approx(alone, abs=1e-5)
