"""No adapter comes in by a path, and the server knows what is in flight."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from rlhf_lines.serve.gate import READ, Gate, mix_of
from rlhf_lines.serve.in_flight import InFlight
from rlhf_lines.serve.names import mix_name
from rlhf_lines.serve.service import Service, service
from rlhf_lines.serve.settings import Settings
from tests.serve.loops import run_coroutine


@pytest.fixture
def gate(run, tmp_path, monkeypatch):
    """The gate of a server's process, before an application that answers with the body it got."""
    settings = Settings(str(run), "lines", str(tmp_path / "mixes"), 2, "float32", "raw")
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    service.cache_clear()
    yield Gate(echo)
    service.cache_clear()


async def echo(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(gate: Gate, path: str, *chunks: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request."""
    sent, chunks = [], list(chunks) or [b""]

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    app = SimpleNamespace(state=SimpleNamespace(openai_serving_models="of vLLM"))
    await gate({"type": "http", "path": path, "app": app}, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/behind/a/proxy/v1/load_lora_adapter",
        "/v1/load_lora_adapter/",
        "/adapters",
        "/adapters/x",
    ],
)
def test_adapters_are_not_loaded_by_a_path(path, gate):
    status, body = run_coroutine(ask(gate, path, b'{"lora_name": "x", "lora_path": "/etc"}'))
    assert status == json.loads(body)["error"]["code"] == 403
    assert "ask for a mix by its name" in json.loads(body)["error"]["message"]
    assert service().models is None


def test_other_requests_pass_as_they_are(gate):
    chunks = [b'{"model": "mix/hel', b'pful=1", "prompt": "', b"a" * READ, b'"}']
    assert run_coroutine(ask(gate, "/v1/completions", *chunks)) == (200, b"".join(chunks))
    assert service().models == "of vLLM"


def test_a_server_keeps_the_mixes_in_use(gate):
    """As long as it runs: the lifespan of the application."""
    started, end = asyncio.Event(), asyncio.Event()
    names = [mix_name([step / 10, 1 - step / 10], ["helpful", "harmless"]) for step in (1, 2, 3)]

    async def lifespan_message():
        started.set()
        await end.wait()

    async def serve():
        running = asyncio.create_task(gate({"type": "lifespan"}, lifespan_message, None))
        await started.wait()
        mixes, left = service().mixes, []

        async def forget(name: str) -> None:
            left.append(name)

        mixes._release = forget
        first = await mixes.path(names[0])
        await mixes.path(names[1])
        status, _ = await ask(gate, "/v1/completions", json.dumps({"prompt": "x", "model": names[0]}).encode())
        await mixes.path(names[2])
        await asyncio.gather(*mixes._tasks)
        assert (status, left) == (200, [names[1]])
        assert first.is_dir()
        end.set()
        await running

    run_coroutine(serve())


def test_a_server_that_cannot_keep_mixes_does_not_start(gate, tmp_path):
    (tmp_path / "mixes").write_text("no folder")
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    run_coroutine(gate({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert f"cache_dir {tmp_path / 'mixes'} is not a folder" in sent[0]["message"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"model": "mix/helpful=1", "prompt": "x"}, "mix/helpful=1"),
        ({"messages": [{"content": '"model": "mix/a=1"'}], "model": "mix/b=1"}, "mix/b=1"),
        ({"messages": [{"content": '"model": "mix/a=1"'}], "model": "sft"}, None),
        ({"model": "mix/höflich=1"}, "mix/höflich=1"),
        ({"model": 'mix/a"b=1'}, 'mix/a"b=1'),
    ],
)
def test_the_mix_of_a_body(body, name):
    for text in (json.dumps(body), json.dumps(body, ensure_ascii=False, indent=1)):
        assert mix_of(text.encode()) == name


@pytest.mark.parametrize("body", [b"", b'{"model": "mix/', b'"model": "mix/\\q"', b"\xff" * 10, b'"model": "mix/\xff"'])
def test_a_broken_body_asks_for_none(body):
    assert mix_of(body) is None


def test_those_that_come_later_are_not_waited_for():
    async def check():
        in_flight = InFlight()
        await asyncio.wait_for(in_flight.ended(), 1)
        with in_flight.request():
            early = asyncio.create_task(in_flight.ended())
            await asyncio.sleep(0)
            later = in_flight.request()
            later.__enter__()
            assert not early.done()
        await asyncio.wait_for(early, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_flight.ended(), 0.01)
        later.__exit__(None, None, None)
        await asyncio.wait_for(in_flight.ended(), 1)

    run_coroutine(check())


def test_a_request_that_fails_has_ended():
    in_flight = InFlight()
    with pytest.raises(RuntimeError), in_flight.request():
        raise RuntimeError
    run_coroutine(ends(in_flight))


async def ends(in_flight: InFlight) -> None:
    await asyncio.wait_for(in_flight.ended(), 1)


def test_settings_reach_the_process(run):
    settings = Settings(str(run), "lines", "/somewhere/else", 7, "bfloat16", "range")
    assert Settings.of({"OTHER": "x", **settings.to_environment()}) == settings
    assert Service(settings).mixes is None
