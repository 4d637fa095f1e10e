"""safetensors files, read and written by position: any part of a tensor, without mapping the file into memory.

Pages of a mapped file count as resident memory, so a mapped checkpoint would be resident as a whole in the end.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reward_models.files import refuse_pointer
from rlhf_lines.merge.tensors.open_files import OpenFile


_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: what it is, and at which byte of the file it starts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize


def readable(path: str | Path) -> Path:
    """The path of a file for safetensors, which takes none that is not UTF-8, and calls such a file unreadable.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(path)!r} is no path in UTF-8, as safetensors needs it: rename the folder") from error
    return Path(path)


class TensorFile:
    """A safetensors file that is open for reading.

    Attributes:
        path: where it lies.
        entries: tensor name to its dtype, shape and place.
        metadata: texts that the file carries.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Raises:
            ValueError: it is not a whole safetensors file, holds a dtype that is not known here, or has no readable
                path.
        """
        self.path = readable(path)
        try:
            with safe_open(self.path, framework="pt"):
                pass  # the library checks the header against the file
        except SafetensorError as error:
            refuse_pointer(self.path)
            raise ValueError(f"cannot read {str(self.path)!r} ({error}); copy or save it again") from error
        self._file = OpenFile(self.path, os.O_RDONLY)
        with self._file.descriptor() as descriptor:
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            header = json.loads(os.pread(descriptor, length, 8))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries = {name: self._entry(name, fields, 8 + length) for name, fields in sorted(header.items())}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_into(self, buffer: Tensor, name: str, start: int) -> None:
        """Fill `buffer` (flat, of the stored dtype) with the elements of a tensor from `start` on.

        Raises:
            OSError: the file is shorter than it was.
        """
        entry = self.entries[name]
        view = memoryview(buffer.view(torch.uint8).numpy())
        offset = entry.offset + start * entry.dtype.itemsize
        with self._file.descriptor() as descriptor:
            while view:
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    raise OSError(errno.EIO, "the file ends early", str(self.path))
                view, offset = view[count:], offset + count

    def _entry(self, name: str, fields: Mapping[str, Any], data: int) -> Entry:
        if fields["dtype"] not in _DTYPES:
            raise ValueError(
                f"{str(self.path)!r} holds {name!r} of dtype {fields['dtype']}, expected one of {', '.join(_DTYPES)}; "
                "dequantise the checkpoint or drop this tensor"
            )
        return Entry(_DTYPES[fields["dtype"]], tuple(fields["shape"]), data + fields["data_offsets"][0])


class NewTensorFile:
    """A safetensors file of known layout whose parts may be written in any order, by several threads.

    Attributes:
        path: where it lies.
        entries: tensor name to its dtype, shape and place.
    """

    def __init__(self, path: str | Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        """Write the header and set the space aside.

        Raises:
            OSError: the disk is full.
        """
        self.path = Path(path)
        # The widest first, so that every tensor is aligned whatever its size.
        ordered = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name in ordered:
            entry, begin = entries[name], end
            end += entry.nbytes
            header[name] = {"dtype": _CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = 8 + len(text)
        self.entries = {
            name: Entry(entries[name].dtype, entries[name].shape, data + header[name]["data_offsets"][0])
            for name in ordered
        }
        self._file = OpenFile(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            self._set_aside(data + end)
            self._write(memoryview(len(text).to_bytes(8, "little") + text), 0)
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write `values` (flat, on the CPU, of the entry's dtype) as the elements of a tensor from `start` on."""
        entry = self.entries[name]
        if values.dtype != entry.dtype or start + values.numel() > entry.size:
            raise ValueError(
                f"{values.numel()} values of {values.dtype} from {start} on do not fit {name!r}, {entry.size} of "
                f"{entry.dtype}; this is a mistake of the caller"
            )
        offset = entry.offset + start * entry.dtype.itemsize
        self._write(memoryview(values.contiguous().view(torch.uint8).numpy()), offset)

    def __enter__(self) -> NewTensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; errors of delayed writing appear here."""
        self._file.close()

    def _set_aside(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return  # macOS: a full disk is met later
        try:
            with self._file.descriptor() as descriptor:
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
                raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _write(self, view: memoryview, offset: int) -> None:
        with self._file.descriptor() as descriptor:
            while view:
                try:
                    count = os.pwrite(descriptor, view, offset)
                except OSError as error:  # which file it was, only we know
                    raise OSError(error.errno, error.strerror, str(self.path)) from error
                view, offset = view[count:], offset + count
