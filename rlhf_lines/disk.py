"""What a disk refuses, as one sentence: whichever library met it, and in whatever words that said so."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rlhf_lines.errors import NO_SPACE


FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
FAILED = (errno.EIO, errno.ESTALE, errno.ENXIO)
TOO_MANY = (errno.EMFILE, errno.ENFILE)
NOTHING_KEPT = "nothing was left under a final name"
KEPT_FOR_RESUME = "what was done so far is kept for --resume"
_FAULTS = (*NO_SPACE, *FORBIDDEN, *FAILED, *TOO_MANY)
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors, tokenizers
_OF_SHUTIL = re.compile(r"\[Errno (\d+)\]")  # which keeps of each file of a folder what the system said
_OF_TORCH = re.compile(r"PytorchStreamWriter failed writing|inline_container.*(unexpected pos|file write failed)")


class DiskFault(OSError):
    """A fault of the disk; its text is one sentence.

    Attributes:
        errno: the system's number of it.
        filename: what was to be written or read, as far as it is known.
    """

    def __init__(self, number: int, filename: str | None, kept: str = NOTHING_KEPT) -> None:
        super().__init__(number, os.strerror(number), filename)
        self.kept = kept

    def __reduce__(self):
        return type(self), (self.errno, self.filename, self.kept)

    def __str__(self) -> str:
        what, said = self.filename or "a file", self.strerror
        if self.errno in NO_SPACE:
            way_out = "free some space, or choose a folder on another disk"
            return f"no space left while writing {what} ({said}); {self.kept}: {way_out}"
        if self.errno in FORBIDDEN:
            return f"{what} may not be read or written ({said}): change its permissions, or choose another folder"
        if self.errno in TOO_MANY:
            return f"{what} cannot be opened ({said}); {self.kept}: raise the limit (ulimit -n)"
        return f"reading or writing {what} failed ({said}); {self.kept}: look at the disk, or choose another one"


@contextlib.contextmanager
def named_faults(place: str | Path, *, kept: str = NOTHING_KEPT) -> Iterator[None]:
    """Inside, a fault of the disk becomes a `DiskFault`.

    Args:
        place: the folder that is written, for a fault that names no file.
        kept: what a run that stops here leaves.

    Raises:
        DiskFault: from the error that it was.
    """
    try:
        yield
    except Exception as error:
        fault = disk_fault(error, place, kept=kept)
        if fault is None:
            raise
        raise fault from error


def disk_fault(error: BaseException, place: str | Path | None = None, *, kept: str | None = None) -> DiskFault | None:
    """The fault of a disk that an error, or what caused it, tells of; None where it tells of something else.

    Args:
        error: of any library.
        place: as in `named_faults`.
        kept: as in `named_faults`; None is what the fault says already.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ValueError):  # a sentence that somebody found for what it met
        number = _number(seen)
        if number in _FAULTS:
            return DiskFault(number, _file(seen) or (place and str(place)), kept or getattr(seen, "kept", NOTHING_KEPT))
        seen = seen.__cause__
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, shutil.Error):
        return next((number for found in _OF_SHUTIL.findall(str(error)) if (number := int(found)) in _FAULTS), None)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, sqlite3.Error):
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for the index of its log
            return errno.ENOSPC
        return _OF_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # the low byte is the kind
    if found := _OF_RUST.search(str(error)):
        return int(found[1])
    if isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)):  # which does not say why
        return errno.ENOSPC
    return None


def _file(error: BaseException) -> str | None:
    # Of a copy, the second is written; the first is only read.
    names = (getattr(error, "filename2", None), getattr(error, "filename", None))
    return next((os.fsdecode(name) for name in names if isinstance(name, (str, bytes)) and name), None)
