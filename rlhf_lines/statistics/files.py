"""The files of statistics: written one tensor after the other, read by name."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlhf_lines.suggestion import unknown_name


FISHER_FILE = "fisher.safetensors"
GRAM_FILE = "gram.safetensors"
FLOAT32 = 4  # bytes

# Keys of the metadata of GRAM_FILE, both JSON.
SAME_INPUT = "same_input"
TRANSPOSED = "transposed"


class TensorFile:
    """A safetensors file of float32 tensors, of which no more than one has to be in memory.

    Its header, which comes first, needs only the shapes. The format: 8 bytes with the header's length, the header as
    JSON, padded with spaces to a multiple of 8, and the tensors without gaps.

    Args:
        path: the file to make.
        shapes: name to shape, in the order in which the tensors will be written.
        metadata: texts for the header.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> None:
        self._missing = list(shapes)[::-1]
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        end = 0
        for name, shape in self._shapes.items():
            start, end = end, end + FLOAT32 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._stream = path.open("wb")
        self._stream.write(struct.pack("<Q", len(encoded)) + encoded)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stream.close()
        if kind is None and self._missing:
            raise RuntimeError(f"{len(self._missing)} tensors were never written, the first is {self._missing[-1]!r}")

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor."""
        if not self._missing or self._missing[-1] != name or self._shapes[name] != tensor.shape:
            raise RuntimeError(f"{name!r} of shape {tuple(tensor.shape)} is not the next tensor of the file")
        self._missing.pop()
        self._stream.write(tensor.to("cpu", torch.float32).contiguous().numpy().data)


def read_gram(file: Any, name: str) -> Tensor:
    """Return X^T X / n of the inputs of one linear layer, ``[in, in]``, float32.

    Layers that read the same input (q, k and v; gate and up) share one stored matrix.

    Args:
        file: the path of ``gram.safetensors``, or what ``safetensors.safe_open(path, "pt")`` gave.
        name: of the layer's weight, as the dense SFT checkpoint names it.

    Raises:
        ValueError: the file has no matrix for this layer.
    """
    if isinstance(file, (str, Path)):
        with safe_open(file, framework="pt") as handle:
            return read_gram(handle, name)
    same_input = _metadata(file, SAME_INPUT)
    if name not in same_input:
        raise ValueError(unknown_name("linear layer", name, same_input))
    return file.get_tensor(same_input[name])


def stored_transposed(file: Any) -> frozenset[str]:
    """Return the names of the weights that the checkpoint stores as ``[in, out]`` (GPT-2's Conv1D).

    Args:
        file: as for ``read_gram``.
    """
    if isinstance(file, (str, Path)):
        with safe_open(file, framework="pt") as handle:
            return stored_transposed(handle)
    return frozenset(_metadata(file, TRANSPOSED))


def _metadata(handle: Any, key: str) -> Any:
    metadata = handle.metadata() or {}
    if key not in metadata:
        raise ValueError(f"the file has no {key!r} in its header, expected the {GRAM_FILE} of rlhf-lines gram")
    return json.loads(metadata[key])
