"""A sweep and all that is done with it later neither write nor say a secret that they were given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rlhf_lines import cli, redaction
from tests.sweep.of_a_run import words


SECRET, OF_ENVIRONMENT = "hunter2-is-no-word", "swordfish-neither"
JUDGE = """
import logging


def keyed(prompts, completions, *, api_key, headers=None, refuses=False):
    logging.getLogger("rlhf_lines.judge").warning("%d texts are sent with %s", len(completions), api_key)
    if refuses and len(completions) > 1:
        raise ValueError(f"403 at https://me:{api_key}@judge/v1?token={api_key}")
    return [float(len(text)) for text in completions]
"""
KEYED = {"model": "keyed_judge:keyed", "options": {"api_key": SECRET, "headers": {"Authorization": f"Bearer {SECRET}"}}}
REFUSING = {**KEYED, "name": "refusing", "options": {"api_key": SECRET, "refuses": True}}
WRONG = [
    (["--temperature", SECRET], "invalid float value: '***'"),
    (["--hub_token", SECRET], "unknown flag '--hub_token'"),
    ([f"--hub_tokn={SECRET}"], "unknown flag '--hub_tokn=***'"),
    (["--vllm", json.dumps({"hf_token": SECRET})], "vllm is given, but engine is local"),
    (["--groups", json.dumps({"name": "more", "options": {"token": SECRET}})], "unknown option"),
    (["--groups", json.dumps({"name": "more", "api_key": SECRET})], "unknown key 'api_key'"),
    (["--chat_template_kwargs", json.dumps({"api_key": SECRET})], "{'api_key': '***'}, but"),
    (["--sft_model", f"https://me:{SECRET}@host/sft"], "https://***@host/sft does not exist"),
    (["--dataset_name", f"https://host/rows.jsonl?token={SECRET}"], "https://host/rows.jsonl?token=*** is neither"),
    (["--control", f"https://me:{SECRET}@host/texts"], "https://***@host/texts is neither"),
    (["--rewards", "rule:length", json.dumps({**KEYED, "api_key": SECRET})], "has the unknown key 'api_key'"),
    (["--rewards", "rule:length", json.dumps({**KEYED, "options": {"api_kye": SECRET}})], "with its options api_kye"),
    (["--rewards", "rule:length", json.dumps(KEYED)[:-2]], '"api_key": "***"'),
    (["--rewards", "rule:length", json.dumps(REFUSING)], "403 at https://***@judge/v1?token=***"),
]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, caplog):
    """A function that runs a verb, looks for secrets in all that it says and leaves, and returns what it says."""
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods" / "keyed_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path / "mods")
    monkeypatch.setattr(redaction, "_told", set())
    monkeypatch.setenv("HF_TOKEN", OF_ENVIRONMENT)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments, status: int = 0) -> str:
        redaction._told.clear()  # a process of its own
        found = cli.main(list(map(str, arguments)))
        said = "".join(capfd.readouterr()) + caplog.text
        caplog.clear()
        assert found == status, said
        files = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
        for secret in (SECRET, OF_ENVIRONMENT):
            assert secret not in said
            assert [str(path) for path, content in files.items() if secret.encode() in content] == []
        return said

    return run


@pytest.fixture
def settings(flags, dataset, tmp_path) -> list[str]:
    """A sweep with a judge that has a key, of data and texts in a folder that is called as an address with a password.

    Only so is there such an address that can be read here.
    """
    share = tmp_path / f"https:/me:{SECRET}@host"
    share.mkdir(parents=True)
    shutil.copy(dataset, share / "rows.jsonl")
    (share / "texts.txt").write_text("ab c\n\nde f\n\nxyz")
    small = {"scalings": ["0.5 1.5"], "num_weights": 3, "test_prompts": 4, "max_new_tokens": 4}
    read = {"dataset_name": share / "rows.jsonl", "control": share / "texts.txt"}
    return flags("sweep", rewards=["tiny_rewards:early", json.dumps(KEYED)], **small, **read)


def test_a_sweep_and_what_follows_keep_their_secrets(run, settings):
    assert "28 texts are sent with ***" in run("sweep", *settings)
    assert "kept sweep, which was complete" in run("sweep", *settings, "--resume")
    run("score", "sweep", "--rewards", json.dumps({**KEYED, "name": "late"}))
    run("score", "sweep", "--rewards", json.dumps(REFUSING), status=2)
    run("score", "sweep", "--rewards", json.dumps({**KEYED, "name": "late"})[:-2], status=2)
    run("score", "sweep", "--rewards", f"https://me:{SECRET}@host/model", status=2)
    run("score", "sweep", "--rewards", "rule:length", "--hub_token", SECRET, status=2)
    run("front", "sweep")
    run("report", "sweep")
    run("export", "sweep", "--format", "both")
    run("export", "sweep", "--format", SECRET, f"--token={SECRET}", status=2)
    run("pick", "sweep", "--preference", "0.5", "0.5")
    run("pick", "sweep", "--preference", "0.5", "0.5", "--api_key", SECRET, status=2)
    run("plan", "sweep", *settings)


def test_a_sweep_that_fails_keeps_its_secrets(run, settings):
    for more, sentence in WRONG:
        assert sentence in run("sweep", *settings, *more, status=2)
    assert not Path("sweep").exists()


def test_a_stopped_sweep_keeps_its_secrets(run, settings, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lines.sweep.run.trace_front", interrupt)
        run("sweep", *settings, status=130)
    assert Path(".sweep.partial", "run.sqlite").is_file()
    run("sweep", *settings, "--resume")


def test_secrets_of_a_config_are_kept(run, settings, tmp_path):
    place = settings.index("--rewards")
    beside = [*settings[:place], *settings[place + 3 :]]
    rewards = ["tiny_rewards:early", KEYED]
    for number, (content, status) in enumerate(
        [
            ({"rewards": rewards}, 0),
            ({"rewards": [*rewards[:1], {**KEYED, "api_key": SECRET}]}, 2),
            ({"rewards": rewards, "hub_token": SECRET, "temperature": SECRET}, 2),
            ({"rewards": rewards, "vllm": {"hf_token": SECRET}}, 2),
        ]
    ):
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump(content))
        run("sweep", "--config", config, *beside, status=status)
    config.write_text(f"hub_token: {SECRET}\nhub_token: {SECRET}\n")
    run("sweep", "--config", config, *beside, status=2)
    config.write_text(f"rewards:\n- model: m\n  options: {{api_key: {SECRET}\n")
    run("sweep", "--config", config, *beside, status=2)


@pytest.mark.parametrize("verb", ["fisher", "gram"])
def test_statistics_keep_their_secrets(run, settings, sft, policies, verb):
    data = settings[settings.index("--dataset_name") + 1]
    of = {"sft_model": sft, "policy": policies[0], "dataset_name": data, "num_prompts": 3, "max_new_tokens": 4}
    arguments = [verb, *words({**of, "output_dir": verb})]
    run(*arguments)
    run(*arguments, "--resume")
    run(*arguments, "--overwrite", "--num_prompts", "4")
    for more in (
        ["--hub_token", SECRET],
        [f"--tokn={SECRET}"],
        ["--dtype", SECRET, "--token", SECRET],
        ["--chat_template_kwargs", json.dumps({"api_key": SECRET})],
        ["--policy", f"https://me:{SECRET}@host/policy"],
        ["--dataset_name", f"https://me:{SECRET}@host/rows"],
    ):
        run(*arguments, "--overwrite", *more, status=2)


def test_a_merge_keeps_its_secrets(run, sft, policies):
    of = {"sft_model": sft, "policies": policies[:2], "weights": ["0.5", "0.5"], "save": "adapter"}
    arguments = ["merge", *words({**of, "output_dir": "merged"})]
    run(*arguments)
    for more in (
        ["--hub_token", SECRET],
        [f"--token={SECRET}", "--dtype", SECRET],
        ["--rule_options", json.dumps({"token": SECRET})],
        ["--sft_model", f"https://me:{SECRET}@host/sft"],
        ["--push_to_hub", "--hub_model_id", f"https://me:{SECRET}@hub/merged"],
    ):
        run(*arguments, "--overwrite", *more, status=2)
