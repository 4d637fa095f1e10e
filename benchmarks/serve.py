"""`rlhf-lines serve` under load on loopback: 16 clients with a mix each, and what a mix costs beside a plain adapter.

    make test-vllm                                              # once: the environment with vLLM's CPU build
    .venv-vllm/bin/python benchmarks/serve.py --sft_model models/SmolLM2-135M-Instruct

Two policies with random factors are swept at a few points, and served. First every client asks for its own mix, greedy:
answers must be those of the merged model, token by token. Then times are taken:

- first: a mix that nobody has asked for, made, loaded and answered; cached: the same again; both beside a plain
  adapter, which the server loaded when it started, and the SFT model. One request at a time.
- load: all clients at once, as many requests each; every client with its own mix, beside all with one mix, and all with
  the plain adapter.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peer import machine, met, note
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_lines.artifact import versions
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.serve.names import STEPS, mix_name
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.engines.sampling import sample


NAMES = ["helpful", "harmless"]
SCALING = {"alpha": 0.5, "beta": 1.0}
PLAIN = "plain"
PROMPT_TOKENS = 32
VARIABLES = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def write_policy(sft: Path, folder: Path, seed: int, rank: int) -> Path:
    """An adapter on all linear modules, random and small."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.04)
    model.save_pretrained(folder)
    return folder


def write_sweep(sft: Path, policies: Sequence[Path], folder: Path) -> Path:
    """A finished sweep of few short completions."""
    prompts = folder.with_name("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": f"Say something about {i}."}) + "\n" for i in range(8)))
    lengths = [
        json.dumps({"model": "rule:length", "name": target, "options": {"target": target}})
        for target in ("shorter", "longer")
    ]
    flags = ["--sft_model", str(sft), "--policies", *map(str, policies), "--rewards", *lengths]
    flags += ["--dataset_name", str(prompts), "--test_size", "all", "--output_dir", str(folder), "--controls", "false"]
    flags += ["--alphas", str(SCALING["alpha"]), "--betas", str(SCALING["beta"]), "--num_weights", "3"]
    run_stage("sweep", [*flags, "--test_prompts", "2", "--max_new_tokens", "4", "--temperature", "0"])
    return folder


