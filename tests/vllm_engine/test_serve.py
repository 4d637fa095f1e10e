"""vLLM's server gives every client the mix that it asked for, refuses what is none, and loads nothing by a path."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.pareto import pick, read_front
from rlhf_lines.serve.names import mix_name
from tests import tiny
from tests.sweep.small_run import write_run
from tests.vllm_engine.servers import free_port, running, smollm2


SCALING = {"alpha": 0.5, "beta": 1.0}
POLICIES = ["helpful", "harmless"]
KEY = "a-key-for-this-test"
MOST, CLIENTS, TOKENS = 16, 16, 12
WEIGHTS = [(k / 20, (20 - k) / 20) for k in range(2, 2 + CLIENTS)]
SETTLED = 180  # seconds in which mixes have left that nobody uses


class Server(NamedTuple):
    """A server with what it serves."""

    port: int
    run: Path
    sft: Path
    policies: list[Path]
    prompts: list[list[int]]

    def ask(self, path: str, body: dict | None = None, key: str | None = KEY) -> tuple[int, dict]:
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text or "{}")

    def complete(self, model: str, prompt: list[int]) -> tuple[int, list[int] | str]:
        """Status, and the token ids of a greedy completion or the sentence of a refusal."""
        asked = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
        status, answer = self.ask("/v1/completions", {**asked, "ignore_eos": True})
        return status, answer["choices"][0]["token_ids"] if status == 200 else answer["error"]["message"]

    def adapters(self) -> set[str]:
        """Digests of the mixes on disk."""
        return {path.name for path in (self.run / "mixes" / "adapters").iterdir() if not path.name.startswith(".")}


def policies_of(sft: Path, folder: Path, std: float) -> list[Path]:
    modules = ["q_proj", "v_proj", "down_proj"]
    return [
        tiny.save_adapter(sft, folder / name, seed=seed, std=std, r=4 - seed, lora_alpha=8, target_modules=modules)
        for seed, name in enumerate(POLICIES)
    ]


def finished_sweep(folder: Path, sft: Path, policies: list[Path]) -> Path:
    weights = [(k / 4, 1 - k / 4) for k in range(5)]
    groups = {
        "test": {
            "sft": [MergeSpec("linear", (0.0, 0.0))],
            "rewarded_soup": [MergeSpec("linear", row) for row in weights],
            "lines": [MergeSpec("linear", row, **SCALING) for row in weights],
        }
    }
    facts = {"sft_model": str(sft), "policies": list(map(str, policies)), "morlhf": [], "dtype": "float32"}
    rewards = ["rule:length", {"model": "rule:length", "name": "letters", "options": {"unit": "characters"}}]
    return write_run(folder, rewards, groups=groups, **facts)


@pytest.fixture(scope="module", params=["tiny", "SmolLM2"])
def server(request, sft, tmp_path_factory) -> Iterator[Server]:
    if request.param == "SmolLM2" and (sft := smollm2()) is None:
        pytest.skip("SmolLM2-135M-Instruct is not there: make test-vllm fetches it")
    root = tmp_path_factory.mktemp(request.param)
    policies = policies_of(sft, root, std=0.2 if request.param == "tiny" else 0.06)
    run = finished_sweep(root / "run", sft, policies)
    port = free_port()
    vllm = {"enforce_eager": True, "max_num_seqs": CLIENTS, "max_model_len": 64, "max_loras": 4}
    command = [sys.executable, "-m", "rlhf_lines", "serve", str(run), "--port", str(port), "--max_mixes", str(MOST)]
    command += ["--api_key_env", "KEY", "--vllm", json.dumps(vllm)]
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 40, (CLIENTS, 5), generator=random).tolist()
    with running(command, port, root / "log.txt", {**os.environ, "KEY": KEY}):
        yield Server(port, run, sft, policies, prompts)


@pytest.fixture(scope="module")
def merged(server):
    """A function from weights and a prompt to the greedy completion of the merged model, by the local engine."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
    from rlhf_lines.sweep.engines.protocol import Request
    from rlhf_lines.sweep.engines.sampling import sample

    model = AutoModelForCausalLM.from_pretrained(server.sft, dtype=torch.float32).eval()
    multi_lora = MultiLoRA(model, [load_adapter(policy) for policy in server.policies])

    def complete(weights: tuple[float, ...], prompt: list[int]) -> list[int]:
        request = Request(MergeSpec("linear", weights, **SCALING), tuple(prompt), 0)
        settings = {"temperature": 0.0, "eos_token_ids": [], "pad_token_id": 0, "seed": 0}
        return list(sample(multi_lora, [request], max_new_tokens=TOKENS, **settings)[0].token_ids)

    return complete


