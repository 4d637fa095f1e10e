"""Files of models that are not what their names say: a pointer of Git LFS, or a damaged or too new tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


POINTER = b"version https://git-lfs.github.com/spec/"  # what a file begins with that Git LFS has not fetched
# What loading a folder reads. Other files may well be pointers: other formats of the same weights often are.
READ = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors", "tokenizer.json")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def refuse_pointer(path: str | Path) -> None:
    """Stop where Git LFS has left a pointer in place of a file.

    Raises:
        ValueError: it has; the message has the command that fetches the file.
    """
    path = Path(path)
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{path} is a pointer of Git LFS, not the file itself, which was not fetched: run git lfs pull in "
                f"{path.parent}"
            )


def refuse_pointers(folder: str | Path) -> None:
    """Stop where Git LFS has left a pointer in place of weights or the tokenizer of a model's folder.

    Raises:
        ValueError: as `refuse_pointer`.
    """
    for pattern in READ:
        for path in sorted(Path(folder).glob(pattern)):
            refuse_pointer(path)


def open_tokenizer(source: str | Path, **settings: Any) -> Any:
    """The tokenizer of a folder or of the Hub, as `AutoTokenizer.from_pretrained` loads it.

    Raises:
        ValueError: a file of the folder is damaged, or too new; the library says neither that nor which. Anything else
            is what the library raises.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **settings)
    except Exception:
        _refuse_unreadable(Path(source))
        raise


def _refuse_unreadable(folder: Path) -> None:
    for name in ("tokenizer.json", *SETTINGS):
        path = folder / name
        if not path.is_file():
            continue
        refuse_pointer(path)
        try:
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): copy it again from where it is whole") from error
        if name not in SETTINGS:
            _refuse_unknown(path)


def _refuse_unknown(path: Path) -> None:
    """Stop where the tokenizers library does not know what a JSON object says."""
    import tokenizers

    try:
        tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain ones
        raise ValueError(
            f"{path} cannot be read by tokenizers {tokenizers.__version__} ({error}): it was written by a newer "
            "version, so update tokenizers, or it is damaged, so copy it again from where it is whole"
        ) from error
