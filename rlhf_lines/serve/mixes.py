"""Mixes on disk: each is made once, when it is first asked for, and the least recently used one leaves."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf_lines.merge import MergeSpec
from rlhf_lines.serve.folder import MixFolder


logger = logging.getLogger(__name__)


class Busy(Exception):
    """There is no room for another mix at the moment."""


class Mixes:
    """The mixes that a server knows by name, at most `most`, on disk, for one event loop.

    A mix that leaves stays on disk until no request can still need it: vLLM loads an adapter from its folder again
    whenever it has dropped it from memory, and ends when the folder is gone. So there are at most `2 most` folders.

    Args:
        spec_of: from a name to its merge; raises a ValueError where there is none.
        folder: where mixes are made; what is there already is known too.
        release: returns when the server knows a name no longer, and has answered all who may have asked for it.
        most: how many names are known at once.
    """

    def __init__(
        self,
        spec_of: Callable[[str], MergeSpec],
        folder: MixFolder,
        release: Callable[[str], Awaitable[None]],
        *,
        most: int,
    ) -> None:
        self._spec_of, self._folder, self._release, self._most = spec_of, folder, release, most
        self._thread = ThreadPoolExecutor(1, "mixes")  # so nothing is made twice, or removed while it is made
        # By name, the least recently used first, the digest of its spec. One that an earlier server has made is known
        # by its digest alone until it is asked for.
        self._known: OrderedDict[str, str] = OrderedDict()
        digests = folder.digests()
        first = max(0, len(digests) - most)  # of those that stay
        for digest in digests[:first]:
            folder.remove(digest)
        self._known.update((digest, digest) for digest in digests[first:])
        self._leaving: Counter[str] = Counter()  # digests of names that are being released
        self._tasks: set[asyncio.Task] = set()  # the loop itself keeps no task alive

    async def path(self, name: str) -> Path:
        """The folder of a mix, as an adapter, which a thread makes if need be.

        Raises:
            ValueError: there is no such mix.
            Busy: all mixes that may leave are still in use.
        """
        spec = self._spec_of(name)
        digest = spec.digest()
        others = [known for known in self._known if known not in (name, digest)]
        if len(others) >= self._most:
            if self._leaving.total() >= self._most:
                raise Busy(
                    f"{self._most} mixes are known, and as many that were asked for before are still in use: try again "
                    "in a moment"
                )
            self._let_go(others[0])
        self._known.pop(digest, None)
        self._known[name] = digest
        self._known.move_to_end(name)
        make = functools.partial(self._folder.path, spec)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except Exception:
            self._known.pop(name, None)
            raise

    def touch(self, name: str) -> None:
        """Note that a mix is used again, if it is one that is known."""
        if name in self._known:
            self._known.move_to_end(name)

    def _let_go(self, name: str) -> None:
        digest = self._known.pop(name)
        self._leaving[digest] += 1
        task = asyncio.get_running_loop().create_task(self._leave(name, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave(self, name: str, digest: str) -> None:
        await self._release(name)
        self._leaving[digest] -= 1
        # It may have been asked for again, or under another name, and leave once more later.
        if not self._leaving[digest] and digest not in self._known.values():
            logger.info("%s leaves the disk", name)
            # Queued behind what is being made, and before what is made from now on.
            await asyncio.get_running_loop().run_in_executor(self._thread, self._folder.remove, digest)
