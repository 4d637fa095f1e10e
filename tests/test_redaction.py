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


# In parts, so that nobody who searches for keys finds one.
SHAPES = {
    "hugging face": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "openai": "sk-" + "0123456789abcdefGHIJ" + "T3BlbkFJ" + "0123456789abcdefGHIJ",
    "openai project": "sk-" + "proj-aB3_cD4eF5gH6iJ7kL8mN9oP0qR1sT2-uV3wX4yZ5",
    "anthropic": "sk-" + "ant-api03-aB3-cD4eF5gH6iJ7kL8mN9oP0qR1sT2_uV3wX4yZ5",
    "litellm": "sk-" + "aB3dE5gH7jK9mN1pQ3sT5v",
    "langfuse": "sk-" + "lf-01234567-89ab-cdef-0123-456789abcdef",
    "deepseek": "sk-" + "0123456789abcdef" * 2,
    "github": "ghp_" + "0123456789abcdefXYZ0123456789abcdefX",
    "github fine": "github_pat_" + "0123456789abcdefXYZ012" + "_" + "0123456789abcdefX" * 3 + "01234567",
    "gitlab": "glpat-" + "aB3-cD4eF5gH6iJ7kL8m",
    "aws": "AKIA" + "0123456789ABCDEF",
    "google": "AIza" + "0123456789abcdefXYZ-0123456789_abcd",
    "slack": "xoxb-" + "0123456789-0123456789-aBcDeFgHiJkLmNoPqRsTuVwX",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0" + ".aB3cD4eF5gH6iJ7kL8mN9oP0qR1sT2uV3wX4yZ5",
}


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
def test_what_has_the_shape_of_a_secret_is_hidden(secret):
    assert redact(f"unknown flag '--x={secret}'") == f"unknown flag '--x={HIDDEN}'"
    assert without_secrets({"sft_model": [secret]}) == {"sft_model": [HIDDEN]}


def test_what_a_bearer_bears_is_hidden():
    assert redact("'Authorization: Bearer aB3.cD4-eF5_gH6=='") == f"'Authorization: Bearer {HIDDEN}'"
    assert redact("Authorization: Bearer shortkey") == f"Authorization: Bearer {HIDDEN}"
    assert redact("the bearer responsibilities-of-a-landlord") == "the bearer responsibilities-of-a-landlord"


NAMES = (
    "hf_llama27b", "org/hf_Mistral7BInstructHelpful", "sk-wikipedia-articles-2024.jsonl",
    "sk-wikipedia-articles-2024-01-cleaned-and-deduplicated", "ghp_summariesOfPullRequests1", "github_pat_ches_of_2024",
    "xoxp-hugs-and-kisses-2024", "AKIA2024", "eyJudges.of.2024",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_only_begins_like_a_secret_stays(name):
    """A sweep of which it was written as *** could not be used."""
    assert without_secrets({"sft_model": name, "rewards": [{"model": name}]}) == {
        "sft_model": name,
        "rewards": [{"model": name}],
    }
    assert redact(f"no folder {name}") == f"no folder {name}"


def test_a_text_that_is_too_long_for_a_path_is_read_like_any_other():
    assert without_secrets(["words " * 999 + SHAPES["github"]]) == ["words " * 999 + HIDDEN]


def test_a_path_stays_whatever_it_looks_like(tmp_path, monkeypatch):
    name = SHAPES["hugging face"]
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name)):
        assert without_secrets({"sft_model": path, "rewards": [json.dumps({"model": path})]}) == {
            "sft_model": path,
            "rewards": [json.dumps({"model": path})],
        }
    (tmp_path / f"https:/me:{SECRET}@host").mkdir(parents=True)
    assert without_secrets([f"https:/me:{SECRET}@host"]) == [f"https:/{HIDDEN}@host"]  # but for that of an address
    tell({"hub_token": name})
    assert without_secrets({"sft_model": name}) == {"sft_model": HIDDEN}  # known, not by its looks


@pytest.mark.parametrize("before", ["https://", "https:/", "ftp://me:", "/data/s3:/me:"])
def test_a_password_in_an_address_is_hidden(before):
    """Also where a library took the address for a path and put one slash for two."""
    assert redact(f"no file at {before}{SECRET}@host/x") == f"no file at {before}{HIDDEN}@host/x"


@pytest.mark.parametrize("text", ["hf_transfer is missing", "a?b=c&d=e", "user@host", "--learning_rate 1e-5: sk-learn"])
def test_other_texts_stay(text):
    assert redact(text) == text
