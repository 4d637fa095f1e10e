"""SHA-256 over the contents of files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from rlhf_lines.known_hashes import FileState, recall, remember


LARGE = 1 << 24  # bytes: below, reading takes no longer than looking for a hash that is kept
SETTLED = 3e9  # nanoseconds without a change: times of files may go by 2 seconds (FAT), and hide a change within them
BUFFER = 1 << 18  # bytes, which stay in a core's cache


def sha256_of(paths: Iterable[Path]) -> str:
    """SHA-256 over files, one after the other; computed once for files that do not change (see `known_hashes`).

    Raises:
        OSError: a file is missing or cannot be read.
    """
    return _sha256_of(tuple(map(FileState.of, paths)))


def contents_sha256(paths: Iterable[str | Path]) -> str:
    """SHA-256 over files, one after the other, of what they hold now, whatever is known of them."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER))
    for path in paths:
        with Path(path).open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(buffer[:count])
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _sha256_of(files: tuple[FileState, ...]) -> str:
    """States are the key, so that a file that was written again is read again."""
    paths = [Path(file.path) for file in files]
    large = sum(file.size for file in files) >= LARGE
    if large and (known := recall(files)) is not None:
        return known
    settled = all(time.time_ns() - max(file.mtime_ns, file.ctime_ns) > SETTLED for file in files)
    found = contents_sha256(paths)
    if large and settled and files == tuple(map(FileState.of, paths)):
        remember(files, found)
    return found
