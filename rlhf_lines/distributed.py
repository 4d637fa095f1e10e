"""Which process is this, how many are there, and how they wait, share and lead (accelerate launch, torchrun, mpirun).

accelerate starts the processes (for training, transformers lets it; for a sweep, `Processes` does), and a process that
nothing has started works alone, and leads. Who is who is asked of torch: on a machine without a GPU, accelerate's state
may call every process the only one. Without a launcher nothing here imports either. Inside a Trainer the trainer's own
accelerator answers, and the `world_size` of its arguments (in `train`: ppo_trainer, normalization, ppo, checkpoints).

In a sweep, and where its points are asked benchmarks, the leader keeps the run store and hands out work; so only its
machine needs the run folder, and what is stored does not depend on how many processes there are.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rlhf_lines.errors import ProcessEnded, is_about_input, is_of_memory, reason


T = TypeVar("T")
PATIENCE = datetime.timedelta(seconds=10)  # of a process that has a last sentence to say
WAIT = datetime.timedelta(days=7)  # for the leader, who may be computing a front or merging a base of 70B
# Where launchers say how many processes they made: torchrun and accelerate, three MPIs, srun. The first that speaks
# counts: srun may start one torchrun on each machine.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
SIZES_HERE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def count() -> int:
    """The number of processes that the launcher made; without one, 1."""
    return _told(SIZES)[1]


def count_here() -> int:
    """The number of them on this machine."""
    return _told(SIZES_HERE)[1]


def on_cpu() -> bool:
    """Whether this machine has nothing faster than its CPU that torch knows."""
    import torch

    return not torch.accelerator.is_available()


def prepare() -> None:
    """Let the processes of one machine find each other where the launcher, as MPI's, does not say where."""
    if count() > 1 and count() == count_here():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")


def start() -> None:
    """Let the processes hear each other, if there are several, and take this one's GPU.

    Raises:
        ValueError: they cannot.
    """
    if count() > 1:
        from accelerate import PartialState

        prepare()
        PartialState(cpu=on_cpu())
        group = _started()
        check_world(1 if group is None else group.get_world_size())
        _patient()  # while all live: who made it later would wait for one that has ended


def check_world(heard: int) -> None:
    """Stop a process that a launcher made one of several, and that hears of fewer: each would do the work alone.

    Args:
        heard: the number of processes that hear each other.

    Raises:
        ValueError: the launcher made another number.
    """
    name, launched = _told(SIZES)
    if launched != heard:
        raise ValueError(
            f"{name} says that {launched} processes were started, but this one hears of {heard}: start them with "
            "accelerate launch or torchrun, or start one"
        )


def leads() -> bool:
    """Whether this is the process that writes and speaks."""
    group = _started()
    return group is None or group.get_rank() == 0


def wait() -> None:
    """Go on when every process has come this far."""
    group = _started()
    if group is not None:
        with _heard():
            group.barrier(group=_patient())


def from_leader(work: Callable[[], T]) -> T:
    """What `work()` gives in the leading process; the others, perhaps on machines without its files, only hear of it.

    Raises:
        ValueError, OSError: as `work`, in every process.
    """
    group = _started()
    if group is None:
        return work()
    told: list[tuple[Any, Exception | None]] = [(None, None)]
    if leads():
        try:
            told = [(work(), None)]
        except (ValueError, OSError) as error:
            told = [(None, error)]
    with _heard():
        group.broadcast_object_list(told, src=0, group=_patient())
    ((result, error),) = told
    if error is not None:
        raise error
    return result


def say_once(sentence: str, say: Callable[[], object]) -> None:
    """Call `say`, unless another process says the same: of several that fail alike, one is heard.

    They agree in the store that torchrun and accelerate launch keep for their processes, which is there before these
    hear each other, and after one of them has failed. Under other launchers each speaks.
    """
    try:
        if count() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise LookupError("no store")
        from torch.distributed import TCPStore

        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=PATIENCE)
        key = f"rlhf_lines/{hashlib.sha256(sentence.encode()).hexdigest()}"
        is_first = store.add(key, 1) == 1
        if not is_first:  # the launcher ends all of them when the first has gone: not before it has spoken
            store.wait([f"{key}/said"], PATIENCE)
    except (LookupError, ValueError, RuntimeError):  # of torch's store, too
        say()
    else:
        if is_first:
            say()
            store.set(f"{key}/said", "")


