"""What a server's process knows: its mixes, the requests that it is answering, and vLLM's table of models."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from rlhf_lines.serve.folder import MixFolder, opened
from rlhf_lines.serve.in_flight import InFlight
from rlhf_lines.serve.mixes import Mixes
from rlhf_lines.serve.served import read_served
from rlhf_lines.serve.settings import Settings
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters


MOMENT = 5.0  # seconds in which vLLM has aborted what a client no longer waits for


class Service:
    """The one object that vLLM's resolver and its middleware share.

    Attributes:
        in_flight: the requests that are being answered.
        mixes: what is on disk; None before `running`.
        models: vLLM's `OpenAIServingModels`; None before the first request.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.in_flight = InFlight()
        self.mixes: Mixes | None = None
        self.models: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, there are mixes, and nobody else changes their folder.

        Raises:
            FileExistsError, FileNotFoundError, ValueError: they cannot be made or kept; see `read_served`, `opened`.
        """
        settings = self._settings
        served = read_served(settings.run_dir, settings.group, settings.scale)
        with opened(settings.cache_dir, {**served.made_of(), "dtype": settings.dtype}) as folder:
            adapters = SpecAdapters(folder, served.swept.load(), served.swept.sft, settings.dtype)
            self.mixes = Mixes(served.spec, MixFolder(folder, adapters), self.release, most=settings.most)
            yield

    async def release(self, name: str) -> None:
        """Let vLLM forget a mix, and return when no request can need its folder any more.

        Those that had asked for it have been answered by then, or aborted: the engine, whose answer is waited for last,
        has read what came before.
        """
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        # Waits for whoever is being given this mix just now; of a name that vLLM does not know, it says so, and that
        # is all.
        await self.models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        await self.in_flight.ended()
        await asyncio.sleep(MOMENT)
        await self.models.engine_client.list_loras()


@cache
def service() -> Service:
    """The service of this process."""
    return Service(Settings.of(os.environ))
