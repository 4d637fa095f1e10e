"""What is more than s B A is refused with its reason, in whatever PEFT there is."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import torch

from rlhf_lines.errors import InputProblems
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.inputs.adapter_config import _CHECKED, _HARMLESS, _PLAIN_INITIALISATIONS, _REFUSED
from tests.merge.adapters import lora_residual


def lora_fields():
    from peft import LoraConfig

    return {field.name: field for field in fields(LoraConfig)}


def test_every_field_of_peft_is_classified_once():
    """A PEFT with a new field fails here: read what it does to W + s B A, then enter it in merge/adapter_config.py."""
    classes = (_HARMLESS, _CHECKED, set(_REFUSED))
    known = set().union(*classes)
    assert lora_fields().keys() - known == set(), "new in PEFT"
    assert known - lora_fields().keys() == set(), "gone from PEFT"
    assert sum(map(len, classes)) == len(known)


def test_every_variant_that_peft_declares_is_refused():
    declared = {name for name, field in lora_fields().items() if field.metadata.get("is_lora_variant")}
    assert declared >= {"use_dora", "alora_invocation_tokens", "arrow_config"}
    assert declared <= _REFUSED.keys()
    # A variant that is chosen by its initialisation.
    assert set(lora_fields()["init_lora_weights"].metadata["lora_variants"]) == {"mica"}


def test_every_initialisation_of_peft_is_known():
    field = lora_fields()["init_lora_weights"]
    import typing

    from peft import LoraConfig

    names = {
        name for part in get_args(typing.get_type_hints(LoraConfig)["init_lora_weights"]) for name in get_args(part)
    }
    assert field.default is True
    changed = {"olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "lora_ga"}
    assert names - changed == set(_PLAIN_INITIALISATIONS) - {True, False, None}


@pytest.mark.parametrize("key", sorted(_REFUSED))
def test_every_refused_field_is_refused_with_its_reason(copy_of, helpful, edit_config, key):
    with pytest.raises(ValueError) as caught:
        load_adapter(edit_config(copy_of(helpful), **{key: {"some": "value"}}))
    assert f"sets {key} in adapter_config.json: {_REFUSED[key]}; merge dense checkpoints" in str(caught.value)
    assert not isinstance(caught.value, InputProblems)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loftq", "puts the error of a quantised base into the factors"),
        ("LoftQ", "puts the error of a quantised base into the factors"),
        *((name, "changes the base weights") for name in ("pissa", "pissa_niter_16", "olora", "corda", "lora_ga")),
        ("new_one", "changes the base weights"),
    ],
)
def test_initialisations_that_move_the_base_are_refused(copy_of, helpful, edit_config, name, reason):
    with pytest.raises(ValueError, match=reason):
        load_adapter(edit_config(copy_of(helpful), init_lora_weights=name))


@pytest.mark.parametrize("name", ["gaussian", "orthogonal", "mica", True, False])
def test_other_initialisations_are_s_b_a(sft, tmp_path, save_adapter, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = save_adapter(sft, tmp_path / "policy", seed=1, init_lora_weights=name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), folder)
    before = AutoModelForCausalLM.from_pretrained(sft).state_dict()
    after = model.merge_and_unload().state_dict()
    for key, residual in lora_residual(load_adapter(folder)).items():
        torch.testing.assert_close(after[key] - before[key], residual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"use_bdlora": True}, {"kasa": True}, {"velora": True}, {"monteclora": True}])
def test_variants_as_peft_writes_them_are_refused(sft, tmp_path, save_adapter, options):
    from peft.tuners.lora import config

    made = {
        "use_bdlora": lambda: {
            "use_bdlora": config.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False)
        },
        "kasa": lambda: {"kasa_config": config.KasaConfig()},
        "velora": lambda: {"velora_config": config.VeloraConfig(num_groups=4)},
        "monteclora": lambda: {"monteclora_config": config.MontecloraConfig()},
    }[next(iter(options))]()
    with pytest.raises(ValueError, match=f"sets {next(iter(made))} in adapter_config.json"):
        load_adapter(save_adapter(sft, tmp_path / "policy", seed=1, target_modules=["q_proj"], **made))


def test_a_config_without_rank_is_named(copy_of, helpful, edit_config):
    with pytest.raises(ValueError, match=r"has r None in adapter_config.json, expected a number"):
        load_adapter(edit_config(copy_of(helpful), r=None))


def test_all_problems_of_one_adapter_are_told(copy_of, helpful, edit_config):
    folder = edit_config(copy_of(helpful), bias="all", use_dora=True, modules_to_save=["lm_head"])
    with pytest.raises(InputProblems) as caught:
        load_adapter(folder)
    assert len(caught.value.problems) == 3
    for problem, words in zip(caught.value.problems, ("bias 'all'", "modules_to_save", "use_dora"), strict=True):
        assert problem.startswith(f"adapter {str(folder)!r} ") and words in problem
