"""Files that are not what their names say: pointers of Git LFS, and damaged tokenizers, wherever they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from reward_models import load
from reward_models.similarity import Similarity
from rlhf_lines.data.sources import read
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.tensors.tensor_file import TensorFile
from rlhf_lines.models import load_tokenizer, local_folder


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 132735\n"


def write_pointer(path: Path) -> str:
    """Write a pointer of Git LFS, and return what is said of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(POINTER)
    return (
        f"{path} is a pointer of Git LFS, not the file itself, which was not fetched: run git lfs pull in {path.parent}"
    )


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-00002-of-00003.safetensors", "adapter_model.safetensors", "tokenizer.json"],
)
def test_a_pointer_in_a_folder_of_a_model_is_named(tmp_path, name):
    said = write_pointer(tmp_path / name)
    with pytest.raises(ValueError) as caught:
        local_folder(str(tmp_path))
    assert str(caught.value) == said


def test_a_pointer_that_nothing_reads_does_no_harm(tmp_path):
    write_pointer(tmp_path / "consolidated.safetensors")
    write_pointer(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"of weights")
    assert local_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet", "train.jsonl.gz"])
@pytest.mark.parametrize("of_folder", [True, False], ids=["folder", "file"])
def test_a_pointer_in_place_of_rows_is_named(tmp_path, name, of_folder):
    said = write_pointer(tmp_path / name)
    with pytest.raises(ValueError) as caught:
        read(str(tmp_path if of_folder else tmp_path / name))
    assert str(caught.value) == said


def test_a_pointer_is_named_where_python_reads_the_file(tmp_path):
    said = write_pointer(tmp_path / "gram.safetensors")
    with pytest.raises(ValueError) as caught:
        TensorFile(tmp_path / "gram.safetensors")
    assert str(caught.value) == said


def test_a_pointer_in_an_adapter_is_named(tmp_path):
    LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], base_model_name_or_path="sft").save_pretrained(tmp_path)
    said = write_pointer(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_adapter(tmp_path)
    assert str(caught.value) == said


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_in_a_reward_model_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"of weights")
    said = write_pointer(tmp_path / name)
    for loads in (load, Similarity.from_pretrained):
        with pytest.raises(ValueError) as caught:
            loads(str(tmp_path))
        assert str(caught.value) == said


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of three words, which can be loaded."""
    whole = Tokenizer(WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>").save_pretrained(folder)
    assert len(load_tokenizer(folder)) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"type": "of tomorrow"}}, "did not match any variant of untagged enum"),
        ({"version": "2.0"}, "Unknown tokenizer version '2.0'"),
    ],
)
def test_a_tokenizer_that_the_library_is_too_old_for_is_not_called_damaged(tmp_path, change, reason):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{path} cannot be read by tokenizers {tokenizers.__version__} (") and reason in said
    assert said.endswith(
        "): it was written by a newer version, so update tokenizers, or it is damaged, so copy it again from where it "
        "is whole"
    )


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("tokenizer.json", lambda text: text[:99], "Expecting ':' delimiter"),
        ("tokenizer.json", lambda text: "", "Expecting value"),
        ("tokenizer.json", lambda text: "[]", "no JSON object"),
        ("tokenizer_config.json", lambda text: text[:20], "Unterminated string"),
        ("tokenizer_config.json", lambda text: "[]", "no JSON object"),
    ],
    ids=["cut off", "empty", "of another kind", "settings cut off", "settings of another kind"],
)
def test_a_damaged_tokenizer_is_named(tmp_path, file, change, reason):
    write_tokenizer(tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{path} is damaged (") and reason in str(caught.value)
    assert str(caught.value).endswith("): copy it again from where it is whole")
