"""A secret is known by its key, by who gave it, or by its looks; everything else stays to the letter."""

from __future__ import annotations

import json
import logging

import pytest

from rlhf_lines import redaction
from rlhf_lines.redaction import HIDDEN, guard, is_secret, redact, tell, without_secrets


SECRET = "hunter2-is-no-word"
NAMES_OF_SECRETS = (
    "hub_token", "push_to_hub_token", "use_auth_token", "token", "HF_TOKEN", "api_key", "apiKey", "X-Api-Key",
    "password", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "Authorization", "client_secret",
    "proxy_password", "accessToken",
)  # fmt: skip
OTHER_NAMES = (
    "eos_token", "pad_token", "max_new_tokens", "tokenizer", "label_key", "key", "average_tokens_across_devices",
    "include_num_input_tokens_seen", "author", "keys", "HF_TOKEN_PATH", "num_tokens", "",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(redaction, "_told", set())


def test_names_of_secrets_are_known_by_their_words():
    assert [name for name in NAMES_OF_SECRETS if not is_secret(name)] == []
    assert [name for name in OTHER_NAMES if is_secret(name)] == []


def test_settings_lose_their_secrets_at_any_depth_and_nothing_else():
    options = {"api_key": SECRET, "scale": 2.0}
    settings = {
        "hub_token": SECRET,
        "eos_token": "<eos>",
        "use_auth_token": True,
        "seed": 0,
        "rewards": [
            {"model": "m:f", "options": options},
            "rule:length",
            json.dumps({"model": "n", "options": options}),
        ],
        "vllm": {"headers": {"Authorization": f"Bearer {SECRET}"}},
        "vllm_server_base_url": f"http://me:{SECRET}@host:8000/v1?token={SECRET}&beta=2",
        "dataset_name": "ssh://git@host/data",
    }
    assert without_secrets(settings) == {
        "eos_token": "<eos>",
        "use_auth_token": True,
        "seed": 0,
        "rewards": [
            {"model": "m:f", "options": {"scale": 2.0}}, "rule:length", '{"model": "n", "options": {"scale": 2.0}}',
        ],
        "vllm": {"headers": {}},
        "vllm_server_base_url": f"http://{HIDDEN}@host:8000/v1?token={HIDDEN}&beta=2",
        "dataset_name": "ssh://git@host/data",
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["--hub_token", SECRET], [f"--hub_token={SECRET}"], ["--hub_tokn", SECRET], [f"--api-key={SECRET}"],
     ["--rewards", "a", json.dumps({"options": {"api_key": SECRET}})], ["--rewards", f'{{"api_key": "{SECRET}", ']],
)  # fmt: skip
def test_what_a_flag_gave_is_hidden_wherever_it_is_said(arguments, caplog):
    guard(["ppo", *arguments, "--output_dir", "outputs/run"])
    assert redact(f"invalid value: '{SECRET}' in outputs/run") == f"invalid value: '{HIDDEN}' in outputs/run"
    logging.getLogger("somebody").warning("tried %s of %d", SECRET, 3)
    assert caplog.messages == [f"tried {HIDDEN} of 3"]


def test_what_a_file_or_the_environment_holds_is_hidden(monkeypatch):
    tell({"model_init_kwargs": {"token": SECRET}, "seed": 3})
    monkeypatch.setenv("SOME_API_KEY", "another-secret-value")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    assert redact(f"{SECRET} another-secret-value /tmp/agent 3") == f"{HIDDEN} {HIDDEN} /tmp/agent 3"


@pytest.mark.parametrize("secret", ["hf_AbCdEfGh12", "sk-proj-abcdefghijklmnop1", "ghp_0123456789abcdefXY"])
def test_what_looks_like_a_secret_is_hidden(secret):
    assert redact(f"unknown flag '--x={secret}'") == f"unknown flag '--x={HIDDEN}'"


@pytest.mark.parametrize("before", ["https://", "https:/", "ftp://me:", "/data/s3:/me:"])
def test_a_password_in_an_address_is_hidden(before):
    """Also where a library took the address for a path and put one slash for two."""
    assert redact(f"no file at {before}{SECRET}@host/x") == f"no file at {before}{HIDDEN}@host/x"


@pytest.mark.parametrize("text", ["hf_transfer is missing", "a?b=c&d=e", "user@host", "--learning_rate 1e-5: sk-learn"])
def test_other_texts_stay(text):
    assert redact(text) == text
