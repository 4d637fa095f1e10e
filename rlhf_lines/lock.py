"""One writer per folder: a lock of the operating system, with a note that says who holds it.

The lock is on a hidden file beside the folder. The kernel lets it go when its holder dies, however that happens, so a
lock that can be taken is free. Where a file system knows no locks, the note decides: its process is looked for.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from rlhf_lines.distributed import from_leader


HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # of this file system
# Where no file can be made, no folder can: the stage says so itself.
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
# What this thread holds. A thread begins without anything, so two of them are two writers.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_descriptors: set[int] = set()


@contextlib.contextmanager
def only_run(folder: str | Path) -> Iterator[None]:
    """As `only_writer`, for a run of several processes, all of which enter: the leader holds the lock for them.

    Raises:
        FileExistsError: another run has it; the message says which, in every process.
    """
    path = Path(os.path.realpath(folder))
    with contextlib.ExitStack() as stack:
        from_leader(lambda: stack.enter_context(only_writer(folder)))
        token = _held.set(_held.get() | {path})
        stack.callback(_held.reset, token)
        yield


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Inside, no other run makes or changes this folder, by whichever name; it need not exist yet.

    A block inside that asks for the same folder has it.

    Raises:
        FileExistsError: another run has it; the message says which.
    """
    path = Path(os.path.realpath(folder))
    if not path.name or path in _held.get():
        yield
        return
    with _locked(path, folder):
        token = _held.set(_held.get() | {path})
        try:
            yield
        finally:
            _held.reset(token)


def lock_file(folder: Path) -> Path:
    """The hidden file beside a folder on which the lock is."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def _locked(path: Path, name: str | Path) -> Iterator[None]:
    file = lock_file(path)
    made = [above for above in file.parents if not above.exists()]  # the deepest first
    try:
        descriptor = _lock(file, name)
        try:
            yield
        finally:
            if descriptor is not None:
                # While it is held: a run that has opened it meanwhile sees that it is gone, and makes a new one.
                file.unlink(missing_ok=True)
                _close(descriptor)
    finally:
        for above in made:
            with contextlib.suppress(OSError):  # it has the folder now
                above.rmdir()


def _lock(file: Path, name: str | Path) -> int | None:
    """The open file, locked; None where no file can be made beside the folder."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _open(file)
        except OSError as error:
            if error.errno in NO_PLACE:
                return None
            raise
        _descriptors.add(descriptor)
        try:
            _claim(descriptor, name)
            if _is_file(descriptor, file):
                _write_holder(descriptor, file)
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)  # its holder has removed it just now


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(file, os.O_RDONLY)  # that of another user: enough to see whether it is free


def _claim(descriptor: int, name: str | Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except OSError as error:
        holder = _holder(descriptor)
        if error.errno in NO_LOCKS:
            if not _lives(holder):
                return
        elif error.errno not in HELD_BY_ANOTHER:
            raise
    who = "another run"
    if holder:
        who += " ({command}, process {pid} on {host}, since {since})".format_map(holder)
    raise FileExistsError(f"{name} is in use by {who}: wait until that has ended, or choose another folder")


def _is_file(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, file: Path) -> None:
    command = [Path(argument).name for argument in sys.argv[:1]]
    command += [argument for argument in sys.argv[1:2] if argument.isidentifier()]  # the verb; no values of flags
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(command),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        if error.errno == errno.EBADF or error.errno == errno.EINVAL:  # opened for reading: another user's
            return
        file.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


def _holder(descriptor: int) -> dict:
    """Who wrote the note; empty where there is none yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    known = isinstance(holder, dict) and holder.keys() >= {"pid", "host", "since", "command"}
    return holder if known and isinstance(holder["pid"], int) else {}


def _lives(holder: dict) -> bool:
    """Whether the process may be alive: of another host nobody here can tell."""
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _let_go_in_child() -> None:
    """A forked worker does not hold the lock on when the run that made it is killed."""
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
