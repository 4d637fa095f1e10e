"""What is known, refuted or left open about the origin of policies."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.errors import InputProblems
from rlhf_lines.merge import MergeSpec, checkpoint_sha256, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.provenance import check_same_base, hub_id, load_adapters, load_inputs, weights_sha256
from rlhf_lines.merge.inputs.tokenizers import compare_tokenizers, vocabulary


VOCABULARY = {"a": 0, "b": 1, "c": 2}


def warnings_of(sft: Path, *policies: Path) -> list[str]:
    with contextlib.ExitStack() as stack:
        return load_inputs(stack.enter_context(Checkpoint(sft)), policies, stack)[1]


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))


def tokenizer(folder: Path, vocab=None, **parts) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab or VOCABULARY}, **parts}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


# --- origin ---


def test_an_adapter_with_the_hash_of_the_sft_model_is_known(sft, helpful, copy_of):
    policy = copy_of(helpful)
    edit(policy / "rlhf_lines.json", sft_sha256=checkpoint_sha256(sft))
    assert warnings_of(sft, policy) == []


def test_an_adapter_that_names_its_sft_model_is_known(sft, helpful):
    """TRL records no hash, and whoever gives the model that an adapter names can do no more."""
    assert warnings_of(sft, helpful) == []


def test_checkpoints_without_a_record_are_told_in_one_line_that_says_what_to_do(sft, helpful, copy_of):
    dense = [copy_of(sft, name) for name in ("one", "two")]
    for folder in dense:
        save_file(
            {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()},
            folder / "model.safetensors",
        )
    warning, copies = warnings_of(sft, helpful, *dense)
    assert warning == (
        f"no SFT model is recorded of policies {str(dense[0])!r}, {str(dense[1])!r}: make sure that it was {str(sft)!r}"
    )
    assert "is a copy of" in copies


def test_a_policy_that_is_the_sft_model_is_told_once(sft, helpful, copy_of):
    dense = copy_of(sft, "one")
    assert warnings_of(sft, helpful, dense) == [f"policy {str(dense)!r} is the SFT model: its residual is zero"]


def test_a_folder_of_the_hubs_cache_has_the_hubs_name(sft, helpful, copy_of, edit_config, tmp_path):
    cached = tmp_path / "models--org--sft" / "snapshots" / "9be4410"
    cached.parent.mkdir(parents=True)
    copy_of(sft, "sft").rename(cached)
    policy = edit_config(copy_of(helpful), base_model_name_or_path="org/sft", revision="9be4410")
    assert warnings_of(cached, policy) == warnings_of(cached, edit_config(policy, revision=None)) == []
    assert hub_id(cached) == "org/sft" and hub_id(sft) is None


def test_one_wrong_hash_among_adapters_is_refused(sft, helpful, harmless, copy_of):
    """Where some adapters record no hash, paths are compared; a hash that is there must still be right."""
    policy = copy_of(harmless)
    edit(policy / "rlhf_lines.json", sft_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"trained on SFT weights 000000000000, but .* one base \(see sft_sha256"):
        warnings_of(sft, helpful, policy)


def test_a_checkpoint_without_a_record_is_warned_of(sft, copy_of):
    policy = copy_of(sft)
    path = policy / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    (warning,) = warnings_of(sft, policy)
    assert warning.startswith("no SFT model is recorded of policy ")


@pytest.mark.parametrize("file", ["rlhf_lines.json", "merge_spec.json"])
def test_the_record_of_a_checkpoint_decides(sft, copy_of, file):
    policy = copy_of(sft)
    edit(policy / file, sft_sha256=checkpoint_sha256(sft))
    assert warnings_of(sft, policy) == [f"policy {str(policy)!r} is the SFT model: its residual is zero"]
    edit(policy / file, sft_sha256="0" * 64)
    with pytest.raises(ValueError, match=rf"trained on SFT weights 000000000000, but .*see sft_sha256 in {file}"):
        warnings_of(sft, policy)


@pytest.mark.parametrize("file", ["rlhf_lines.json", "merge_spec.json"])
def test_a_hash_that_is_no_text_is_named(sft, copy_of, file):
    policy = copy_of(sft)
    edit(policy / file, sft_sha256=5)
    with pytest.raises(ValueError, match=rf"{file}' has sft_sha256 5, expected a text"):
        warnings_of(sft, policy)


def test_a_merged_checkpoint_is_a_policy_of_known_origin(sft, helpful, copy_of, tmp_path):
    merged = merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "merged")
    assert warnings_of(sft, merged) == []
    other = copy_of(sft)
    path = other / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"merged' was trained on SFT weights"):
        warnings_of(other, merged)


@pytest.mark.parametrize(
    "known_as",
    [
        {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"},
        {"base_model_name_or_path": "/home/else/where", "revision": "9be4410"},
        {"base_model_name_or_path": None},
    ],
    ids=str,
)
def test_an_sft_model_may_be_known_by_another_name(sft, helpful, harmless, copy_of, edit_config, tmp_path, known_as):
    policies = [helpful, edit_config(copy_of(harmless), **known_as)]
    spec = MergeSpec("linear", (0.5, 0.5))
    with pytest.raises(ValueError, match="say --sft_renamed"):
        merge_policies(sft, policies, spec, save="adapter", output_dir=tmp_path / "out")
    outs = [
        merge_policies(sft, given, spec, save="adapter", output_dir=tmp_path / name, sft_renamed=True)
        for name, given in (("a", policies), ("b", [helpful, harmless]))
    ]
    one, other = ((out / "adapter_model.safetensors").read_bytes() for out in outs)
    assert one == other
    edit(policies[1] / "rlhf_lines.json", sft_sha256="0" * 64)
    with pytest.raises(ValueError, match="trained on SFT weights 000000000000"):
        merge_policies(sft, policies, spec, save="adapter", output_dir=tmp_path / "c", sft_renamed=True)


def test_main_is_the_revision_of_an_adapter_that_names_none(sft, helpful, harmless, copy_of, edit_config):
    check_same_base(list(map(load_adapter, [helpful, edit_config(copy_of(harmless), revision="main")])), sft)


@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_that_names_no_base_is_told_wherever_it_stands(sft, helpful, harmless, copy_of, edit_config, first):
    policies = [edit_config(copy_of(helpful), base_model_name_or_path=None), harmless][:: 1 if first else -1]
    with pytest.raises(ValueError, match=r"copy' does not say what it was trained on; .*say --sft_renamed"):
        check_same_base(list(map(load_adapter, policies)), sft)


def test_a_relative_base_is_found_from_any_folder(sft, helpful, harmless, copy_of, edit_config, tmp_path, monkeypatch):
    """As a project's adapters name it, trained there; a folder of that name elsewhere is another one."""
    base = copy_of(sft, "project/models/sft")
    policies = [
        edit_config(copy_of(policy, f"project/{policy.name}"), base_model_name_or_path="models/sft")
        for policy in (helpful, harmless)
    ]
    adapters = list(map(load_adapter, policies))
    monkeypatch.chdir(sft.parent)
    check_same_base(adapters, base)
    check_same_base([adapters[0], replace(adapters[1], base=str(base))], base)
    with pytest.raises(ValueError, match=r"was trained on models/sft, but the SFT model given is"):
        check_same_base(adapters, sft)
    copy_of(sft, "elsewhere/models/sft")
    monkeypatch.chdir(tmp_path / "elsewhere")  # what a name means from the current folder comes first
    with pytest.raises(ValueError, match=r"was trained on models/sft, but the SFT model given is"):
        check_same_base(adapters, base)


