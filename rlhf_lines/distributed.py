"""One process leads a sweep and others generate with it, on one machine or several (accelerate launch, torchrun).

The leader keeps the run store and hands out batches; so only its machine needs the run folder, and what is stored does
not depend on how many processes there are.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import distributed


WAIT = datetime.timedelta(days=7)  # for the leader, who may be computing a front


class Processes:
    """The processes of this run; without a launcher, one.

    Attributes:
        count: how many there are.
        rank: the number of this one; 0 leads.
    """

    def __init__(self) -> None:
        self.count, self.rank, self._group = int(os.environ.get("WORLD_SIZE", "1")), 0, None
        if self.count > 1:
            from accelerate import PartialState

            PartialState()  # starts the process group, and takes this process's GPU
            self.rank = distributed.get_rank()
            self._group = distributed.new_group(backend="gloo", timeout=WAIT)  # for batches and results

    @property
    def leads(self) -> bool:
        """Whether this is the process that has the run store."""
        return self.rank == 0

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """`work(item)` of at most one item per process, computed at the same time; for the leader only.

        Raises:
            RuntimeError: another process failed; its traceback is in the message.
        """
        if self.count == 1:
            return [work(item) for item in items]
        self._broadcast(list(items))
        answers: list[Any] = [None] * self.count
        distributed.gather_object(_attempt(work, items[0]), answers, group=self._group)
        failed = [(rank, error) for rank, (_, error) in enumerate(answers) if error is not None]
        if failed:
            rank, error = failed[0]
            raise error if rank == 0 else RuntimeError(f"process {rank} of {self.count} failed:\n{error}")
        return [result for result, _ in answers[: len(items)]]

    def follow(self, work: Callable[[Any], Any]) -> None:
        """Do the leader's work until it has no more; for the other processes.

        Raises:
            SystemExit: the leader failed, and has said why.
        """
        while not isinstance(items := self._broadcast(None), bool):
            answer = _attempt(work, items[self.rank]) if self.rank < len(items) else (None, None)
            distributed.gather_object(_portable(answer), None, group=self._group)
        if not items:
            raise SystemExit(1)

    def dismiss(self, done: bool) -> None:
        """Tell the others that there is no more work, because all is done or because the leader failed."""
        if self.count > 1:
            self._broadcast(done)

    def _broadcast(self, items: list | bool | None) -> list | bool:
        held = [items]
        distributed.broadcast_object_list(held, src=0, group=self._group)
        return held[0]


def _attempt(work: Callable[[Any], Any], item: Any) -> tuple[Any, BaseException | None]:
    try:
        return work(item), None
    except Exception as error:
        return None, error


def _portable(answer: tuple[Any, BaseException | None]) -> tuple[Any, str | None]:
    import traceback

    result, error = answer
    return result, None if error is None else "".join(traceback.format_exception(error))
