"""What vLLM's server lets every request pass through: no adapter by a path, and a note of what is in use."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rlhf_lines.serve.service import service


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# vLLM asks a resolver only where adapters may be loaded while it runs, and then takes paths of them from requests too:
# at its own addresses, and at those that SageMaker knows.
CLOSED = {"load_lora_adapter", "unload_lora_adapter", "adapters"}
REFUSAL = {
    "error": {
        "message": "adapters are not loaded by a path here: ask for a mix by its name, in place of the model's",
        "type": "Forbidden",
        "param": None,
        "code": 403,
    }
}
READ = 1 << 22  # bytes of a request in which the name of a mix is looked for
# As a text of its own, not inside another one, where its quotes have backslashes.
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*("mix/(?:[^"\\]|\\.){1,600}")')


class Gate:
    """An ASGI middleware, one per server process.

    Args:
        app: what comes after it.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app, self._service = app, service()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; or, where that is the scope, start and end the server."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif CLOSED & set(scope["path"].split("/")):
            await _refuse(send)
        else:
            self._service.models = scope["app"].state.openai_serving_models
            with self._service.in_flight.request():
                await self._app(scope, self._noting(receive), send)

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._service.running())
            except (OSError, ValueError) as error:  # of which uvicorn would think that nothing is to be started
                await receive()
                await send({"type": "lifespan.startup.failed", "message": f"rlhf-lines serve: {error}"})
                return
            await self._app(scope, receive, send)

    def _noting(self, receive: Receive) -> Receive:
        """What is received, with a note of the mix that the body asks for.

        Which one leaves first depends on these notes, but not what any request gets.
        """
        body = bytearray()

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.request" and len(body) < READ:
                body.extend(message.get("body", b""))
                if not message.get("more_body") and (name := mix_of(bytes(body))):
                    self._service.mixes.touch(name)
            return message

        return receive_noting


def mix_of(body: bytes) -> str | None:
    r"""The name of the mix that a JSON body asks for; None where it asks for another model, or cannot be read.

    >>> mix_of(rb'{"prompt": "\"model\": 1", "model": "mix/helpful=1"}')
    'mix/helpful=1'
    """
    found = None
    for match in _MODEL.finditer(body):
        found = match[1]
    try:
        return found and json.loads(found)
    except ValueError:
        return None


async def _refuse(send: Send) -> None:
    content = json.dumps(REFUSAL).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": content})
