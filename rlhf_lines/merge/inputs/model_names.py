"""What a model calls the tensors of a checkpoint, which its files may name otherwise.

transformers renames tensors while it loads them: a file's `language_model.model.layers.0` is the module
`model.language_model.layers.0` of Gemma 3. Adapters have the names of modules. The model is built without weights, and
the library's own renaming is asked, so no list of architectures is kept here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL_LM, SEEING, TRANSLATOR = "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM"
# What a folder may be loaded as: as what it was saved, and as what adapters are trained on.
_LOADERS = (CAUSAL_LM, SEEING, TRANSLATOR)


@dataclass(frozen=True)
class ModelNames:
    """The tensors of one checkpoint as one class of transformers takes them.

    Attributes:
        architecture: the class.
        shapes: parameter of the model to shape; tied ones under each of their names.
        stored: parameter to the name in the files, where it is one tensor there and loaded as it is.
        tied: parameter that the files do not hold to the name in the files of the one that it is tied to.
        renamed: the parameter that a tensor of this name in a file becomes.
        ignores: whether a tensor of this name in a file is passed over in silence.
        ties: whether tensors of these two names in a file become one parameter; None where one becomes none.
    """

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    stored: dict[str, str]
    tied: dict[str, str]
    renamed: Callable[[str], str]
    ignores: Callable[[str], bool]
    ties: Callable[[str, str], bool | None]

    def key(self, name: str) -> str:
        """The parameter that a name means, which is its own, or that in files of any version of transformers."""
        return name if name in self.shapes else self.renamed(name)

    def loads(self, name: str) -> bool:
        """Whether a tensor of this name in a file becomes a parameter, or a part of one; buffers do not."""
        return self.renamed(name) in self.shapes


class Readings:
    """Every way in which transformers reads a checkpoint, each found when it is first asked for.

    Args:
        folder: with `config.json`.
        names: of the tensors in its files.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder, self._names = folder, tuple(names)

    def __iter__(self) -> Iterator[ModelNames]:
        known = set()
        for loader in (None, *_LOADERS):
            reading = self.loaded_by(loader)
            if reading is not None and reading.architecture not in known:
                known.add(reading.architecture)
                yield reading

    def loaded_by(self, loader: str | None) -> ModelNames | None:
        """What a class such as `AutoModelForCausalLM` makes of it, None the saved one; None where it makes nothing."""
        config = self._folder / "config.json"
        stat = config.stat() if config.is_file() else None
        return stat and _model_names(self._folder.resolve(), loader, self._names, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _model_names(folder: Path, loader: str | None, names: tuple[str, ...], _changed: int) -> ModelNames | None:
    try:
        model = _without_weights(folder, loader)
    except Exception:  # code of its own, an unknown type, no such head: each raises what it likes, and nothing is known
        return None
    return model and _names(model, names)


def _without_weights(folder: Path, loader: str | None) -> PreTrainedModel | None:
    import transformers

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it comments on configs, which the stage that loads the weights will repeat
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            if loader is not None:
                return getattr(transformers, loader).from_config(config, trust_remote_code=False)
            saved_as = next(iter(config.architectures or ()), "")
            return getattr(transformers, saved_as)(config) if hasattr(transformers, saved_as) else None
    finally:
        logger.setLevel(level)


def _names(model: PreTrainedModel, names: Iterable[str]) -> ModelNames:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def rename(name: str) -> tuple[str, str | None]:
        key, converter = rename_source_key(name, renamings, converters, prefix, state)
        return (name, None) if key not in state and name in state else (key, converter)

    parameters = dict(model.named_parameters(remove_duplicate=False))
    stored = {}
    for name in names:
        key, converter = rename(name)
        if key in parameters and converter is None:
            stored[key] = name
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}

    def ignores(name: str) -> bool:
        told = SimpleNamespace(missing_keys=set(), unexpected_keys={name})
        model._adjust_missing_and_unexpected_keys(told)
        return rename(name)[0] in buffers or not told.unexpected_keys

    def ties(*names: str) -> bool | None:
        one, other = (parameters.get(rename(name)[0]) for name in names)
        return None if one is None or other is None else one is other

    held = {id(parameters[key]): name for key, name in stored.items()}
    return ModelNames(
        type(model).__name__,
        {key: tuple(parameter.shape) for key, parameter in parameters.items()},
        stored,
        {key: held[id(p)] for key, p in parameters.items() if key not in stored and id(p) in held},
        lambda name: rename(name)[0],
        ignores,
        ties,
    )
