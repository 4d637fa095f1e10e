"""Files that are open at once: those used last, so that no checkpoint has too many shards for the system's limit."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path


MOST = 256
_lock = threading.Lock()
_open: OrderedDict[OpenFile, None] = OrderedDict()  # the one used last is the last


class OpenFile:
    """A file by position, for several threads: opened when it is used, closed when many others were used since.

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path, flags: int) -> None:
        """Open the file.

        Args:
            path: where it lies, or will.
            flags: of `os.open`.

        Raises:
            OSError: the system refuses.
        """
        self.path, self._flags, self._users, self._descriptor = path, flags, 0, None
        self._seen: tuple[int, ...] | None = None
        with self.descriptor():
            self._flags &= ~(os.O_CREAT | os.O_EXCL)

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield what the system calls the file by; it stays open inside.

        Raises:
            ValueError: the file was replaced or written by somebody else since it was opened first.
        """
        with _lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, self._flags, 0o666)
                _open[self] = None
                self._check_same()
            _open.move_to_end(self)
            self._users += 1
            most = min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
            for file in [file for file in _open if not file._users][: max(len(_open) - most, 0)]:
                file._close()
        try:
            yield self._descriptor
        finally:
            with _lock:
                self._users -= 1

    def close(self) -> None:
        """Close the file; errors of delayed writing appear here."""
        with _lock:
            self._close()

    def _close(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        del _open[self]
        try:
            os.close(descriptor)
        except OSError as error:  # which file it was, only we know
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _check_same(self) -> None:
        stat = os.fstat(self._descriptor)
        # One that we write changes under our own hands.
        changes = () if self._flags & os.O_WRONLY else (stat.st_size, stat.st_mtime_ns)
        seen = (stat.st_dev, stat.st_ino, *changes)
        if self._seen not in (None, seen):
            self._close()
            raise ValueError(f"{str(self.path)!r} was changed while it was read: start again when it is complete")
        self._seen = seen
