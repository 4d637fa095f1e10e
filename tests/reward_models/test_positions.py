"""Models that number tokens from their padding token: a text at the limit is read, one more token is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from reward_models.encoder import longest_input
from reward_models.next_token import log_probabilities
from reward_models.positions import FROM_PADDING, first_position
from rlhf_lines.limits import longest_text
from tests.tiny import word_tokenizer


OWN = {
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 3, "token_dropout": False},
    "layoutlmv3": {"coordinate_size": 2, "shape_size": 4, "visual_embed": False},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 4},
    "markuplm": {"xpath_unit_hidden_size": 2, "max_depth": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}


def tiny(kind, **changes):
    """A config of two heads with 24 positions."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"vocab_size": 13, "max_position_embeddings": 24, "pad_token_id": 1, "type_vocab_size": 1}
    return AutoConfig.for_model(kind, **{**sizes, **settings, **OWN.get(kind, {}), **changes})


@pytest.mark.parametrize("kind", sorted(FROM_PADDING))
def test_a_text_has_as_many_tokens_as_there_are_positions_behind_the_padding(kind):
    config = tiny(kind)
    model, limit = AutoModelForSequenceClassification.from_config(config).eval(), 24 - 2
    assert longest_text(config).tokens == longest_input(config, word_tokenizer()) == limit
    with torch.no_grad():
        assert model(torch.full((1, limit), 4)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError), match=r"index .*out of (range|bounds)"):
            model(torch.full((1, limit + 1), 4))


def test_no_classifier_that_numbers_so_is_forgotten():
    models = Path(transformers.__file__).parent / "models"

    def numbers_so(kind):
        return any(
            "create_position_ids_from_input_ids(" in file.read_text()
            for file in (models / model_type_to_module_name(kind)).glob("modeling_*.py")
        )

    found = {kind for kind in CLASSIFIERS if numbers_so(kind)}
    assert "roberta" in found and found <= FROM_PADDING


def test_models_that_number_from_0_have_all_their_positions():
    for kind in ("bert", "gpt2", "llama", "mpt"):
        assert first_position(AutoConfig.for_model(kind, pad_token_id=1)) == 0


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta-xl"])
def test_what_is_next_is_what_the_model_says_of_one_text_with_its_own_positions(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny(kind, is_decoder=True, initializer_range=0.5)).eval()
    rows = [[3, 4, 5], [6, 7, 8, 9], [5, 4, 3]]
    found = log_probabilities(model, rows, [[2, 3]] * 3, pad_token_id=1, batch_size=3)
    with torch.no_grad():
        own = [model(torch.tensor([row])).logits[0, -1].double().log_softmax(0)[2:4] for row in rows]
    assert (found - torch.stack(own)).abs().max() < 1e-5
