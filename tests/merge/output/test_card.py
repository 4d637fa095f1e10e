"""The model card: its header, its facts, and how to load."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.output.card import model_card
from rlhf_lines.merge.output.summary import vllm_hint
from rlhf_lines.merge.rules import RULES
from tests.merge.rules.cases import options_needed


SPEC = MergeSpec("linear", (0.25, 0.75), 0.5, 1.0, "quadratic")


@pytest.fixture(scope="module")
def record(sft, helpful, harmless, tmp_path_factory) -> dict:
    """What a merge into an adapter of rank 10 recorded."""
    output = tmp_path_factory.mktemp("merged") / "out"
    merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=output)
    return json.loads((output / "merge_spec.json").read_text())


def header(card: str) -> dict:
    _, content, _ = card.split("---\n", 2)
    return yaml.safe_load(content)


def test_the_header_claims_no_license_and_names_no_local_path(record):
    assert header(model_card(record)) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "rlhf-lines"],
    }


def test_models_of_the_hub_are_named_in_the_header(record):
    from huggingface_hub import ModelCard

    cached = {**record, "sft_model": "/cache/hub/models--org--sft/snapshots/9be4410"}
    card = model_card(cached)
    assert header(card)["base_model"] == ["org/sft"] and header(card)["base_model_relation"] == "merge"
    assert ModelCard(card).data.base_model == ["org/sft"]  # as the Hub's own library reads it


def test_inputs_have_their_hashes(record):
    card = model_card(record)
    for entry in record["policies"]:
        assert entry["sha256"] in card
    assert f"`{record['sft_sha256']}`" in card
    assert "alpha 0.5, beta 1, schedule quadratic" in card and "alpha + beta ((l-1)/(L-1))^2" in card
    assert f"torch {record['versions']['torch']}" in card
    assert "rlhf-lines merge --config merge_spec.json --output_dir repeated" in card


def test_an_adapter_says_what_a_server_needs(record):
    assert record["rank"] == 10
    assert "--max-lora-rank 16 " in model_card(record)  # the next one that vLLM has
    assert "vllm serve path/to/this/folder\n" in model_card({**record, "save": "dense"})
    assert "this adapter has 600" in model_card({**record, "rank": 600})


def test_the_serving_command_is_that_of_the_output(record):
    command = vllm_hint("path/to/the/sft/model", "path/to/this/folder", record["rank"])
    assert f"```bash\n{command}\n```" in model_card(record)


def test_statistics_have_their_hashes(record):
    assert "statistics of policy" not in model_card(record)
    folders = [{"path": f"fisher_{k}", "sha256": f"{k}" * 64} for k in (1, 2)]
    card = model_card({**record, "statistics": folders})
    for k in (1, 2):
        assert f"| statistics of policy {k} | fisher\\_{k} |  | `{str(k) * 64}` |" in card


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_its_source(record, rule):
    options = options_needed(rule) if RULES[rule].by_layer else {}
    card = model_card({**record, "spec": {**record["spec"], "rule": rule, "options": options}})
    assert f"Sources: rule {rule}: {RULES[rule].source}; LiNeS: arXiv 2410.17146." in card


def test_what_truncation_lost_is_said(record):
    truncation = {"rank": 4, "lost": 0.125, "worst_module": "model.layers.0.mlp", "worst_lost": 0.5}
    assert "truncated to rank 4, which lost 12.50%" in model_card({**record, "truncation": truncation})


def test_names_of_options_and_warnings_are_escaped(record):
    spec = {**record["spec"], "options": {"x": "<b>"}}
    card = model_card({**record, "spec": spec, "warnings": ["<script>\n# heading"]})
    assert "&lt;b&gt;" in card and "- warning: &lt;script&gt; \\# heading\n" in card and "<script>" not in card


def test_a_checkpoint_has_another_library(sft, helpful, tmp_path):
    policy = shutil.copytree(helpful, tmp_path / "policy")
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    assert header((out / "README.md").read_text())["library_name"] == "transformers"
