"""Reading a dense checkpoint: one safetensors file, or shards with an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_TRUNK_PREFIXES = ("model.", "transformer.", "gpt_neox.")


class Checkpoint:
    """A folder with `config.json` and safetensors weights, read tensor by tensor.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} is not a folder; expected a local checkpoint with config.json and {_SINGLE} "
                "(download a Hub model first: hf download ID --local-dir FOLDER)"
            )
        if not (self.folder / _SINGLE).is_file() and not (self.folder / _INDEX).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has neither {_SINGLE} nor {_INDEX}; save the model there with "
                "model.save_pretrained(folder), which writes safetensors"
            )
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()

    @cached_property
    def index(self) -> dict[str, Any] | None:
        """The content of the shard index, or None for a single file."""
        path = self.folder / _INDEX
        if (self.folder / _SINGLE).is_file():
            return None
        return read_json(path)

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Weight file name to the tensor names in it, both in a stable order."""
        files = [_SINGLE] if self.index is None else sorted(set(self.index["weight_map"].values()))
        for file in files:
            if Path(file).name != file or not (self.folder / file).is_file():
                raise FileNotFoundError(f"{str(self.folder)!r} has no {file!r}, which {_INDEX} names; copy it there")
        return {file: sorted(self._handle(file).keys()) for file in files}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to shape, from the file headers."""
        return {
            name: tuple(self._handle(file).get_slice(name).get_shape())
            for file, names in self.files.items()
            for name in names
        }

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Tensor name to the torch name of its dtype, from the file headers."""
        return {
            name: _DTYPE_NAMES.get(code := self._handle(file).get_slice(name).get_dtype(), code.lower())
            for file, names in self.files.items()
            for name in names
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{str(self.folder)!r} has no config.json; save the model with save_pretrained")
        return read_json(path)

    def num_layers(self) -> int:
        """The number of transformer blocks that `config.json` states.

        Raises:
            ValueError: none of the usual keys is there.
        """
        for config in (self.config, self.config.get("text_config") or {}):
            for key in _LAYER_KEYS:
                if isinstance(config.get(key), int):
                    return config[key]
        raise ValueError(
            f"{str(self.folder / 'config.json')!r} does not state the number of blocks; expected one of {_LAYER_KEYS}"
        )

    def parameter(self, name: str) -> str | None:
        """The name under which the file holds a model's parameter, or None.

        Checkpoints that were saved from the trunk alone (GPT-2's on the Hub) lack the trunk's prefix.
        """
        stripped = [name.removeprefix(prefix) for prefix in _TRUNK_PREFIXES]
        return next((candidate for candidate in [name, *stripped] if candidate in self.shapes), None)

    def read(self, name: str) -> Tensor:
        """One tensor, as stored."""
        return self._handle(self._file_of[name]).get_tensor(name)

    def metadata(self, file: str) -> dict[str, str]:
        """The metadata in the header of one weight file."""
        return self._handle(file).metadata() or {}

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file for file, names in self.files.items() for name in names}

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt").__enter__()
            except SafetensorError as error:
                raise ValueError(f"cannot read {str(self.folder / file)!r} ({error}); copy or save it again") from error
        return self._open[file]


def checkpoint_sha256(folder: str | Path) -> str:
    """SHA-256 over the contents of a checkpoint's safetensors files, in the order of their names.

    Depends on the bytes only, so it survives moving or renaming the folder. Written by the PPO stage into
    `rlhf_lines.json` as `sft_sha256`, and compared when policies are merged.

    Raises:
        FileNotFoundError: the folder holds no such checkpoint.
    """
    with Checkpoint(folder) as checkpoint:
        return sha256_of(checkpoint.folder / file for file in sorted(checkpoint.files))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file does not hold one.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); copy or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, expected a JSON object; save it again")
    return content


def sha256_of(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