def leave() -> None:
    """End the threads of torch.distributed: an interpreter that exits while they run may abort (exit status -6)."""
    _patient.cache_clear()  # who holds a group keeps its threads
    if "vllm" in sys.modules:  # ends them itself when the interpreter exits, and stumbles if they are gone
        return
    distributed = sys.modules.get("torch.distributed")  # a verb that never imported torch has none
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _told(names: Sequence[str]) -> tuple[str, int]:
    """The first of these variables that a launcher has set to a number, and the number; 1 without any."""
    found = ((name, os.environ.get(name, "")) for name in names)
    return next(((name, int(value)) for name, value in found if value.isdigit()), (names[0], 1))


def _started():
    """torch.distributed, or None for a process that is alone."""
    if count() == 1:
        return None
    from torch import distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


@functools.cache
def _patient():
    """The group of all processes that waits for a leader at work: that of training gives up after `ddp_timeout`."""
    return _started().new_group(backend="gloo", timeout=WAIT)


class Processes:
    """The processes of a run, started: the leader has `map` while it is `leading`, the others `follow` it.

    Attributes:
        count: how many there are; without a launcher, one.
    """

    def __init__(self) -> None:
        start()
        self.count, self._torch = count(), _started()

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """`work(item)` of at most one item per process, computed at the same time; for the leader only.

        Raises:
            ValueError: another process was given a wrong input; the message says which.
            MemoryError: another process has too little memory; the message says which.
            ProcessEnded: another process has ended.
            RuntimeError: another process failed; its traceback is in the message.
        """
        if self.count == 1:
            return [work(item) for item in items]
        self._broadcast(list(items))
        answers = self._gather(_attempt(work, items[0]))
        failed = [(rank, error) for rank, (_, error) in enumerate(answers) if error is not None]
        if failed:
            rank, error = failed[0]
            if rank == 0:
                raise error
            kind, text = error
            raise kind(f"process {rank} of {self.count}{text}")
        return [result for result, _ in answers[: len(items)]]

    def follow(self, work: Callable[[Any], Any]) -> None:
        """Do the leader's work until it has no more; for the other processes.

        Raises:
            SystemExit: the leader failed, and has said why.
            ProcessEnded: the leader has ended.
        """
        rank = self._torch.get_rank()
        while not isinstance(items := self._broadcast(None), bool):
            result, error = _attempt(work, items[rank]) if rank < len(items) else (None, None)
            self._gather((result, error and _told_as(error)))
        if not items:
            raise SystemExit(1)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Inside, the leader has work for the others; at the end they hear that all is done, or that it failed."""
        done = False
        try:
            yield
            done = True
        finally:
            if self.count > 1:
                with contextlib.nullcontext() if done else contextlib.suppress(ProcessEnded):  # they may have gone
                    self._broadcast(done)

    def _broadcast(self, items: list | bool | None) -> list | bool:
        held = [items]
        with _heard():
            self._torch.broadcast_object_list(held, src=0, group=_patient())
        return held[0]

    def _gather(self, answer: tuple[Any, Any]) -> list[tuple[Any, Any]] | None:
        """The answers of all processes, in the leader; None in the others."""
        answers = [None] * self.count if leads() else None
        with _heard():
            self._torch.gather_object(answer, answers, group=_patient())
        return answers


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Inside, processes talk: what gloo says of one that has ended becomes one sentence."""
    try:
        yield
    except RuntimeError as error:
        gone = "another process" if leads() else "the first process"
        said = f"{gone} of the run has ended before its work was done, and may have said why"
        raise ProcessEnded(said) from error


def _told_as(error: Exception) -> tuple[type[Exception], str]:
    """What the leader raises for an error of another process, and what it says behind the name of that process."""
    if is_about_input(error):
        return ValueError, f": {error}"
    if is_of_memory(error):
        return MemoryError, f": {reason(error)}"
    return RuntimeError, " failed:\n" + "".join(traceback.format_exception(error))


def _attempt(work: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None]:
    try:
        return work(item), None
    except Exception as error:
        return None, error
