"""vLLM writes what the local engine writes, and measures the same, for any mix of specs in one call."""

from __future__ import annotations

import multiprocessing

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sampling import chosen_logprobs
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.engines.vllm import VllmEngine


PROMPTS = [(5, 9, 14, 3), (7,), (22, 30, 4, 11, 8, 19, 6, 25, 31, 12, 3, 9, 17, 28, 33, 21, 5), (12, 13)]
SPECS = [
    *(MergeSpec("linear", (k / 4, 1 - k / 4)) for k in range(5)),
    *(MergeSpec("linear", (k / 2, 1 - k / 2), alpha=0.5, beta=1.0) for k in range(3)),
    MergeSpec("sum", (0.3, 0.7), alpha=0.4, beta=0.2),
    MergeSpec("linear", (1.0,)),  # the second policy counts as 0
    MergeSpec("linear", (0.0, 0.0)),
]


@pytest.fixture(scope="module")
def engine(make_config, sft, adapters, tmp_path_factory):
    engine = VllmEngine(make_config(), sft, adapters[:2], tmp_path_factory.mktemp("run"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def requests():
    """Every spec on every prompt, the specs of one prompt beside one another."""
    return [Request(spec, prompt, key) for key, prompt in enumerate(PROMPTS) for spec in SPECS]


@pytest.fixture(scope="module")
def expected(requests, greedy):
    return greedy(requests)


@pytest.fixture(scope="module")
def completions(engine, requests):
    return engine.complete(requests)


def merged_logits(multi_lora, spec, row):
    """Logits ``[tokens - 1, vocab]`` of the local engine's model."""
    with multi_lora.rows([spec]), torch.no_grad():
        return multi_lora.model(input_ids=torch.tensor([row])).logits[0, :-1]


def test_greedy_completions_are_those_of_the_local_engine(completions, expected):
    assert len(SPECS) == 11
    assert [completion.token_ids for completion in completions] == [c.token_ids for c in expected]
    assert len({c.token_ids for c in expected}) > 20, "the specs hardly differ, so this says little"
    ended = [c.token_ids[-1] == 37 for c in expected]
    assert any(ended) and not all(ended)


def test_the_kl_is_that_of_the_local_engine(completions, expected):
    for completion, reference in zip(completions, expected, strict=True):
        assert completion.kl == pytest.approx(reference.kl, abs=1e-3)
    assert max(abs(c.kl) for c in expected) > 1


def check_nll(engine, multi_lora, specs):
    """Compare with the local engine's model, several rows under every spec."""
    rows = [(*prompt, 9, 27, 30) for prompt in PROMPTS] + [(6,)]
    pairs = [(spec, row) for spec in specs for row in rows]
    for (spec, row), value in zip(pairs, engine.nll(*map(list, zip(*pairs, strict=True))), strict=True):
        logprobs = merged_logits(multi_lora, spec, row).double().log_softmax(-1)
        assert value == pytest.approx(-sum(logprobs[t - 1, row[t]].item() for t in range(1, len(row))), abs=1e-3)


def test_nll_is_that_of_the_merged_models(engine, multi_lora):
    check_nll(engine, multi_lora, SPECS)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_sft_model_is_read_at_the_temperature(temperature, engine, sft, make_config, monkeypatch):
    monkeypatch.setattr(engine, "_config", make_config(temperature=temperature))
    model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float64).eval()
    pairs = [(PROMPTS[0], (9, 27, 1)), (PROMPTS[2], (30,)), (PROMPTS[0], (9, 27, 1)), (PROMPTS[1], tuple(range(3, 35)))]
    for (prompt, completion), value in zip(pairs, engine.sft_logprobs(pairs), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = chosen_logprobs(logits, torch.tensor(completion), temperature)
        assert value == pytest.approx(logprobs.sum().item(), abs=1e-3)


def test_a_run_that_goes_on_uses_the_adapters_that_are_there(engine, completions, requests):
    folder = engine._adapters._folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path.name for path in folder.iterdir()} == {spec.digest() for spec in SPECS if any(spec.weights)}
    processes = started_processes()
    assert len(processes) > 1
    engine.close()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    again = engine.complete(requests[11:22])  # other neighbours in the batch, and adapters in other places
    for completion, first in zip(again, completions[11:22], strict=True):
        assert completion.token_ids == first.token_ids
        assert completion.kl == pytest.approx(first.kl, abs=1e-3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def started_processes() -> list[psutil.Process]:
    """Return vLLM's processes: its engine, and the engine's workers."""
    engines = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    return [process for engine in engines for process in (engine, *engine.children(recursive=True))]


def test_adapted_heads(make_config, sft, adapters, multi_lora, greedy, tmp_path):
    config = make_config(policies=[adapter.path for adapter in adapters])
    specs = [MergeSpec("linear", weights, alpha=0.5, beta=1.0) for weights in ((0.2, 0.3, 0.5), (0.0, 0.0, 1.0))]
    requests = [Request(spec, prompt, key) for key, prompt in enumerate(PROMPTS) for spec in specs]
    engine = VllmEngine(config, sft, adapters, tmp_path)
    try:
        for completion, reference in zip(engine.complete(requests), greedy(requests), strict=True):
            assert completion.token_ids == reference.token_ids
            assert completion.kl == pytest.approx(reference.kl, abs=1e-3)
        check_nll(engine, multi_lora, specs)
    finally:
        engine.close()