class Server:
    """The server, from its start until the block ends."""

    def __init__(self, run: Path, plain: Path, log: Path, options: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        clients = options.clients
        vllm = {"max_num_seqs": clients, "max_loras": clients, "max_model_len": 512, **json.loads(options.vllm)}
        vllm["lora_modules"] = [f"{PLAIN}={plain}"]
        command = [sys.executable, "-m", "rlhf_lines", "serve", str(run), "--port", str(self.port)]
        command += ["--max_mixes", str(4 * clients), "--vllm", json.dumps(vllm)]
        self._log, self._tokens = log, options.tokens
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, env={**os.environ, **VARIABLES}, stdout=file, stderr=file, start_new_session=True
            )

    def __enter__(self) -> Server:
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended, see {self._log}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)

    def complete(self, model: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """The tokens of a greedy completion."""
        asked = {"model": model, "prompt": list(prompt), "max_tokens": self._tokens, "temperature": 0}
        asked |= {"ignore_eos": True, "return_token_ids": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if "choices" not in answer:
            raise RuntimeError(f"{model}: {answer}")
        return tuple(answer["choices"][0]["token_ids"])


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def weights_of(step: int) -> tuple[float, float]:
    return step / STEPS, 1 - step / STEPS


def name_of(step: int) -> str:
    return mix_name(weights_of(step), NAMES)


def wrong_answers(server: Server, sft: Path, policies: Sequence[Path], prompts: Sequence, steps: Sequence[int]) -> int:
    """How many clients get another answer than the merged model's, all asking at once."""
    with ThreadPoolExecutor(len(steps)) as clients:
        found = list(clients.map(server.complete, map(name_of, steps), prompts))
    model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
    multi_lora = MultiLoRA(model, [load_adapter(policy) for policy in policies])
    requests = [
        Request(MergeSpec("linear", weights_of(step), **SCALING), tuple(prompt), key)
        for key, (step, prompt) in enumerate(zip(steps, prompts, strict=True))
    ]
    settings = {"temperature": 0.0, "eos_token_ids": [], "pad_token_id": 0, "seed": 0}
    merged = sample(multi_lora, requests, max_new_tokens=len(found[0]), **settings)
    expected = [completion.token_ids for completion in merged]
    distinct = len(set(expected))
    note(f"{distinct} of {len(expected)} expected answers differ from one another")
    return sum(one != other for one, other in zip(found, expected, strict=True))


def latencies(server: Server, prompt: Sequence[int], steps: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of a request, one at a time."""
    found: dict[str, list[float]] = {"first": [], "cached": [], PLAIN: [], "sft": []}
    for model in (PLAIN, "sft"):
        server.complete(model, prompt)  # whatever is compiled is compiled now
    for step in steps:
        for kind, model in (("first", name_of(step)), ("cached", name_of(step)), (PLAIN, PLAIN), ("sft", "sft")):
            found[kind].append(seconds(lambda model=model: server.complete(model, prompt)))
    return found


def throughput(server: Server, models: Sequence[str], prompts: Sequence, rounds: int, tokens: int) -> float:
    """Tokens in a second, where every client asks for its model so often."""

    def client(number: int) -> None:
        for turn in range(rounds):
            server.complete(models[number], prompts[(number + turn) % len(prompts)])

    with ThreadPoolExecutor(len(models)) as clients:
        taken = seconds(lambda: list(clients.map(client, range(len(models)))))
    return len(models) * rounds * tokens / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sft_model", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16, help="of each policy")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of a completion")
    parser.add_argument("--rounds", type=int, default=3, help="requests of each client under load")
    parser.add_argument("--mixes", type=int, default=8, help="of which the first request is timed")
    parser.add_argument("--vllm", default='{"enforce_eager": true}', help="arguments of vllm serve, as JSON")
    parser.add_argument("--log", type=Path, default=Path("serve.log"), help="what the server says")
    options = parser.parse_args()
    sft, clients = options.sft_model.resolve(), options.clients
    with tempfile.TemporaryDirectory() as root:
        note("making two policies and a small sweep")
        policies = [write_policy(sft, Path(root) / name, seed, options.rank) for seed, name in enumerate(NAMES)]
        run = write_sweep(sft, policies, Path(root) / "run")
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(100, 20000, (clients, PROMPT_TOKENS), generator=generator).tolist()
        note("starting the server")
        start = time.perf_counter()
        with Server(run, policies[0], options.log.resolve(), options) as server:
            note(f"ready after {time.perf_counter() - start:.0f} s")
            steps = [round(STEPS * (number + 1) / (clients + 1)) for number in range(clients)]
            # One prompt for all, so that a mix that is taken for its neighbour shows.
            wrong = wrong_answers(server, sft, policies, prompts[:1] * clients, steps)
            found = latencies(server, prompts[0], [10 * number + 7 for number in range(options.mixes)])
            own = list(map(name_of, steps))
            rates = {
                what: throughput(server, models, prompts, options.rounds, options.tokens)
                for what, models in (
                    ("a mix each", own),
                    ("one mix", own[:1] * clients),
                    ("the plain adapter", [PLAIN] * clients),
                    ("a mix each, again", own),
                )
            }
    known = versions()
    print(f"{machine()}; torch {known['torch']}; {sft.name}, two policies of rank {options.rank}")
    print(f"{met(wrong == 0)}: {clients} clients with a mix each at once, {wrong} wrong answers (goal: 0)")
    print(f"\nseconds of a request alone ({options.tokens} tokens), median of {options.mixes} (smallest, largest):")
    for kind, values in found.items():
        print(f"  {kind:7} {statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})")
    print(f"\ntokens in a second, {clients} clients at once:")
    for what, rate in rates.items():
        print(f"  {what:18} {rate:.1f}")


if __name__ == "__main__":
    main()