def test_sixteen_clients_get_the_mixes_that_they_ask_for(server, merged):
    names = [mix_name(weights, POLICIES) for weights in WEIGHTS]
    expected = [merged(weights, prompt) for weights, prompt in zip(WEIGHTS, server.prompts, strict=True)]
    swapped = [merged(weights, prompt) for weights, prompt in zip(WEIGHTS[::-1], server.prompts, strict=True)]
    assert sum(one != other for one, other in zip(expected, swapped, strict=True)) >= CLIENTS / 2, "mixes hardly differ"
    for _ in range(2):  # made on demand, then known
        with ThreadPoolExecutor(CLIENTS) as clients:
            found = list(clients.map(server.complete, names, server.prompts))
        assert found == [(200, tokens) for tokens in expected]
    assert len(server.adapters()) == CLIENTS


def test_the_least_recently_used_ones_leave_and_come_back(server, merged):
    for weights in ((0.01, 0.99), (0.99, 0.01), (0.02, 0.98)):
        asked = server.complete(mix_name(weights, POLICIES), server.prompts[0])
        assert asked == (200, merged(weights, server.prompts[0]))
    assert len(server.adapters()) <= 2 * MOST
    deadline = time.monotonic() + SETTLED
    while len(server.adapters()) > MOST and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(server.adapters()) == MOST
    left = [w for w in WEIGHTS if MergeSpec("linear", w, **SCALING).digest() not in server.adapters()]
    assert len(left) == 3
    for weights in left:
        asked = server.complete(mix_name(weights, POLICIES), server.prompts[1])
        assert asked == (200, merged(weights, server.prompts[1]))


def test_a_preference_is_the_point_that_pick_gives(server, merged):
    for preference in ((1.0, 0.0), (0.3, 0.7)):
        point = pick(read_front(server.run), preference=preference, group="lines").point
        asked = server.complete(f"mix/preference={preference[0]},{preference[1]}", server.prompts[2])
        assert asked == (200, merged(tuple(point["spec"]["weights"]), server.prompts[2]))


def test_the_sft_model_is_there_too(server, merged):
    assert server.complete("sft", server.prompts[3]) == (200, merged((0.0, 0.0), server.prompts[3]))


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("mix/helpful=0.3", 400, "the numbers of 'mix/helpful=0.3' sum to 0.3, expected 1"),
        ("mix/kind=1", 400, "unknown policy 'kind'; known: harmless, helpful"),
        ("mix/helpful=0.33333,harmless=0.66667", 400, "expected a number from 0 to 1 with at most three decimals"),
        ("mix/../../../etc=1", 400, "unknown policy '../../../etc'"),
        ("mix/preference=1,0,0", 400, "has 3 numbers, expected 2, one for each of length, letters"),
        ("another", 404, "does not exist"),
        ("/etc/passwd", 404, "does not exist"),
    ],
)
def test_what_is_no_mix_is_refused_in_a_sentence(name, status, told, server):
    found, sentence = server.complete(name, server.prompts[0])
    assert found == status
    assert told in sentence


def test_no_adapter_comes_in_by_a_path(server):
    _, described = server.ask("/openapi.json")
    closed = [path for path in described["paths"] if "lora" in path or "adapter" in path]
    assert {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"} <= set(closed)
    for path in closed:
        status, answer = server.ask(path, {"lora_name": "x", "lora_path": str(server.policies[0])})
        assert (status, answer["error"]["code"]) == (403, 403)
    assert server.complete("x", server.prompts[0])[0] == 404


def test_requests_need_the_key(server):
    for key in (None, "another"):
        assert server.ask("/v1/models", key=key)[0] == 401
    assert server.ask("/v1/models")[1]["data"][0]["id"] == "sft"