def test_one_relative_name_in_two_projects_is_two_models(sft, helpful, harmless, copy_of, edit_config, monkeypatch):
    bases = [copy_of(sft, f"{project}/models/sft") for project in ("a", "b")]
    adapters = [
        load_adapter(edit_config(copy_of(policy, f"{project}/policy"), base_model_name_or_path="models/sft"))
        for project, policy in (("a", helpful), ("b", harmless))
    ]
    monkeypatch.chdir(sft.parent)
    for adapter, base in zip(adapters, bases, strict=True):
        check_same_base([adapter], base)
    with pytest.raises(ValueError, match="residuals add up only on one base"):
        check_same_base(adapters, bases[0])


def test_a_policy_that_is_given_twice_is_told(sft, helpful, harmless, copy_of, edit_config):
    def told(*policies):
        return [warning for warning in warnings_of(sft, *policies) if "gets both weights" in warning]

    copy, dense = copy_of(helpful, "copy"), copy_of(sft, "dense")
    assert told(helpful, harmless) == []
    assert told(helpful, helpful) == [f"policy {str(helpful)!r} is given twice: its residual gets both weights"]
    (warning,) = told(helpful, harmless, copy)
    assert f"{str(copy)!r} is a copy of {str(helpful)!r}" in warning
    assert told(helpful, edit_config(copy, lora_alpha=9)) == []
    assert len(told(dense, copy_of(dense, "again"), dense)) == 2


