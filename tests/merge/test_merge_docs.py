"""docs/merge.md: its commands and examples run, and it says what the code does (rules: `rules/test_registry.py`)."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec, merge_policies, merge_residuals, rules
from rlhf_lines.merge.output.summary import VLLM_RANKS
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.merge.tensors.spans import ELEMENTS
from tests.merge.merge_page import PAGE, blocks, table
from tests.merge.reference import ORIGIN


WORDS = ("why", "how", "a story", "the news", "more")


@pytest.fixture
def project(sft, save_adapter, tmp_path, monkeypatch) -> Path:
    """The current folder of a user who has what the page names: models with a tokenizer, checkpoints, prompts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    vocab = {token: i for i, token in enumerate(["<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )
    model = AutoModelForCausalLM.from_pretrained(sft)
    model.config.max_position_embeddings = 128
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained("sft")
    tokenizer.save_pretrained("sft")
    here = tmp_path / "sft"
    for seed, name in enumerate(("helpful", "harmless"), start=1):
        policy = save_adapter(here, tmp_path / "policies" / name, seed=seed)
        merge_policies("sft", [policy], MergeSpec("linear", (1.0,)), save="dense", output_dir=f"dense/{name}")
        checkpoint = save_adapter(here, tmp_path / "run" / f"checkpoint-{10 * seed}", seed=seed)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 10 * seed}))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"tell me {word}"}) + "\n" for word in WORDS))
    return tmp_path


def test_the_commands_run_in_their_order(project, capsys):
    run = 0
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "rlhf-lines"
            assert cli.main(arguments) == 0, (line, capsys.readouterr().err)
            run += 1
    assert run == 15
    for name in ("merged", "merged_ties", "merged_regmean", "merged_dense", "averaged"):
        assert (project / name / "merge_spec.json").is_file()
    assert not Path("later").exists()
    weights = "adapter_model.safetensors"
    assert Path("again", weights).read_bytes() == Path("merged", weights).read_bytes()


def test_the_examples_run_in_their_order(project, monkeypatch):
    monkeypatch.setattr(rules, "RULES", dict(RULES))  # one adds a rule
    defined = {}
    torch.manual_seed(0)
    for block in blocks("python"):
        exec(compile(block, "merge.md", "exec"), defined)
    factors = zip(defined["taus"], (1.5, 0.9, 0.6), strict=True)  # K w_k
    values = torch.stack([tau["model.layers.0.a.weight"] * factor for tau, factor in factors])
    torch.testing.assert_close(defined["whole"]["model.layers.0.a.weight"], values.sort(dim=0).values[1])


def _of_other_codes() -> list[tuple[str, str]]:
    """Rule and options of every braced text in the table of public codes."""
    found = []
    for _, here in table("| code |"):
        rule = re.match(r"`?(\w+)", here)[1]
        found += [(rule, options) for options in re.findall(r"`(\{.*?\})`", here)]
    return found


@pytest.mark.parametrize(("rule", "options"), _of_other_codes())
def test_the_options_of_other_codes_are_accepted(rule, options):
    for word, number in (("density", "0.5"), ("gamma", "0.1"), (r"\.\.\.", "0.2, 0.4")):
        options = re.sub(rf'(?<!"){word}(?!")', number, options)
    options = json.loads(options.replace("1 - 0.5", "0.5"))
    taus = [{"model.layers.0.weight": torch.eye(4) * factor} for factor in (1.0, 2.0)]
    statistics = taus if RULES[rule].statistics else ()
    assert merge_residuals(taus, rule, sft=taus[0], statistics=statistics, **options)


def test_the_table_of_schedules_is_that_of_the_code():
    rows = table("| `schedule` |")
    assert [row[0] for row in rows] == list(SCHEDULES)
    depth = torch.linspace(0, 1, 5, dtype=torch.float64)
    for name, formula, _ in rows:
        for text in (formula, SCHEDULES[name].formula):
            shares = eval(text.replace("^", "**"), {"d": depth, "sqrt": torch.sqrt})
            torch.testing.assert_close(SCHEDULES[name].share(depth), shares)


def test_the_table_of_the_record_has_its_keys(project):
    folder = merge_policies(
        "sft", ["policies/helpful"], MergeSpec("linear", (1.0,)), save="adapter", rank=2, output_dir="out"
    )
    record = json.loads((folder / "merge_spec.json").read_text())
    named = [key for row in table("| key of `merge_spec.json` |") for key in row[0].replace("`", "").split(", ")]
    assert set(named) == set(record) and len(named) == len(record)


def test_the_counts_and_lists_in_the_text_are_those_of_the_code():
    text = " ".join(PAGE.split())
    *others, last = VLLM_RANKS
    assert f"takes {', '.join(map(str, others))} or {last}" in text
    assert f"of {len(ORIGIN['cases'])} cases" in text
    assert f"buffers of {ELEMENTS:,} elements" in text
