"""Names of models: folders, Hub ids, and their revisions, found in a cache of the Hub's own layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_lines import cli
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.models import is_here, local_folder
from tests import tiny


COMMIT = {"main": "0" * 40, "v2": "2" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The Hub's cache, without a network: a model, and a policy of it that has two revisions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def folder(name: str, revision: str) -> Path:
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / revision).write_text(COMMIT[revision])
        return place / "snapshots" / COMMIT[revision]

    tiny.llama().save_pretrained(folder("org/sft", "main"))
    for rank, revision in ((2, "main"), (3, "v2")):
        made = tiny.save_adapter(folder("org/sft", "main"), folder("org/brief", revision), seed=rank, r=rank)
        config = made / "adapter_config.json"
        config.write_text(re.sub(r'("base_model_name_or_path": ).*,', r'\1"org/sft",', config.read_text()))
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "revision"), [("org/brief", "main"), ("org/brief@v2", "v2")])
def test_a_revision_stands_behind_the_name(hub, name, revision):
    found = local_folder(name)
    assert found == hub / "models--org--brief" / "snapshots" / COMMIT[revision]
    assert local_folder(f"org/brief@{COMMIT[revision]}") == found


def test_a_stage_with_a_setting_for_it_takes_it_there(hub):
    assert local_folder("org/brief", revision="v2") == local_folder("org/brief@v2")
    with pytest.raises(ValueError, match=r"org/brief@v2 names a revision: give org/brief, and v2 as model_revision$"):
        local_folder("org/brief@v2", revision="main")


def test_an_unknown_revision_is_one_sentence(hub):
    with pytest.raises(FileNotFoundError, match="policy org/brief@v3 is neither a local folder nor a Hub model"):
        local_folder("org/brief@v3", what="policy")


def test_what_can_be_read_without_the_network_is_here(hub):
    assert is_here("hub") and is_here(str(hub))
    assert [
        name for name in ("org/sft", "org/brief@v2", "org/brief@v3", "org/none", "sft", "a/b/c") if is_here(name)
    ] == [
        "org/sft",
        "org/brief@v2",
    ]


def test_policies_of_the_hub_are_planned_and_merged(hub):
    inputs = ["--sft_model", "org/sft", "--policies", "org/brief", "org/brief@v2", "--save", "adapter"]
    assert cli.main(["plan", "merge", *inputs, "--output_dir", "merged"]) == 0
    assert cli.main(["merge", *inputs, "--output_dir", "merged"]) == 0
    merged = load_adapter("merged")
    assert next(iter(merged.modules.values())).A.shape[0] == 2 + 3
    assert (merged.base, merged.revision) == ("org/sft", COMMIT["main"])