@pytest.mark.parametrize("half", "AB")
def test_an_adapter_that_was_not_trained_is_told(sft, helpful, copy_of, edit_weights, half):
    """As PEFT makes it, B is zero; an adapter with a single module that moved is a policy."""

    def zeroed(tensors, but=()):
        return {
            name: tensor * 0 if f"lora_{half}" in name and name not in but else tensor
            for name, tensor in tensors.items()
        }

    policy = edit_weights(copy_of(helpful), zeroed)
    assert warnings_of(sft, helpful, policy) == [f"policy {str(policy)!r} is the SFT model: its residual is zero"]
    one = next(name for name in load_file(helpful / "adapter_model.safetensors") if f"lora_{half}" in name)
    assert warnings_of(sft, edit_weights(copy_of(helpful, "moved"), lambda tensors: zeroed(tensors, [one]))) == []


def test_the_folder_above_named_adapters_says_so(sft, helpful, copy_of, tmp_path):
    copy_of(helpful, "named/helpful")
    for load in (warnings_of, lambda sft, folder: load_adapters([folder], sft)):
        with pytest.raises(
            FileNotFoundError, match=r"named' has no adapter_config.json.* holds the adapters helpful: name"
        ):
            load(sft, tmp_path / "named")


# --- architecture ---


def test_another_architecture_is_one_sentence(sft, copy_of):
    policy = copy_of(sft)
    edit(policy / "config.json", model_type="mistral", num_key_value_heads=4)
    with pytest.raises(ValueError) as caught:
        warnings_of(sft, policy)
    assert "has model_type 'mistral' (the SFT model 'llama'), num_key_value_heads 4 (the SFT model 2)" in str(
        caught.value
    )
    assert "problems" not in str(caught.value)


def test_names_and_shapes_are_counted(sft, copy_of):
    policy = copy_of(sft)
    path = policy / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"has shape \(31, 16\) for 'lm_head.weight', .* \(32, 16\) \(and 1 more differ"
    ):
        warnings_of(sft, policy)


def test_settings_that_change_no_shape_are_a_warning(sft, copy_of):
    policy = copy_of(sft)
    edit(policy / "config.json", rms_norm_eps=0.5, transformers_version="4.0", new_key=1)
    (warning,) = (told for told in warnings_of(sft, policy) if "config.json" in told)
    assert "rms_norm_eps 0.5 (the SFT model 1e-06) in config.json" in warning
    assert "transformers_version" not in warning and "new_key" not in warning


