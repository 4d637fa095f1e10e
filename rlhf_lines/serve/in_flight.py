"""The requests that a server is answering."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class InFlight:
    """Knows when all requests have ended that were being answered at some moment."""

    def __init__(self) -> None:
        self._open: set[asyncio.Event] = set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Inside, one request is being answered."""
        end = asyncio.Event()
        self._open.add(end)
        try:
            yield
        finally:
            self._open.remove(end)
            end.set()

    async def ended(self) -> None:
        """Return when the requests have ended that are being answered now; those that come later do not count."""
        for end in tuple(self._open):
            await end.wait()
