"""The files of statistics: written one tensor after the other, read by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge.inputs.statistics import GRAM
from rlhf_lines.merge.inputs.statistics_files import SAME_INPUT, TRANSPOSED
from rlhf_lines.merge.tensors.tensor_file import Entry, NewTensorFile


def new_statistics_file(path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> NewTensorFile:
    """A file of float32 tensors that is written one tensor after the other, so that no two are in memory."""
    entries = {name: Entry(torch.float32, tuple(shape)) for name, shape in shapes.items()}
    return NewTensorFile(path, entries, {"format": "pt", **metadata})


def read_gram(file: Any, name: str) -> Tensor:
    """X^T X / n of the inputs of one linear map, `[in, in]`, float32.

    Maps that read the same input (q, k and v; gate and up) share one stored matrix.

    Args:
        file: the path of `gram.safetensors`, or what `safetensors.safe_open(path, "pt")` gave.
        name: of the map's weight, as the dense SFT checkpoint names it.

    Raises:
        ValueError: the file has no matrix for this map.
    """
    if isinstance(file, (str, Path)):
        with safe_open(file, framework="pt") as handle:
            return read_gram(handle, name)
    same_input = _metadata(file, SAME_INPUT)
    if name not in same_input:
        raise ValueError(unknown_name("linear map", name, same_input))
    return file.get_tensor(same_input[name])


def stored_transposed(file: Any) -> frozenset[str]:
    """The names of the weights that the checkpoint stores as `[in, out]` (GPT-2's Conv1D).

    Args:
        file: as for `read_gram`.
    """
    if isinstance(file, (str, Path)):
        with safe_open(file, framework="pt") as handle:
            return stored_transposed(handle)
    return frozenset(_metadata(file, TRANSPOSED))


def _metadata(handle: Any, key: str) -> Any:
    metadata = handle.metadata() or {}
    if key not in metadata:
        raise ValueError(f"the file has no {key!r} in its header, expected the {GRAM.file} of rlhf-lines gram")
    return json.loads(metadata[key])