def test_all_problems_of_all_inputs_are_told_at_once(sft, helpful, copy_of, edit_config, tmp_path):
    first = edit_config(copy_of(helpful, "a"), use_dora=True)
    second = copy_of(sft, "b")
    edit(second / "config.json", vocab_size=99)
    tokenizer(second)
    with pytest.raises(InputProblems) as caught:
        merge_policies(
            sft,
            [first, second, tmp_path / "c"],
            MergeSpec("linear", (1, 1, 1)),
            save="dense",
            output_dir=tmp_path / "o",
        )
    dora, missing, size, words = caught.value.problems
    assert "use_dora" in dora and "c' is not a folder" in missing and "vocab_size 99" in size and "vocabulary" in words
    assert not (tmp_path / "o").exists()


# --- tokenizer ---


def test_equal_vocabularies_need_not_be_equal_files(tmp_path):
    sft = tokenizer(tmp_path / "sft")
    policy = tokenizer(tmp_path / "policy", padding={"direction": "Left"}, truncation={"max_length": 5})
    assert compare_tokenizers(policy, sft) == []
    (tmp_path / "adapter").mkdir()
    assert compare_tokenizers(tmp_path / "adapter", sft) == []


@pytest.mark.parametrize(
    ("vocab", "added", "words"),
    [
        ({"a": 0, "b": 2, "c": 1}, [], r"2 differ, such as 'b' \(id 2 there, 1 here\), 'c' \(id 1 there, 2 here\)"),
        (
            VOCABULARY,
            [{"id": 3, "content": "<pad>"}],
            r"of 4 tokens .* of 3: 1 differs, .*'<pad>' \(id 3 there, none here\); .*remove the tokenizer's files from",
        ),
    ],
)
def test_another_vocabulary_is_refused(tmp_path, vocab, added, words):
    sft = tokenizer(tmp_path / "sft")
    with pytest.raises(ValueError, match=words):
        compare_tokenizers(tokenizer(tmp_path / "policy", vocab, added_tokens=added), sft)


def test_vocabularies_of_older_files_are_read_too(tmp_path):
    fast = tokenizer(tmp_path / "fast", [["a", -1.0], ["b", -2.0]])  # Unigram
    assert vocabulary(fast) == {"a": 0, "b": 1}
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.txt").write_text("a\nb\n")
    assert vocabulary(slow) == {"a": 0, "b": 1}
    (slow / "added_tokens.json").write_text('{"c": 2}')
    assert vocabulary(slow) == VOCABULARY
    assert vocabulary(tmp_path) is None


def test_tokens_that_the_settings_of_a_tokenizer_add_are_read_too(tmp_path):
    """A folder of transformers 4 may name them there alone, and a fast tokenizer of it holds them in its one file."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder={"2": {"content": "c", "special": True}})
    assert vocabulary(tmp_path) == VOCABULARY


def test_other_parts_of_a_tokenizer_are_warnings(tmp_path):
    sft = tokenizer(tmp_path / "sft", pre_tokenizer={"type": "Whitespace"})
    policy = tokenizer(tmp_path / "policy", pre_tokenizer={"type": "ByteLevel"})
    edit(policy / "tokenizer_config.json", chat_template="{{ messages }}")
    parts, template = compare_tokenizers(policy, sft)
    assert "another pre_tokenizer than" in parts and "another chat template" in template
    (sft / "chat_template.jinja").write_text("{{ messages }}")
    assert len(compare_tokenizers(policy, sft)) == 1


# --- hashes and losses ---


def test_a_file_that_was_written_again_is_hashed_again(helpful, copy_of):
    policy = copy_of(helpful)
    path = policy / "adapter_model.safetensors"
    before = weights_sha256(policy)
    assert weights_sha256(helpful) == before
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))
    assert weights_sha256(policy) != before


def test_the_hash_of_a_checkpoint_is_that_of_the_ppo_stage(sft):
    assert weights_sha256(sft) == checkpoint_sha256(sft)


def test_a_merge_that_loses_much_says_so_everywhere(sft, helpful, copy_of, edit_weights, tmp_path):
    from rlhf_lines.summary import summary

    policy = edit_weights(copy_of(helpful), lambda tensors: {name: 0.05 * tensor for name, tensor in tensors.items()})
    out = merge_policies(
        sft, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out", dtype="bfloat16"
    )
    record = json.loads((out / "merge_spec.json").read_text())
    lost = record["lost_residual"]
    assert lost["relative_l2"] > 0.1 and lost["unchanged"] > 0.1
    assert "--dtype float32" in record["warnings"][-1] and "--save adapter" in record["warnings"][-1]
    text = summary("merge", out)
    numbers = f"by {lost['relative_l2']:.2%} (relative L2); {lost['unchanged']:.1%} of the changed parameters"
    assert numbers in text and f"warning: {record['warnings'][-1]}" in text
    assert numbers in (out / "README.md").read_text()


# --- all problems of all policies are told at once ---


def test_all_problems_of_all_policies_are_told_and_nothing_is_written(
    sft, helpful, copy_of, edit_config, edit_weights, tmp_path
):
    dora = edit_config(copy_of(helpful, "dora"), use_dora=True)
    stranger = edit_config(copy_of(helpful, "stranger"), base_model_name_or_path="org/other")
    broken = edit_weights(copy_of(helpful, "broken"), lambda t: {name: value * torch.nan for name, value in t.items()})
    empty = copy_of(helpful, "empty")
    (empty / "adapter_model.safetensors").unlink()
    nothing = tmp_path / "nothing"
    policies = [helpful, dora, stranger, broken, empty, nothing]
    spec = MergeSpec("linear", (0.2,) * 6)
    before = sorted(tmp_path.iterdir())
    for save in ("adapter", "dense"):
        with pytest.raises(InputProblems) as caught:
            merge_policies(sft, policies, spec, save=save, output_dir=tmp_path / "out")
        told = str(caught.value)
        assert told.startswith("5 problems: (1) ") and "\n" not in told
        for folder, words in (
            (dora, "use_dora"),
            (stranger, "one base"),
            (broken, "finite"),
            (empty, "has no adapter_m"),
        ):
            assert any(repr(str(folder)) in problem and words in problem for problem in caught.value.problems)
    assert sorted(tmp_path.iterdir()) == before


def test_every_policy_of_another_base_is_told(sft, helpful, copy_of, edit_config):
    first, *others = (
        edit_config(copy_of(helpful, name), base_model_name_or_path=base)
        for name, base in (("a", "org/a"), ("b", "org/b"), ("c", None))
    )
    adapters = [load_adapter(folder) for folder in (first, *others)]
    with pytest.raises(InputProblems) as caught:
        check_same_base(adapters, sft)
    a, b, c = caught.value.problems
    assert "was trained on org/a, but the SFT model given is" in a
    assert "was trained on org/b" in b and "on org/a; residuals add up only on one base" in b
    assert "does not say what it was trained on" in c


def test_every_policy_with_another_hash_is_told(sft, helpful, copy_of):
    folders = []
    for name, digit in (("a", "1"), ("b", "2")):
        folders.append(copy_of(helpful, name))
        (folders[-1] / "rlhf_lines.json").write_text(json.dumps({"sft_sha256": digit * 64}))
    with pytest.raises(InputProblems) as caught:
        load_adapters(folders, sft)
    a, b = caught.value.problems
    assert "trained on SFT weights 111111111111, but" in a
    assert "trained on SFT weights 222222222222" in b and "on 111111111111;" in b


def test_one_problem_is_one_sentence(sft, helpful, copy_of, edit_config):
    folder = edit_config(copy_of(helpful), use_dora=True)
    with pytest.raises(ValueError, match=r"^adapter '.*' sets use_dora") as caught:
        load_adapters([helpful, folder], sft)
    assert not isinstance(caught.value, InputProblems)
    assert [adapter.path for adapter in load_adapters([helpful], sft)[0]] == [str(helpful)]
